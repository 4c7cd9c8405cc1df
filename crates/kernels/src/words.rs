//! Configurations in words, for whoever wants to know what a call runs on.
use crate::config::{
    Access, BandKind, Common, Config, DbiasKernel, DeltaRows, DqKernel, DqSums, ForwardKernel, HopperCommon,
    HopperForm, HopperKeysForm, KeysKernel, Layout, Numbers, Operands, OverlayKind, Overlays, PortableForm,
    Product, RowsCommon, Scores, Stored,
};
use std::fmt;

impl Config {
    /// What the kernel computes, for what, and the form of its blocks, in words.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape};
    /// use signflash_kernels::{ForwardCall, ForwardChoice, Gpu, Half, Kernels};
    /// let shape = Shape::new(1, 64, 64).heads(1, 1).head_dim(128);
    /// let problem = Problem::builder(shape).causal(true).build()?;
    /// let call = ForwardCall::of_dense(&problem, Half::Bf16);
    /// let choice = ForwardChoice::of(&call, Gpu::AMPERE, Kernels::Best);
    /// let words = choice.kernels().next().unwrap().words().to_string();
    /// assert_eq!(
    ///     words,
    ///     "out and lse by the portable kernel: bf16, head_dim 128, causal. A block of 4 warps owns 128 rows; shared memory \
    ///      holds 2 steps of 64; 2 blocks a multiprocessor"
    /// );
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn words(&self) -> Words<'_> {
        Words(self)
    }
}

/// A configuration in words: [`Config::words`].
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(&'a Config);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Config::Forward(kernel) => forward(f, "out and lse", kernel),
            Config::Probs(kernel) => forward(f, "probs", kernel),
            Config::Delta(half, layout, rows) => {
                let (half, layout) = (half.name(), of_layout(*layout));
                write!(f, "Statistics of rows: {half}{layout}. {}", of_delta(rows))
            }
            Config::Dbias(DbiasKernel { common, form, pairs }) => {
                let written = if *pairs { "two numbers" } else { "a number" };
                write!(
                    f,
                    "dbias, {written} at once, by a pass over its tiles: {}. {}",
                    of_common(common),
                    of_form(form)
                )
            }
            Config::OwnDbias(HopperCommon { operands, scores }) => {
                let of = of_operands(operands) + &of_scores(scores);
                write!(
                    f,
                    "dbias by Hopper's own pass over its tiles: {of}. A block takes 128 queries and 128 keys"
                )
            }
            Config::Padding => {
                f.write_str("Which keys a mask leaves of each sequence. A block takes a sequence")
            }
            Config::Dsinks => f.write_str("Gradients of sinks. A block takes a head"),
            Config::Tiles => f.write_str("Lists of the tiles of packed sequences. A warp takes a sequence"),
            Config::Keys(KeysKernel::Portable(common, form, sums)) => {
                let what = match sums {
                    DqSums::None => "dk and dv",
                    DqSums::Narrow => "dk, dv and sums of dq, a float at a time,",
                    DqSums::Wide => "dk, dv and sums of dq, four floats at a time,",
                };
                write!(f, "{what} by the portable kernel: {}. {}", of_common(common), of_form(form))
            }
            Config::Keys(KeysKernel::Hopper(common, form)) => {
                let HopperCommon { operands, scores } = common;
                write!(
                    f,
                    "dk, dv and sums of dq by Hopper's own kernel: {}{}. ",
                    of_operands(operands),
                    of_scores(scores)
                )?;
                f.write_str(&of_keys_form(form))
            }
            Config::Dq(DqKernel::Queries(common, form)) => {
                write!(f, "dq by a pass over queries: {}. {}", of_common(common), of_form(form))
            }
            Config::Dq(DqKernel::FromSums(RowsCommon { operands, access }, step, _)) => {
                write!(
                    f,
                    "dq from its sums: {}{}. A block owns {step} rows",
                    of_operands(operands),
                    of_access(*access)
                )
            }
        }
    }
}

fn forward(f: &mut fmt::Formatter<'_>, what: &str, kernel: &ForwardKernel) -> fmt::Result {
    match kernel {
        ForwardKernel::Portable(common, form) => {
            write!(f, "{what} by the portable kernel: {}. {}", of_common(common), of_form(form))
        }
        ForwardKernel::Hopper(HopperCommon { operands, scores }, form) => {
            write!(f, "{what} by Hopper's own kernel: {}{}. ", of_operands(operands), of_scores(scores))?;
            f.write_str(&of_hopper_form(form))
        }
    }
}

fn of_common(Common { operands, access, scores }: &Common) -> String {
    of_operands(operands) + &of_scores(scores) + of_access(*access)
}

fn of_operands(Operands { half, stored, head_dim, head_dim_v, layout }: &Operands) -> String {
    let of_v = head_dim_v.map_or(String::new(), |head_dim_v| format!(" and {head_dim_v} of v"));
    let results = match stored {
        Stored::Rounded => "",
        Stored::Wide => " with f32 results",
        Stored::Added => " with f32 results, added to others",
    };
    format!("{}{results}, head_dim {head_dim}{of_v}{}", half.name(), of_layout(*layout))
}

fn of_layout(layout: Layout) -> &'static str {
    match layout {
        Layout::Batch => "",
        Layout::Packed => ", packed sequences",
    }
}

fn of_scores(Scores { band, dropout, kind, overlays, sinks }: &Scores) -> String {
    let words = [
        (*band == BandKind::Right, ", causal"),
        (*band == BandKind::Both, ", a window"),
        (*dropout, ", dropout"),
        (kind.product == Product::Negated, ", a negative softmax_scale"),
        (kind.product == Product::Capped, ", a softcap"),
        (kind.alibi, ", ALiBi"),
        (*sinks, ", sinks"),
    ];
    let words: String = words.into_iter().filter(|(on, _)| *on).map(|(_, words)| words).collect();
    words + &of_overlays(overlays)
}

fn of_overlays(Overlays { bias, mask, padding }: &Overlays) -> String {
    let of = |what: &str, kind: &OverlayKind| {
        let numbers = match kind.numbers {
            Numbers::F32 => " of f32",
            Numbers::F16 => " of f16",
            Numbers::Bf16 => " of bf16",
            Numbers::Bytes => "",
        };
        let per_key = if kind.per_key { ", the same for all queries" } else { "" };
        let read = match (kind.boxes, kind.pairs) {
            (true, _) => "brought in boxes",
            (false, true) => "read two at once",
            (false, false) => "read one by one",
        };
        format!(", {what}{numbers} ({read}{per_key})")
    };
    let words = [bias.as_ref().map(|kind| of("a bias", kind)), mask.as_ref().map(|kind| of("a mask", kind))];
    let padding = padding.then(|| ", only keys that it leaves".to_string());
    words.into_iter().chain([padding]).flatten().collect()
}

fn of_access(access: Access) -> &'static str {
    match access {
        Access::Whole => "",
        Access::Pieces => ", of which fewer columns may be real",
        Access::Elements => ", moved element by element",
    }
}

fn of_delta(rows: &DeltaRows) -> String {
    match rows {
        DeltaRows::Wide { lanes } => format!("{} read a row, 16 bytes each", counted(*lanes, "lane")),
        DeltaRows::Narrow { columns } => {
            format!("A warp reads a row element by element, {} a lane", counted(*columns, "column"))
        }
    }
}

fn of_form(form: &PortableForm) -> String {
    let PortableForm { warps, split, step, slots, blocks_per_sm, late_dq, in_registers, .. } = *form;
    let owns = format!("A block of {warps} warps owns {} rows", form.rows());
    let more = [
        (split > 1, format!(", {split} warps the same")),
        (in_registers, ", which stay in registers".into()),
        (true, format!("; shared memory holds {} of {step}", counted(slots, "step"))),
        (late_dq, "; dq is added a step later".into()),
        (true, format!("; {} a multiprocessor", counted(blocks_per_sm, "block"))),
    ];
    owns + &said(more)
}

fn of_hopper_form(form: &HopperForm) -> String {
    let HopperForm { warpgroups, drawers, step, stages, flag_stages, registers, turns, early, out_in_q } =
        *form;
    let owns = format!(
        "{warpgroups} warpgroups of a block multiply 64 queries each with {registers} registers a thread"
    );
    let more = [
        (turns, ", in turns".into()),
        (drawers == 1, ", 1 draws flags".into()),
        (drawers > 1, format!(", {drawers} draw flags")),
        (true, format!(", 1 copies; shared memory holds {} of {step} keys", counted(stages, "step"))),
        (flag_stages > 0, format!(" and {flag_stages} of flags")),
        (early > 0, format!("; {early} of {} pieces of a softmax run beside a product", step / 16)),
        (out_in_q, "; out leaves by way of the place of q".into()),
    ];
    owns + &said(more)
}

fn of_keys_form(form: &HopperKeysForm) -> String {
    let HopperKeysForm { keys, key_stages, step, stages, ds_stages, flag_stages, registers, .. } = *form;
    let how = if form.shares_keys() { "share" } else { "own half each of" };
    let owns =
        format!("2 warpgroups of a block {how} {keys} keys with {registers} registers a thread, 1 serves");
    let more = [
        (true, format!("; shared memory holds {} of {step} queries", counted(stages, "step"))),
        (true, format!(", {ds_stages} of ds")),
        (flag_stages > 0, format!(", {flag_stages} of flags")),
        (key_stages[0] > 1, format!(", {} of keys", counted(key_stages[0], "tile"))),
        (key_stages[1] > 1, format!(", {} of values", counted(key_stages[1], "tile"))),
        (form.ordered, "; blocks add to dq in the order of their keys".into()),
        (form.persistent, "; a block a multiprocessor takes tile after tile".into()),
        (form.begins_sums, "; who comes first to some queries stores their dq, others add".into()),
    ];
    owns + &said(more)
}

fn said<const N: usize>(words: [(bool, String); N]) -> String {
    words.into_iter().filter(|(on, _)| *on).map(|(_, words)| words).collect()
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use crate::{BackwardCall, BackwardChoice, Config, ForwardCall, ForwardChoice, Gpu, Half, Kernels};
    use signflash_core::{Dropout, Problem, Shape};

    fn words(head_dim: usize, dropout_p: f32, gpu: Gpu, deterministic: bool) -> Vec<String> {
        let shape = Shape::new(1, 64, 64).heads(1, 1).head_dim(head_dim);
        let problem =
            Problem::builder(shape).dropout(Dropout::new(dropout_p, 1, 0).unwrap()).build().unwrap();
        let probs = crate::DeviceTensor::dense(0, shape.probs(), crate::Order::HeadsFirst);
        let forward = ForwardCall::of_dense(&problem, Half::Bf16).with_probs(Some(probs));
        let backward = BackwardCall::of_dense(&problem, Half::Bf16).with_deterministic(deterministic);
        let forward = ForwardChoice::of(&forward, gpu, Kernels::Best);
        let backward = BackwardChoice::of(&backward, gpu, Kernels::Best);
        let all: Vec<Config> = forward.kernels().chain(backward.kernels()).collect();
        all.iter().map(|config| config.words().to_string()).collect()
    }

    #[test]
    fn hopper_s_own_kernels_say_who_does_what() {
        assert_eq!(
            words(128, 0.1, Gpu::HOPPER, true),
            [
                "out and lse by Hopper's own kernel: bf16, head_dim 128, dropout. 2 warpgroups of a block \
                 multiply 64 queries each with 200 registers a thread, in turns, 1 draws flags, 1 copies; shared \
                 memory holds 2 steps of 128 keys and 2 of flags; 4 of 8 pieces of a softmax run beside a product",
                "probs by Hopper's own kernel: bf16, head_dim 128, dropout. 2 warpgroups of a block multiply 64 \
                 queries each with 168 registers a thread, 2 draw flags, 1 copies; shared memory holds 2 steps of \
                 128 keys and 2 of flags",
                "Statistics of rows: bf16. 16 lanes read a row, 16 bytes each",
                "dk, dv and sums of dq by Hopper's own kernel: bf16, head_dim 128, dropout. 2 warpgroups of a \
                 block own half each of 128 keys with 232 registers a thread, 1 serves; shared memory holds 2 \
                 steps of 64 queries, 3 of ds, 2 of flags; blocks add to dq in the order of their keys",
                "dq from its sums: bf16, head_dim 128, of which fewer columns may be real. A block owns 64 rows",
            ]
        );
        let shared = &words(192, 0.0, Gpu::HOPPER, false)[3];
        assert!(shared.contains("2 warpgroups of a block share 64 keys"), "{shared}");
        let out_in_q = &words(192, 0.0, Gpu::HOPPER, false)[0];
        assert!(out_in_q.ends_with("; out leaves by way of the place of q"), "{out_in_q}");
    }

    #[test]
    fn portable_kernels_say_what_a_block_owns() {
        assert_eq!(
            words(41, 0.1, Gpu::AMPERE, false),
            [
                "out and lse by the portable kernel: bf16, head_dim 48, dropout, moved element by element. A \
                 block of 4 warps owns 128 rows, which stay in registers; shared memory holds 2 steps of 64; 2 \
                 blocks a multiprocessor",
                "probs by the portable kernel: bf16, head_dim 48, dropout, moved element by element. A block of 4 \
                 warps owns 64 rows; shared memory holds 2 steps of 64; 1 block a multiprocessor",
                "Statistics of rows: bf16. A warp reads a row element by element, 2 columns a lane",
                "dk, dv and sums of dq, a float at a time, by the portable kernel: bf16, head_dim 48, dropout, \
                 moved element by element. A block of 4 warps owns 128 rows; shared memory holds 2 steps of 32; \
                 dq is added a step later; 2 blocks a multiprocessor",
                "dq from its sums: bf16, head_dim 48, moved element by element. A block owns 32 rows",
            ]
        );
        let deterministic = words(128, 0.0, Gpu::SMALL, true);
        assert!(deterministic[3].starts_with("dk and dv by the portable kernel: bf16, head_dim 128. "));
        assert!(deterministic[4].starts_with("dq by a pass over queries: bf16, head_dim 128. "));
    }
}
