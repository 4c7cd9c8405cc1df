//! (problem, device) -> configuration: tables, first fitting row wins.
//!
//! Rows say what a block owns and what it walks over. They were chosen by measurement on an H200 for head_dim 64 and
//! 128 (see `benchmarks/gpu.md`); other rows are bounded by registers (255 a thread) and by shared memory, which is why
//! the last row of each head_dim is one that fits the 99 KiB of the smallest GPUs since Ampere.
use crate::DeviceTensor;
use crate::config::{
    Access, Common, Config, DeltaRows, DqSums, HopperCommon, HopperForm, HopperKeysForm, Operands,
    PortableForm, Rows, Scores,
};
use crate::plan::{BackwardCall, ForwardCall, ForwardShape};
use signflash_core::{Dtype, Problem};
use signflash_ptx::Half;
use std::fmt;

/// What a GPU offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gpu {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Dynamic shared memory that one block may ask for.
    pub smem_per_block_bytes: u32,
    /// How many blocks of a kernel that fills a multiprocessor run at once.
    pub sm_count: u32,
}

impl Gpu {
    /// An H100 or H200.
    pub const HOPPER: Gpu = Gpu { compute_capability: (9, 0), smem_per_block_bytes: 232_448, sm_count: 132 };
    /// Whether Hopper's own kernels run: those of no other architecture do, earlier or later.
    pub fn is_hopper(&self) -> bool {
        self.compute_capability == (9, 0)
    }

    /// An A100.
    pub const AMPERE: Gpu = Gpu { compute_capability: (8, 0), smem_per_block_bytes: 166_912, sm_count: 108 };
    /// The least that runs these kernels: Ada, and Ampere's consumer GPUs.
    pub const SMALL: Gpu = Gpu { compute_capability: (8, 6), smem_per_block_bytes: 101_376, sm_count: 84 };
}

/// A row of a table: for padded head_dims up to `head_dim`.
#[derive(Clone, Copy, Debug)]
struct Row {
    head_dim: u32,
    /// Only with dropout, or only without.
    dropout: Option<bool>,
    tiles: PortableForm,
}

impl Row {
    const fn when(self, dropout: bool) -> Row {
        Row { dropout: Some(dropout), ..self }
    }

    /// dq of a step is added a step later.
    const fn late_dq(self) -> Row {
        Row { tiles: PortableForm { late_dq: true, ..self.tiles }, ..self }
    }

    /// The rows that a warp owns stay in its registers.
    const fn in_registers(self) -> Row {
        Row { tiles: PortableForm { in_registers: true, ..self.tiles }, ..self }
    }
}

const fn row(head_dim: u32, [warps, row_tiles, step, slots, blocks_per_sm]: [u32; 5]) -> Row {
    keys_row(head_dim, [warps, row_tiles, 1, step, slots, blocks_per_sm])
}

const fn keys_row(head_dim: u32, [warps, row_tiles, split, step, slots, blocks_per_sm]: [u32; 6]) -> Row {
    let tiles = PortableForm {
        warps,
        row_tiles,
        split,
        step,
        slots,
        blocks_per_sm,
        late_dq: false,
        in_registers: false,
    };
    Row { head_dim, dropout: None, tiles }
}

/// Columns: head_dim up to, [warps, 16-row tiles a warp, keys a step, slots, blocks an SM].
const FORWARD: &[Row] = &[
    row(32, [4, 2, 64, 2, 2]).in_registers(),
    row(64, [4, 2, 128, 2, 2]).when(false),
    row(64, [4, 2, 64, 2, 2]).in_registers(),
    row(96, [4, 2, 64, 2, 2]),
    row(128, [4, 2, 64, 2, 2]),
    row(128, [4, 2, 32, 2, 2]),
    row(192, [8, 1, 64, 2, 1]),
    row(192, [4, 1, 32, 2, 2]),
    row(256, [8, 1, 64, 2, 1]),
    row(256, [8, 1, 32, 2, 1]),
    row(256, [4, 1, 32, 2, 1]),
];

/// A row of Hopper's table.
#[derive(Clone, Copy, Debug)]
struct HopperRow {
    head_dim: u32,
    /// Only causal, or only not.
    causal: Option<bool>,
    dropout: bool,
    /// For no more keys than these.
    up_to_keys: usize,
    shape: HopperForm,
}

impl HopperRow {
    const fn causal(self, causal: bool) -> HopperRow {
        HopperRow { causal: Some(causal), ..self }
    }

    const fn up_to_keys(self, up_to_keys: usize) -> HopperRow {
        HopperRow { up_to_keys, ..self }
    }

    /// Warpgroups start their products in turns.
    const fn turns(self) -> HopperRow {
        HopperRow { shape: HopperForm { turns: true, ..self.shape }, ..self }
    }

    /// So many pieces of the softmax go beside the product with values.
    const fn early(self, early: u32) -> HopperRow {
        HopperRow { shape: HopperForm { early, ..self.shape }, ..self }
    }

    /// The output leaves by way of the queries' shared memory.
    const fn out_in_q(self) -> HopperRow {
        HopperRow { shape: HopperForm { out_in_q: true, ..self.shape }, ..self }
    }

    /// With dropout: so many warpgroups draw flags, so many steps ahead.
    const fn drop(self, drawers: u32, flag_stages: u32) -> HopperRow {
        HopperRow { dropout: true, shape: HopperForm { drawers, flag_stages, ..self.shape }, ..self }
    }
}

const fn hopper(head_dim: u32, [groups, step, stages, registers]: [u32; 4]) -> HopperRow {
    let (drawers, flag_stages, turns, early, out_in_q) = (0, 0, false, 0, false);
    let shape = HopperForm { groups, drawers, step, stages, flag_stages, registers, turns, early, out_in_q };
    HopperRow { head_dim, causal: None, dropout: false, up_to_keys: usize::MAX, shape }
}

/// Head_dim up to, [warpgroups that multiply, keys a step, stages, registers]. With dropout steps are multiples of 32.
const HOPPER_FORWARD: &[HopperRow] = &[
    // Tiles of 192 rows are too few, and end too unevenly, for short causal problems.
    hopper(64, [2, 128, 2, 232]).turns().causal(true).up_to_keys(2048),
    hopper(64, [3, 128, 2, 160]).turns(),
    hopper(64, [2, 128, 3, 168]).early(4).drop(1, 4),
    hopper(128, [2, 128, 2, 232]).turns().early(4),
    hopper(128, [2, 128, 2, 200]).turns().early(4).drop(1, 2),
    hopper(192, [2, 112, 2, 232]).turns().out_in_q(),
    hopper(192, [2, 64, 2, 216]).turns().out_in_q().drop(1, 3),
    hopper(256, [2, 80, 2, 232]).turns().out_in_q(),
    hopper(256, [2, 64, 2, 216]).turns().out_in_q().drop(1, 3),
];

/// The same columns: warps own queries, and walk over keys.
const QUERIES: &[Row] = &[
    row(64, [4, 1, 64, 2, 2]),
    row(128, [4, 1, 64, 2, 1]),
    row(128, [4, 1, 32, 2, 1]),
    row(192, [4, 1, 32, 2, 1]),
    row(192, [4, 1, 32, 1, 1]),
    row(256, [4, 1, 32, 2, 1]),
    row(256, [4, 1, 32, 1, 1]),
    row(256, [2, 1, 32, 1, 1]),
];

/// Warps own keys, and walk over queries: [warps, 16-row tiles a warp, warps on the same keys, queries a step, slots,
/// blocks an SM].
const KEYS: &[Row] = &[
    keys_row(64, [4, 2, 1, 32, 2, 2]).late_dq(),
    keys_row(128, [8, 2, 2, 64, 2, 1]),
    keys_row(128, [8, 1, 1, 64, 2, 1]),
    keys_row(128, [4, 1, 1, 32, 2, 1]),
    keys_row(192, [8, 1, 2, 32, 2, 1]).late_dq(),
    keys_row(192, [4, 1, 2, 32, 1, 1]).late_dq(),
    keys_row(256, [8, 1, 2, 32, 1, 1]).late_dq(),
    keys_row(256, [4, 1, 2, 32, 1, 1]).late_dq(),
];

/// Above this head_dim two warps share the columns of dk and dv, so that it is padded to twice 16.
const SPLIT_HEAD_DIM: u32 = 128;

/// The kernels of one backward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackwardConfigs {
    /// delta and base-2 lse.
    pub delta: Config,
    /// dk and dv, and sums of dq.
    pub keys: Config,
    /// dq: from its pieces, or by a pass of its own.
    pub dq: Config,
}

/// Chooses kernels.
#[derive(Clone, Copy, Debug)]
pub struct Select {
    /// For this GPU.
    pub gpu: Gpu,
    /// Whether every row of the tensors starts at a multiple of 16 bytes.
    pub aligned: bool,
}

impl Select {
    /// What all kernels of a problem share.
    pub fn common(&self, problem: &Problem, half: Half) -> Common {
        let head_dim = problem.shape().head_dim as u32;
        let padded = head_dim.next_multiple_of(if head_dim > SPLIT_HEAD_DIM { 32 } else { 16 });
        let access = match self.aligned && head_dim.is_multiple_of(8) {
            true if head_dim == padded => Access::Whole,
            true => Access::Pieces,
            false => Access::Elements,
        };
        Common {
            operands: Operands { half, head_dim: padded },
            access,
            scores: Scores {
                causal: problem.causal(),
                dropout: problem.keep_rule().is_some(),
                negative_scale: problem.negates(),
            },
        }
    }

    fn tiles(
        &self,
        table: &[Row],
        common: Common,
        smem_bytes: impl Fn(&PortableForm) -> u32,
    ) -> PortableForm {
        let head_dim = common.operands.head_dim;
        let fits = |row: &&Row| {
            row.head_dim >= head_dim
                && row.dropout.is_none_or(|dropout| dropout == common.scores.dropout)
                && head_dim.is_multiple_of(16 * row.tiles.split)
                && smem_bytes(&row.tiles) <= self.gpu.smem_per_block_bytes
        };
        table.iter().find(fits).expect("the last row fits every GPU since Ampere").tiles
    }

    /// The forward's kernel, for a call with so many keys that Hopper's own kernel takes, where it is for Hopper.
    pub fn forward(&self, common: Common, seqlen_k: usize) -> Config {
        match self.forward_shape(common, seqlen_k, true) {
            ForwardShape::Portable(tiles) => Config::Forward(common, tiles),
            ForwardShape::Hopper(shape) => Config::HopperForward(common.hopper(), shape),
        }
    }

    /// The forward's kernel that every GPU since Ampere runs.
    pub fn portable_forward(&self, common: Common) -> Config {
        let smem = |t: &PortableForm| 2 * common.operands.head_dim * (t.rows() + 2 * t.slots * t.step);
        Config::Forward(common, self.tiles(FORWARD, common, smem))
    }

    pub(crate) fn forward_shape(&self, common: Common, seqlen_k: usize, hopper: bool) -> ForwardShape {
        let is_hopper = self.gpu.is_hopper() && common.access != Access::Elements;
        let row = |row: &&HopperRow| {
            row.head_dim >= common.operands.head_dim
                && row.dropout == common.scores.dropout
                && row.up_to_keys >= seqlen_k
                && row.causal.is_none_or(|causal| causal == common.scores.causal)
                && row.shape.smem_bytes(&common.hopper()) <= self.gpu.smem_per_block_bytes
        };
        match HOPPER_FORWARD.iter().find(row) {
            Some(row) if is_hopper && hopper => ForwardShape::Hopper(row.shape),
            _ => match self.portable_forward(common) {
                Config::Forward(_, tiles) => ForwardShape::Portable(tiles),
                _ => unreachable!("the portable forward is a forward"),
            },
        }
    }

    /// Whether Hopper's own kernel takes a forward.
    ///
    /// # Errors
    /// What it does not take, in words.
    pub(crate) fn hopper_takes(&self, call: &ForwardCall<'_>) -> Result<(), String> {
        let shape = call.problem.shape();
        if !self.gpu.is_hopper() {
            return Err("it is for Hopper".into());
        }
        let tensors = [
            ("q", call.q, shape.q()),
            ("k", call.k, shape.k()),
            ("v", call.v, shape.v()),
            ("out", call.out, shape.out()),
        ];
        // Its first tile would begin with rows before the tensor, and the copy engine stores no box from there.
        if call.problem.keep_rule().is_some_and(|rule| !rule.first_row().is_multiple_of(16)) {
            return Err("the shard starts inside a block of 16 rows of the mask".into());
        }
        copy_engine_takes(shape.head_dim, &tensors)
    }

    /// Whether Hopper's own kernel writes probs, where its forward computes a call.
    ///
    /// # Errors
    /// What it does not take, in words.
    pub(crate) fn hopper_takes_probs(&self, problem: &Problem, probs: DeviceTensor) -> Result<(), String> {
        let seqlen_k = problem.shape().seqlen_k;
        if !seqlen_k.is_multiple_of(8) {
            return Err(format!("seqlen_k is {seqlen_k}, and rows of probs are written in pieces of 8"));
        }
        if !probs.is_aligned() {
            return Err("the rows of probs do not all start at multiples of 16 bytes".into());
        }
        match problem.keep_rule() {
            Some(rule) if !rule.first_column().is_multiple_of(32) => {
                Err("the shard starts inside a block of 32 columns of the mask".into())
            }
            _ => Ok(()),
        }
    }

    /// The shape of Hopper's kernel that writes probs.
    pub(crate) fn hopper_probs(&self, common: Common) -> HopperForm {
        let (drawers, registers) = if common.scores.dropout { (2, 168) } else { (0, 232) };
        HopperForm {
            groups: 2,
            drawers,
            step: if common.operands.head_dim > 128 { 64 } else { 128 },
            stages: 2,
            flag_stages: if common.scores.dropout { 2 } else { 0 },
            registers,
            turns: false,
            early: 0,
            out_in_q: false,
        }
    }

    /// The kernel that writes probs, where a GPU's own kernels take the call.
    pub fn probs(&self, common: Common) -> Config {
        match self.gpu.is_hopper() && common.access != Access::Elements {
            true => Config::HopperProbs(common.hopper(), self.hopper_probs(common)),
            false => self.portable_probs(common),
        }
    }

    /// The kernel that writes probs on every GPU since Ampere.
    pub fn portable_probs(&self, common: Common) -> Config {
        let smem = |t: &PortableForm| 2 * common.operands.head_dim * (t.rows() + 2 * t.slots * t.step);
        Config::Probs(common, self.tiles(QUERIES, common, smem))
    }

    /// Whether Hopper's kernels take a backward's tensors.
    ///
    /// # Errors
    /// What they do not take, in words.
    pub(crate) fn hopper_takes_backward(&self, call: &BackwardCall<'_>) -> Result<(), String> {
        let shape = call.problem.shape();
        if !self.gpu.is_hopper() {
            return Err("it is for Hopper".into());
        }
        if call.problem.keep_rule().is_some_and(|rule| !rule.first_column().is_multiple_of(32)) {
            return Err("the shard starts inside a block of 32 columns of the mask".into());
        }
        if !call.workspace.is_multiple_of(16) {
            return Err("the workspace does not start at a multiple of 16 bytes".into());
        }
        let tensors = [
            ("q", call.q, shape.q()),
            ("k", call.k, shape.k()),
            ("v", call.v, shape.v()),
            ("dout", call.dout, shape.out()),
            ("dk", call.dk, shape.k()),
            ("dv", call.dv, shape.v()),
        ];
        copy_engine_takes(shape.head_dim, &tensors)
    }

    /// The kernels of a backward on Hopper of its own, where it has some: the pass over keys, and dq from its sums.
    pub fn hopper_backward(&self, common: Common, deterministic: bool) -> Vec<Config> {
        if !self.gpu.is_hopper() || common.access == Access::Elements {
            return vec![];
        }
        let (common, shape) = self.hopper_keys(common, deterministic);
        vec![Config::HopperKeys(common, shape), hopper_convert_dq(common, shape)]
    }

    /// Hopper's pass over keys: what it shares with others, and its shape.
    pub(crate) fn hopper_keys(&self, common: Common, deterministic: bool) -> (HopperCommon, HopperKeysForm) {
        let head_dim = common.operands.head_dim.next_multiple_of(64);
        let operands = Operands { head_dim, ..common.operands };
        let (keys, step, ds_stages) = match head_dim {
            ..=64 => (128, 128, 2),
            65..=128 => (128, 64, 3),
            _ => (64, 64, 1),
        };
        let flag_stages = if common.scores.dropout { 2 } else { 0 };
        let registers = if common.scores.dropout && keys > 64 { 232 } else { 240 };
        let ordered = deterministic;
        let shape = HopperKeysForm { keys, step, stages: 2, ds_stages, flag_stages, registers, ordered };
        (HopperCommon { operands, ..common.hopper() }, shape)
    }

    /// The backward's kernels.
    pub fn backward(&self, common: Common, deterministic: bool) -> BackwardConfigs {
        self.backward_with(common, deterministic, None)
    }

    /// The same with other tiles for the pass over keys.
    pub(crate) fn backward_with(
        &self,
        common: Common,
        deterministic: bool,
        tiles: Option<PortableForm>,
    ) -> BackwardConfigs {
        let width = common.operands.head_dim;
        let own = |t: &PortableForm| {
            // k and v; q, dout and statistics; p, and ds twice.
            let slot = (4 * width + 8) * t.step;
            4 * width * t.rows() + t.slots * slot.next_multiple_of(1024) + 6 * t.rows() * t.step
        };
        let tiles = tiles.unwrap_or_else(|| self.tiles(KEYS, common, own));
        let sums = match (deterministic, self.gpu.compute_capability >= (9, 0)) {
            (true, _) => DqSums::None,
            (false, true) => DqSums::Wide,
            (false, false) => DqSums::Narrow,
        };
        let smem = |t: &PortableForm| 4 * width * (t.rows() + t.slots * t.step);
        let dq = match sums {
            DqSums::None => Config::Queries(common, self.tiles(QUERIES, common, smem)),
            _ => Config::ConvertDq(common.rows(), tiles.step, sums),
        };
        // Without sums there is nothing to add later.
        let tiles = PortableForm { late_dq: tiles.late_dq && sums != DqSums::None, ..tiles };
        BackwardConfigs { delta: delta(&common), keys: Config::Keys(common, tiles, sums), dq }
    }
}

/// The statistics of rows.
fn delta(common: &Common) -> Config {
    Config::Delta(common.operands.half, DeltaRows::of(common.rows()))
}

/// dq from the sums that Hopper's pass over keys adds to, whose rows are padded to whole boxes.
pub(crate) fn hopper_convert_dq(common: HopperCommon, shape: HopperKeysForm) -> Config {
    let rows = Rows { operands: common.operands, access: Access::Pieces };
    Config::ConvertDq(rows, shape.step, DqSums::Wide)
}

/// Whether the copy engine takes tensors.
fn copy_engine_takes(head_dim: usize, tensors: &[(&str, DeviceTensor, [usize; 4])]) -> Result<(), String> {
    if !head_dim.is_multiple_of(8) {
        return Err(format!("head_dim is {}, and rows are written in pieces of 8", head_dim));
    }
    for (name, tensor, [batch, seqlen, heads, columns]) in tensors.iter().copied() {
        if [batch, seqlen, heads, columns].contains(&0) {
            return Err(format!("{name} is empty"));
        }
        if !tensor.is_aligned() {
            return Err(format!("the rows of {name} do not all start at multiples of 16 bytes"));
        }
        let used = [(batch, tensor.batch_stride), (seqlen, tensor.row_stride), (heads, tensor.head_stride)];
        let unfit = |(size, stride): &(usize, u64)| *size > 1 && !(1..1 << 39).contains(stride);
        if let Some((_, stride)) = used.into_iter().find(unfit) {
            return Err(format!("{name} has a stride of {stride} elements"));
        }
    }
    Ok(())
}

/// The 16-bit format of a dtype, if it is one.
pub fn half_of(dtype: Dtype) -> Option<Half> {
    match dtype {
        Dtype::F16 => Some(Half::F16),
        Dtype::Bf16 => Some(Half::Bf16),
        _ => None,
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(
            f,
            "compute capability {major}.{minor}, {} KiB of shared memory a block",
            self.smem_per_block_bytes / 1024
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceTensor, ForwardChoice, choose_forward};
    use signflash_core::{Dropout, Shape, Shard};

    /// What a call with a change is told, on Hopper.
    fn told(shape: Shape, shard: Shard, change: impl Fn(&mut ForwardCall<'_>)) -> (bool, Option<String>) {
        let mut answer = (false, None);
        told_on(Gpu::HOPPER, shape, shard, change, |choice| {
            answer = (matches!(choice.shape, ForwardShape::Hopper(_)), choice.not_hopper.clone());
        });
        answer
    }

    fn told_on(
        gpu: Gpu,
        shape: Shape,
        shard: Shard,
        change: impl Fn(&mut ForwardCall<'_>),
        see: impl FnOnce(&ForwardChoice),
    ) {
        let problem = Problem::builder(shape).dropout(Dropout::new(0.1, 1, 0).unwrap()).shard(shard);
        let problem = problem.build().unwrap();
        let tensor = |[_, seqlen, heads, columns]: [usize; 4]| {
            let (row_stride, head_stride) = ((heads * columns) as u64, columns as u64);
            DeviceTensor { ptr: 4096, batch_stride: seqlen as u64 * row_stride, row_stride, head_stride }
        };
        let (q, k) = (tensor(problem.shape().q()), tensor(problem.shape().k()));
        let (half, seed_and_offset_ptr) = (Half::F16, 0);
        let mut call = ForwardCall {
            problem: &problem,
            half,
            q,
            k,
            v: k,
            out: q,
            lse: 256,
            probs: None,
            seed_and_offset_ptr,
        };
        change(&mut call);
        see(&choose_forward(&call, gpu));
    }

    const SHAPE: Shape = Shape::new(2, 40, 50).heads(4, 2).head_dim(72);

    #[test]
    fn hopper_takes_whole_pieces_of_16_bytes() {
        assert_eq!(told(SHAPE, Shard::default(), |_| {}), (true, None));
    }

    #[test]
    fn a_head_dim_of_no_whole_pieces_gets_the_portable_kernels_without_tensors_too() {
        let shape = SHAPE.head_dim(41);
        let problem = Problem::builder(shape).build().unwrap();
        let select = Select { gpu: Gpu::HOPPER, aligned: true };
        let common = select.common(&problem, Half::Bf16);
        assert!(matches!(select.forward(common, 50), Config::Forward(..)));
        assert!(matches!(select.probs(common), Config::Probs(..)));
        assert_eq!(select.hopper_backward(common, false), []);
    }

    #[test]
    fn probs_that_hopper_does_not_write_have_a_reason_of_their_own() {
        let reason = |seqlen_k: usize, shard: Shard, off: u64, gpu: Gpu| {
            let shape = SHAPE.seqlen_k(seqlen_k);
            let mut answer = None;
            told_on(
                gpu,
                shape,
                shard,
                |call| {
                    let [_, heads, rows, columns] = shape.probs().map(|size| size as u64);
                    let (row_stride, head_stride) = (columns, rows * columns);
                    call.probs = Some(DeviceTensor {
                        ptr: 4096 + off,
                        batch_stride: heads * head_stride,
                        row_stride,
                        head_stride,
                    });
                },
                |choice| answer = choice.probs_not_hopper.clone(),
            );
            answer
        };
        let whole = Shard::default();
        assert_eq!(reason(48, whole, 0, Gpu::HOPPER), None);
        let cases = [
            (reason(50, whole, 0, Gpu::HOPPER), "seqlen_k is 50"),
            (reason(48, whole, 2, Gpu::HOPPER), "the rows of probs"),
            (reason(48, Shard { first_column: 8, ..whole }, 0, Gpu::HOPPER), "a block of 32 columns"),
        ];
        for (reason, expected) in cases {
            assert!(reason.as_ref().is_some_and(|reason| reason.contains(expected)), "{reason:?}");
        }
        assert_eq!(reason(50, whole, 0, Gpu::AMPERE), None, "other GPUs have one kernel only");
    }

    #[test]
    fn what_hopper_does_not_take_goes_to_the_portable_kernels_with_a_reason() {
        let whole = Shard::default();
        let cases = [
            (
                told(SHAPE, whole, |call| call.v.ptr += 2),
                "the rows of v do not all start at multiples of 16 bytes",
            ),
            (told(SHAPE, whole, |call| call.k.head_stride = 0), "k has a stride of 0 elements"),
            (told(SHAPE.head_dim(41), whole, |_| {}), "head_dim is 41, and rows are written in pieces of 8"),
            (told(SHAPE.seqlen_k(0), whole, |_| {}), "k is empty"),
            (
                told(SHAPE, Shard { first_row: 8, ..whole }, |_| {}),
                "the shard starts inside a block of 16 rows",
            ),
        ];
        for ((hopper, reason), expected) in cases {
            assert!(!hopper, "{expected}");
            assert!(
                reason.as_ref().is_some_and(|reason| reason.contains(expected)),
                "{expected}: {reason:?}"
            );
        }
    }
}
