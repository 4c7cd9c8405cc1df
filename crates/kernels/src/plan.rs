//! What one call does on a GPU: launches with their arguments. The interpreter and the driver run the same plan.
use crate::config::{Config, HopperForm, HopperKeysForm, PortableForm};
use crate::parts::args::{DeviceTensor, DropoutArgs, ProblemArgs};
use crate::select::{Gpu, Select, hopper_convert_dq};
use crate::sm80::backward_keys::KeysArgs;
use crate::sm80::backward_queries::QueriesArgs;
use crate::sm80::convert_dq::ConvertDqArgs;
use crate::sm80::delta::DeltaArgs;
use crate::sm80::forward::ForwardArgs;
use crate::sm80::probs::ProbsArgs;
use crate::sm90::{self, ScheduleArgs};
use signflash_core::Problem;
use signflash_ptx::{Arg, Half, TensorMap};

/// One thing that a stream does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Runs a kernel.
    Launch {
        /// Which.
        config: Config,
        /// Blocks, along x.
        grid: u32,
        /// One value a parameter.
        args: Vec<Arg>,
    },
    /// Zeroes memory.
    Zero {
        /// Its first byte.
        ptr: u64,
        /// How many.
        bytes: u64,
    },
}

/// A forward, its tensors in device memory.
#[derive(Clone, Copy, Debug)]
pub struct ForwardCall<'a> {
    /// Sizes, scale, dropout.
    pub problem: &'a Problem,
    /// Format of all tensors but lse.
    pub half: Half,
    /// (batch, seqlen_q, num_heads, head_dim).
    pub q: DeviceTensor,
    /// (batch, seqlen_k, num_heads_k, head_dim).
    pub k: DeviceTensor,
    /// As k.
    pub v: DeviceTensor,
    /// As q; written.
    pub out: DeviceTensor,
    /// (batch, num_heads, seqlen_q) f32, dense; written.
    pub lse: u64,
    /// (batch, num_heads, seqlen_q, seqlen_k), if asked for; written. Of its strides, the row's is that from query to
    /// query.
    pub probs: Option<DeviceTensor>,
    /// Address of a seed and an offset (u64 each) that replace the problem's when the kernel runs, or 0.
    pub seed_and_offset_ptr: u64,
}

/// A backward, its tensors in device memory.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct BackwardCall<'a> {
    pub problem: &'a Problem,
    pub half: Half,
    pub q: DeviceTensor,
    pub k: DeviceTensor,
    pub v: DeviceTensor,
    pub out: DeviceTensor,
    /// (batch, num_heads, seqlen_q) f32, dense.
    pub lse: u64,
    pub dout: DeviceTensor,
    /// The gradient of lse, like it, if it has one.
    pub dlse: Option<u64>,
    /// Written.
    pub dq: DeviceTensor,
    /// Written.
    pub dk: DeviceTensor,
    /// Written.
    pub dv: DeviceTensor,
    /// Of [`backward_workspace_bytes`], a multiple of 16 as its address.
    pub workspace: u64,
    /// The same bits in every run. On Hopper it takes 7 to 27 % longer (head_dim above 128 up to 46 %), elsewhere about
    /// a third.
    pub deterministic: bool,
    /// As in [`ForwardCall`].
    pub seed_and_offset_ptr: u64,
}

/// Why no kernel can be launched: the grid would have too many blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyBlocks {
    /// How many it would need.
    pub blocks: u64,
}

impl std::fmt::Display for TooManyBlocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the call needs {} blocks, a launch takes 2147483647; split the batch or the heads",
            self.blocks
        )
    }
}

impl std::error::Error for TooManyBlocks {}

/// The steps of a forward. None if there is nothing to write.
///
/// # Errors
/// [`TooManyBlocks`].
pub fn forward(call: &ForwardCall<'_>, gpu: Gpu) -> Result<Vec<Step>, TooManyBlocks> {
    forward_with(call, gpu, choose_forward(call, gpu).shape)
}

/// Which kernel computes a forward, and in what shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardShape {
    /// The one that every GPU since Ampere runs.
    Portable(PortableForm),
    /// Hopper's.
    Hopper(HopperForm),
}

/// The tables' answer for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardChoice {
    /// The kernel and its shape.
    pub shape: ForwardShape,
    /// On Hopper, what about the call its own kernels do not take, if so.
    pub not_hopper: Option<String>,
    /// On Hopper, what about probs its own kernel for them does not take, if only they are left to the portable one.
    pub probs_not_hopper: Option<String>,
}

/// Which kernel computes a call's forward.
pub fn choose_forward(call: &ForwardCall<'_>, gpu: Gpu) -> ForwardChoice {
    let select = Select { gpu, aligned: aligned(&[call.q, call.k, call.v, call.out]) };
    let common = select.common(call.problem, call.half);
    let taken = select.hopper_takes(call);
    let shape = select.forward_shape(common, call.problem.shape().seqlen_k, taken.is_ok());
    let probs = call.probs.filter(|_| taken.is_ok());
    let probs_taken = probs.map_or(Ok(()), |probs| select.hopper_takes_probs(call.problem, probs));
    ForwardChoice {
        shape,
        not_hopper: taken.err().filter(|_| gpu.is_hopper()),
        probs_not_hopper: probs_taken.err(),
    }
}

/// The portable kernel for a call.
pub fn portable_forward(call: &ForwardCall<'_>, gpu: Gpu) -> ForwardShape {
    let select = Select { gpu, aligned: aligned(&[call.q, call.k, call.v, call.out]) };
    select.forward_shape(select.common(call.problem, call.half), call.problem.shape().seqlen_k, false)
}

/// The same with a kernel and shape of the caller's choice: to find better ones, or to do without Hopper's. A shape of
/// Hopper's must be for a call that [`choose_forward`] would give one.
///
/// # Errors
/// [`TooManyBlocks`].
pub fn forward_with(
    call: &ForwardCall<'_>,
    gpu: Gpu,
    shape: ForwardShape,
) -> Result<Vec<Step>, TooManyBlocks> {
    let ForwardCall { problem, half, q, k, v, out, lse, probs, seed_and_offset_ptr } = *call;
    let select = Select { gpu, aligned: aligned(&[q, k, v, out]) };
    let common = select.common(problem, half);
    let (args, dropout) = (problem_args(problem), dropout_args(problem, seed_and_offset_ptr));
    let list = |own: &dyn Fn(&mut Vec<Arg>)| argument_list(args, own, dropout);
    let mut steps = vec![];
    match shape {
        ForwardShape::Portable(tiles) => {
            let config = Config::Forward(common, tiles);
            let own = |l: &mut Vec<Arg>| ForwardArgs { q, k, v, out, lse }.push(l);
            launch(&mut steps, config, query_blocks(problem, &config), list(&own))?;
        }
        ForwardShape::Hopper(shape) => {
            let config = Config::HopperForward(common.hopper(), shape);
            let (schedule, blocks) = schedule(problem, shape.rows(), problem.causal(), gpu)?;
            let (queries, keys) = (problem.shape().q(), problem.shape().k());
            let args = sm90::forward::ForwardArgs {
                q: tensor_map(q, queries, sm90::forward::GROUP_ROWS),
                k: tensor_map(k, keys, shape.step),
                v: tensor_map(v, keys, shape.step),
                out: tensor_map(out, queries, sm90::forward::GROUP_ROWS),
                lse,
            };
            let own = |l: &mut Vec<Arg>| {
                schedule.push(l);
                args.push(l);
            };
            launch(&mut steps, config, blocks, list(&own))?;
        }
    }
    let hopper = matches!(shape, ForwardShape::Hopper(_));
    match probs {
        None => {}
        Some(probs) if hopper && select.hopper_takes_probs(problem, probs).is_ok() => {
            let shape = select.hopper_probs(common);
            // Every key is written, whether it is seen or not.
            let (schedule, blocks) = schedule(problem, shape.rows(), false, gpu)?;
            let (queries, keys) = (problem.shape().q(), problem.shape().k());
            let [batch, seqlen_q, heads, _] = queries;
            let args = sm90::probs::ProbsArgs {
                q: tensor_map(q, queries, sm90::forward::GROUP_ROWS),
                k: tensor_map(k, keys, shape.step),
                probs: tensor_map(probs, [batch, seqlen_q, heads, keys[1]], sm90::forward::GROUP_ROWS),
                lse,
            };
            let own = |l: &mut Vec<Arg>| {
                schedule.push(l);
                args.push(l);
            };
            let config = Config::HopperProbs(common.hopper(), shape);
            launch(&mut steps, config, blocks, list(&own))?;
        }
        Some(probs) => {
            let config = select.portable_probs(common);
            let own = |l: &mut Vec<Arg>| ProbsArgs { q, k, lse, probs }.push(l);
            launch(&mut steps, config, query_blocks(problem, &config), list(&own))?;
        }
    }
    Ok(steps)
}

/// How tiles of queries are shared out among Hopper's blocks, and how many blocks that takes.
fn schedule(
    problem: &Problem,
    rows: u32,
    causal: bool,
    gpu: Gpu,
) -> Result<(ScheduleArgs, u64), TooManyBlocks> {
    let (tiles, heads, blocks) = (query_tiles(problem, rows), heads(problem), gpu.sm_count.into());
    let schedule = ScheduleArgs::new(heads, tiles / heads, causal, blocks);
    let schedule = schedule.ok_or(TooManyBlocks { blocks: tiles })?;
    Ok((schedule, blocks.min(schedule.units.into())))
}

/// A tensor (batch, seqlen, heads, columns) for the copy engine, in boxes of so many rows.
fn tensor_map(tensor: DeviceTensor, [batch, seqlen, heads, columns]: [usize; 4], box_rows: u32) -> TensorMap {
    let DeviceTensor { ptr, batch_stride, row_stride, head_stride } = tensor;
    let dims = [columns, seqlen, heads, batch].map(|dim| dim as u64);
    let strides = [row_stride, head_stride, batch_stride];
    // What there is only one of has a stride that nobody reads, and that may be anything.
    let used = |i: usize| if dims[i + 1] > 1 { 2 * strides[i] } else { 16 };
    TensorMap { base: ptr, dims, strides_bytes: [used(0), used(1), used(2)], box_rows }
}

/// Bytes of device memory that a backward needs besides its tensors: delta and lse of every row, and dq in f32. On
/// other GPUs than Hopper the latter is not there if head_dim is above 128 or if it is deterministic.
pub fn backward_workspace_bytes(problem: &Problem, gpu: Gpu, deterministic: bool) -> u64 {
    Workspace::plan(problem, gpu, deterministic).bytes
}

/// Which kernel computes a backward's pass over keys, and in what shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardShape {
    /// The one that every GPU since Ampere runs.
    Portable(PortableForm),
    /// Hopper's.
    Hopper(HopperKeysForm),
}

/// The tables' answer for a backward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackwardChoice {
    /// The kernel and its shape.
    pub shape: BackwardShape,
    /// On Hopper, what about the call its own kernels do not take, if so.
    pub not_hopper: Option<String>,
}

/// Which kernel computes a call's backward.
pub fn choose_backward(call: &BackwardCall<'_>, gpu: Gpu) -> BackwardChoice {
    let select = Select { gpu, aligned: backward_aligned(call) };
    let taken = select.hopper_takes_backward(call);
    let shape = match taken {
        Ok(()) => BackwardShape::Hopper(
            select.hopper_keys(select.common(call.problem, call.half), call.deterministic).1,
        ),
        Err(_) => portable_backward(call, gpu),
    };
    BackwardChoice { shape, not_hopper: taken.err().filter(|_| gpu.is_hopper()) }
}

/// The portable kernel for a call's backward.
pub fn portable_backward(call: &BackwardCall<'_>, gpu: Gpu) -> BackwardShape {
    let select = Select { gpu, aligned: backward_aligned(call) };
    let configs = select.backward(select.common(call.problem, call.half), call.deterministic);
    BackwardShape::Portable(*configs.keys.tiles().expect("the portable pass has tiles"))
}

fn backward_aligned(BackwardCall { q, k, v, out, dout, dq, dk, dv, .. }: &BackwardCall<'_>) -> bool {
    aligned(&[*q, *k, *v, *out, *dout, *dq, *dk, *dv])
}

/// The steps of a backward.
///
/// # Errors
/// [`TooManyBlocks`].
pub fn backward(call: &BackwardCall<'_>, gpu: Gpu) -> Result<Vec<Step>, TooManyBlocks> {
    backward_with(call, gpu, choose_backward(call, gpu).shape)
}

/// The same with a kernel and shape of the caller's choice for the pass over keys: to find better ones, or to do without
/// Hopper's. Portable tiles must have the step of the table's for the workspace to suffice, or a smaller power of two; a
/// shape of Hopper's must be for a call that [`choose_backward`] would give one with as many keys and queries a step. Whether
/// it adds in order is the call's to say.
///
/// # Errors
/// [`TooManyBlocks`].
pub fn backward_with(
    call: &BackwardCall<'_>,
    gpu: Gpu,
    shape: BackwardShape,
) -> Result<Vec<Step>, TooManyBlocks> {
    let tiles = match shape {
        BackwardShape::Portable(tiles) => Some(tiles),
        BackwardShape::Hopper(_) => None,
    };
    let BackwardCall { problem, half, q, k, v, out, lse, dout, dq, dk, dv, .. } = *call;
    let select = Select { gpu, aligned: backward_aligned(call) };
    let configs = select.backward_with(select.common(problem, half), call.deterministic, tiles);
    let space = Workspace::plan(problem, gpu, call.deterministic);
    let (stats, dq_sums) = (call.workspace, call.workspace + space.dq_sums);
    let (args_problem, dropout) = (problem_args(problem), dropout_args(problem, call.seed_and_offset_ptr));
    let list = |own: &dyn Fn(&mut Vec<Arg>)| argument_list(args_problem, own, dropout);
    let mut steps = vec![];

    let keep_scale = dropout.map_or(1.0, |d| d.keep_scale);
    let keep_scale = match shape {
        BackwardShape::Hopper(_) => keep_scale * sm90::backward::ds_scale(dropout.is_some()),
        BackwardShape::Portable(_) => keep_scale,
    };
    let dlse = call.dlse.unwrap_or(0);
    let own = |l: &mut Vec<Arg>| DeltaArgs { out, dout, lse, dlse, stats, keep_scale }.push(l);
    let rows = heads(problem) * stat_rows(problem);
    let Config::Delta(_, read) = configs.delta else { unreachable!("statistics are of the kernel for them") };
    let blocks = rows.div_ceil(read.per_block().into());
    launch(&mut steps, configs.delta, blocks, argument_list(args_problem, &own, None))?;
    let converts = matches!(configs.dq, Config::ConvertDq(..));
    if (converts || matches!(shape, BackwardShape::Hopper(_))) && space.bytes > space.dq_sums {
        steps.push(Step::Zero { ptr: dq_sums, bytes: space.bytes - space.dq_sums });
    }
    let convert = |steps: &mut Vec<Step>, config: Config| {
        let own = |l: &mut Vec<Arg>| ConvertDqArgs { dq, dq_sums, keep_scale }.push(l);
        launch(steps, config, dq_blocks(problem, &config), argument_list(args_problem, &own, None))
    };
    if let BackwardShape::Hopper(shape) = shape {
        let shape = HopperKeysForm { ordered: call.deterministic, ..shape };
        let (common, _) = select.hopper_keys(select.common(problem, half), call.deterministic);
        let (queries, keys) = (problem.shape().q(), problem.shape().k());
        let (rows, key_rows) = (shape.step, shape.keys);
        let args = sm90::backward::KeysArgs {
            q: tensor_map(q, queries, rows),
            k: tensor_map(k, keys, key_rows),
            v: tensor_map(v, keys, key_rows),
            dout: tensor_map(dout, queries, rows),
            dk: tensor_map(dk, keys, sm90::forward::GROUP_ROWS),
            dv: tensor_map(dv, keys, sm90::forward::GROUP_ROWS),
            stats,
            dq_sums,
            dq_counters: call.workspace + space.dq_counters,
            heads_at_once: heads_at_once(problem, &shape, gpu),
        };
        let own = |l: &mut Vec<Arg>| args.push(l);
        let blocks = (keys[0] * keys[2]) as u64 * key_tiles(problem, &shape);
        launch(&mut steps, Config::HopperKeys(common, shape), blocks, list(&own))?;
        convert(&mut steps, hopper_convert_dq(common, shape))?;
        return Ok(steps);
    }
    let own = |l: &mut Vec<Arg>| KeysArgs { q, k, v, dout, dk, dv, stats, dq_sums }.push(l);
    launch(&mut steps, configs.keys, key_blocks(problem, &configs.keys), list(&own))?;
    if converts {
        convert(&mut steps, configs.dq)?;
    } else {
        let own = |l: &mut Vec<Arg>| QueriesArgs { q, k, v, dout, dq, stats }.push(l);
        launch(&mut steps, configs.dq, query_blocks(problem, &configs.dq), list(&own))?;
    }
    Ok(steps)
}

fn aligned(tensors: &[DeviceTensor]) -> bool {
    tensors.iter().all(DeviceTensor::is_aligned)
}

fn argument_list(
    problem: ProblemArgs,
    own: &dyn Fn(&mut Vec<Arg>),
    dropout: Option<DropoutArgs>,
) -> Vec<Arg> {
    let mut list = Vec::new();
    problem.push(&mut list);
    own(&mut list);
    if let Some(dropout) = dropout {
        dropout.push(&mut list);
    }
    list
}

fn launch(steps: &mut Vec<Step>, config: Config, blocks: u64, args: Vec<Arg>) -> Result<(), TooManyBlocks> {
    let grid = i32::try_from(blocks).map_err(|_| TooManyBlocks { blocks })? as u32;
    if grid > 0 {
        steps.push(Step::Launch { config, grid, args });
    }
    Ok(())
}

/// Rows before the tensor in its first tile of 16.
fn row_shift(problem: &Problem) -> u32 {
    problem.keep_rule().map_or(0, |rule| (rule.first_row() % 16) as u32)
}

/// Columns before the tensor in its first tile of 32.
fn column_shift(problem: &Problem) -> u32 {
    problem.keep_rule().map_or(0, |rule| (rule.first_column() % 32) as u32)
}

fn heads(problem: &Problem) -> u64 {
    (problem.shape().batch * problem.shape().num_heads) as u64
}

/// Rows that one of its blocks owns.
fn rows_of(config: &Config) -> u32 {
    config.tiles().expect("its blocks own rows").rows()
}

fn query_blocks(problem: &Problem, config: &Config) -> u64 {
    query_tiles(problem, rows_of(config))
}

/// Tiles of so many rows of all heads.
fn query_tiles(problem: &Problem, rows: u32) -> u64 {
    let shape = problem.shape();
    if shape.seqlen_q == 0 {
        return 0;
    }
    heads(problem) * (shape.seqlen_q as u64 + u64::from(row_shift(problem))).div_ceil(rows.into())
}

fn key_blocks(problem: &Problem, config: &Config) -> u64 {
    let shape = problem.shape();
    if shape.seqlen_k == 0 {
        return 0;
    }
    let tiles = (shape.seqlen_k as u64 + u64::from(column_shift(problem))).div_ceil(rows_of(config).into());
    (shape.batch * shape.num_heads_k) as u64 * tiles
}

/// Query tiles as the kernel of the keys walks over them.
fn dq_blocks(problem: &Problem, config: &Config) -> u64 {
    let Config::ConvertDq(_, step, _) = config else {
        unreachable!("sums are converted by the kernel for that")
    };
    heads(problem) * query_steps(problem, *step)
}

/// Rows of a head's statistics: whole steps of any kernel.
fn stat_rows(problem: &Problem) -> u64 {
    (problem.shape().seqlen_q as u64 + u64::from(row_shift(problem)))
        .next_multiple_of(crate::sm80::delta::STEP.into())
}

fn query_steps(problem: &Problem, step: u32) -> u64 {
    (problem.shape().seqlen_q as u64 + u64::from(row_shift(problem))).div_ceil(step.into())
}

fn problem_args(problem: &Problem) -> ProblemArgs {
    let shape = problem.shape();
    ProblemArgs {
        seqlen_q: shape.seqlen_q as u32,
        seqlen_k: shape.seqlen_k as u32,
        num_heads: shape.num_heads as u32,
        num_heads_k: shape.num_heads_k as u32,
        group: shape.group_size() as u32,
        head_dim: shape.head_dim as u32,
        scale: problem.softmax_scale() as f32,
        scale_log2: problem.scale_log2(),
        row_shift: row_shift(problem),
        column_shift: column_shift(problem),
        stat_rows: stat_rows(problem) as u32,
    }
}

fn dropout_args(problem: &Problem, seed_and_offset_ptr: u64) -> Option<DropoutArgs> {
    let (rule, dropout, shard) = (problem.keep_rule()?, problem.dropout()?, problem.shard());
    let num_heads_total = shard.num_heads_total.unwrap_or(problem.shape().num_heads) as u64;
    let first_stream =
        (shard.first_batch as u64).wrapping_mul(num_heads_total).wrapping_add(shard.first_head as u64);
    Some(DropoutArgs {
        seed: dropout.seed(),
        offset: dropout.offset(),
        seed_and_offset_ptr,
        first_stream,
        num_heads_total,
        first_row16: (rule.first_row() / 16) as u32,
        first_column32: (rule.first_column() / 32) as u32,
        threshold: rule.threshold().into(),
        keep_scale: problem.keep_scale() as f32,
    })
}

/// Tiles of a block's keys.
fn key_tiles(problem: &Problem, shape: &HopperKeysForm) -> u64 {
    (problem.shape().seqlen_k as u64).div_ceil(shape.keys.into())
}

/// How many key heads' blocks alternate in the grid of Hopper's pass over keys.
///
/// More of them: blocks that add in order wait less for each other; under a causal mask, where a head's first blocks have the
/// most to do, the last ones to start are short. Fewer: more of what they read is in the second-level cache. (Measured: 2048
/// keys, causal, head_dim 128, 1, 4, 8, 16, 32 heads at once: 435, 440, 450, 450, 443 TFLOP/s.)
fn heads_at_once(problem: &Problem, shape: &HopperKeysForm, gpu: Gpu) -> u32 {
    let tiles = key_tiles(problem, shape).clamp(1, u32::MAX.into()) as u32;
    // A power of two, of which whole groups are left more often.
    let blocks = |count: u32| 1 << (count / tiles).max(1).ilog2();
    match (shape.ordered, problem.causal()) {
        (false, false) => 1,
        (false, true) => blocks(gpu.sm_count),
        (true, false) => blocks(2 * gpu.sm_count).max(8),
        (true, true) => 32,
    }
}

/// Where things lie in a backward's workspace, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Workspace {
    dq_sums: u64,
    dq_counters: u64,
    bytes: u64,
}

impl Workspace {
    fn plan(problem: &Problem, gpu: Gpu, deterministic: bool) -> Self {
        let stats = 8 * heads(problem) * stat_rows(problem);
        // Alignment of the tensors changes how rows are read, not how work is shared out.
        let select = Select { gpu, aligned: true };
        let configs = select.backward(select.common(problem, Half::Bf16), deterministic);
        let steps = |step| heads(problem) * query_steps(problem, step);
        let sums_of = |head_dim: u32, step| steps(step) * u64::from(4 * step * head_dim);
        let mut sums = match configs.dq {
            Config::ConvertDq(rows, step, _) => sums_of(rows.operands.head_dim, step),
            _ => 0,
        };
        // Hopper's kernel may take the call, and has larger tiles.
        let mut counters = 0;
        if gpu.is_hopper() {
            let (common, shape) = select.hopper_keys(select.common(problem, Half::Bf16), deterministic);
            sums = sums.max(sums_of(common.operands.head_dim, shape.step));
            let per_step = u64::from(sm90::backward::counters_bytes(&shape));
            counters = if deterministic { steps(shape.step) * per_step } else { 0 };
        }
        let dq_counters = stats + sums;
        Workspace { dq_sums: stats, dq_counters, bytes: dq_counters + counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signflash_core::Shape;

    #[test]
    fn as_many_heads_alternate_as_have_blocks_at_once() {
        let at_once = |seqlen, causal, deterministic| {
            let (batch, num_heads, head_dim) = (1, 8, 128);
            let shape = Shape::new(batch, seqlen, seqlen).heads(num_heads, 8).head_dim(head_dim);
            let problem = Problem::builder(shape).causal(causal).build().unwrap();
            let select = Select { gpu: Gpu::HOPPER, aligned: true };
            let (_, steps) = select.hopper_keys(select.common(&problem, Half::Bf16), deterministic);
            heads_at_once(&problem, &steps, Gpu::HOPPER)
        };
        assert_eq!([1, 2048, 8192, 16384].map(|seqlen| at_once(seqlen, true, false)), [128, 8, 2, 1]);
        assert_eq!([1, 2048, 8192].map(|seqlen| at_once(seqlen, false, true)), [256, 16, 8]);
        assert_eq!((at_once(2048, false, false), at_once(2048, true, true)), (1, 32));
    }
}
