//! Prints a kernel's PTX, for looking at what ptxas makes of it:
//! `cargo run -p signflash-kernels --example print -- forward bf16 128 drop causal w4 r2 n64 s2 b2 reg`, or
//! `hopper bf16 128 drop g2 n128 s2 r216`, or `hopperkeys bf16 192 v128 drop k64 n64 s2 p1 f2 r240`. A bias is `bias=bf16`,
//! `bias=f32` and so on, a mask `mask`, one for all queries `perkey`, read two at once `pairs`.
use signflash_kernels::{
    Access, BandKind, Common, Config, DbiasKernel, DeltaRows, DqKernel, DqSums, ForwardKernel, HopperForm,
    HopperKeysForm, KeysKernel, Layout, Numbers, Operands, OverlayKind, Overlays, PortableForm, Product,
    ScoreKind, Scores, Stored,
};
use signflash_ptx::Half;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let number = |letter: char, default: u32| {
        words.iter().find_map(|w| w.strip_prefix(letter)?.parse().ok()).unwrap_or(default)
    };
    let common = Common {
        operands: Operands {
            half: if has("f16") { Half::F16 } else { Half::Bf16 },
            stored: match (has("wide"), has("added")) {
                (_, true) => Stored::Added,
                (true, false) => Stored::Wide,
                (false, false) => Stored::Rounded,
            },
            head_dim: words.iter().find_map(|w| w.parse().ok()).unwrap_or(128),
            head_dim_v: words.iter().find_map(|w| w.strip_prefix('v')?.parse().ok()),
            layout: if has("packed") { Layout::Packed } else { Layout::Batch },
        },
        access: match (has("narrow"), has("ragged")) {
            (true, _) => Access::Elements,
            (false, true) => Access::Pieces,
            (false, false) => Access::Whole,
        },
        scores: Scores {
            band: match (has("causal"), has("window")) {
                (_, true) => BandKind::Both,
                (true, false) => BandKind::Right,
                (false, false) => BandKind::Full,
            },
            dropout: has("drop"),
            kind: ScoreKind {
                product: match (has("neg"), has("softcap")) {
                    (_, true) => Product::Capped,
                    (true, false) => Product::Negated,
                    (false, false) => Product::Scaled,
                },
                alibi: has("alibi"),
            },
            sinks: has("sinks"),
            overlays: overlays(&words),
        },
    };
    let tiles = PortableForm {
        warps: number('w', 4),
        row_tiles: number('r', 2),
        split: number('c', 1),
        step: number('n', 64),
        slots: number('s', 2),
        blocks_per_sm: number('b', 2),
        late_dq: has("late"),
        in_registers: has("reg"),
    };
    let sums = if has("nodq") {
        DqSums::None
    } else if has("wide") {
        DqSums::Wide
    } else {
        DqSums::Narrow
    };
    let hopper = HopperForm {
        warpgroups: number('g', 2),
        drawers: number('d', 0),
        flag_stages: number('f', 0),
        step: number('n', 128),
        stages: number('s', 2),
        registers: number('r', 216),
        turns: !has("noturns"),
        early: number('e', 0),
        out_in_q: has("outq"),
    };
    let hopper_keys = HopperKeysForm {
        keys: number('k', 128),
        key_stages: [number('x', 1), number('y', 1)],
        step: number('n', 64),
        stages: number('s', 2),
        ds_stages: number('p', 2),
        flag_stages: number('f', 0),
        registers: number('r', 232),
        ordered: has("det"),
        persistent: has("tiles"),
        begins_sums: has("begins"),
    };
    let config = match words.first().map(String::as_str) {
        Some("probs") => Config::Probs(ForwardKernel::Portable(common, tiles)),
        Some("delta") => Config::Delta(
            common.operands.half,
            common.operands.layout,
            match common.access {
                Access::Whole | Access::Pieces => DeltaRows::Wide { lanes: number('l', 16) },
                Access::Elements => DeltaRows::Narrow { columns: number('l', 4) },
            },
        ),
        Some("keys") => Config::Keys(KeysKernel::Portable(common, tiles, sums)),
        Some("queries") => Config::Dq(DqKernel::Queries(common, tiles)),
        Some("convert") => Config::Dq(DqKernel::FromSums(common.rows(), tiles.step, sums)),
        Some("lists") => Config::Tiles,
        Some("padding") => Config::Padding,
        Some("owndbias") => Config::OwnDbias(common.hopper()),
        Some("dbias") => Config::Dbias(DbiasKernel { common, form: tiles, pairs: has("pairs") }),
        Some("hopper") => Config::Forward(ForwardKernel::Hopper(common.hopper(), hopper)),
        Some("hopperkeys") => Config::Keys(KeysKernel::Hopper(common.hopper(), hopper_keys)),
        _ => Config::Forward(ForwardKernel::Portable(common, tiles)),
    };
    print!("{}", config.kernel().ptx());
}

/// What is added to scores.
fn overlays(words: &[String]) -> Overlays {
    let has = |word: &str| words.iter().any(|w| w == word);
    let kind =
        |numbers| OverlayKind { numbers, per_key: has("perkey"), pairs: has("pairs"), boxes: has("boxes") };
    let bias = words.iter().find_map(|word| word.strip_prefix("bias=")).map(|numbers| match numbers {
        "f32" => Numbers::F32,
        "f16" => Numbers::F16,
        _ => Numbers::Bf16,
    });
    Overlays { bias: bias.map(kind), mask: has("mask").then(|| kind(Numbers::Bytes)), padding: has("padded") }
}
