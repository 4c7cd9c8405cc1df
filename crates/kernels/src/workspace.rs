//! A call's memory besides its tensors.
use crate::config::{DqKernel, HopperKeysForm, KeysKernel, ScoreKind};
use crate::geometry::{heads, packed_sequences, query_tiles, stat_rows};
use crate::gpu::Gpu;
use crate::overlays::are_by_query;
use crate::packed::list::LISTS;
use crate::packed::{RECORD_BYTES, most_tiles};
use crate::padding::ranges_bytes;
use crate::sm90::backward::{NEXT_TILE_BYTES, counters_bytes};
use crate::tables::{hopper, portable};
use signflash_core::Problem;

/// Bytes of device memory that a forward needs besides its tensors: none, unless sequences are packed, whose tiles are
/// listed there, or a mask is the same for all queries, of which the keys that it leaves are.
pub fn forward_workspace_bytes(problem: &Problem) -> u64 {
    list_bytes(problem) + ranges_bytes(problem) // what writes probs of packed sequences has matrices instead of lists
}

/// Bytes of a list of packed sequences' tiles, of queries or of keys, whatever the form of the kernel that owns them.
pub(crate) fn list_bytes(problem: &Problem) -> u64 {
    let shape = problem.shape();
    packed_sequences(problem).map_or(0, |sequences| {
        let rows = shape.seqlen_q.max(shape.seqlen_k) as u64;
        u64::from(RECORD_BYTES) * (1 + most_tiles(rows, LEAST_ROWS, sequences))
    })
}

/// Rows of the smallest tile that a block of any kernel can own.
const LEAST_ROWS: u32 = 16;

/// Bytes of device memory that a backward needs besides its tensors: delta and lse of every row, and sums of dq in
/// f32. Without a Hopper GPU a deterministic backward has no such sums.
pub fn backward_workspace_bytes(problem: &Problem, gpu: Gpu, deterministic: bool) -> u64 {
    Workspace::plan(problem, gpu, deterministic).bytes
}

/// Where things lie in it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workspace {
    /// Behind the statistics: lists of packed sequences' tiles.
    pub(crate) lists: u64,
    /// Behind those: which keys a mask leaves.
    pub(crate) ranges: u64,
    /// Behind those: where blocks count that add in order, that take several tiles, or that tell others of sums that they have begun.
    pub(crate) counters: u64,
    /// Behind those.
    pub(crate) dq_sums: u64,
    /// Of all.
    pub(crate) bytes: u64,
}

impl Workspace {
    /// For whichever kernels the table may choose: how the tensors lie is not known yet.
    pub(crate) fn plan(problem: &Problem, gpu: Gpu, deterministic: bool) -> Self {
        let asked = portable::Asked::of(problem, gpu);
        let portable::Asked { dims, dropout, .. } = asked;
        let mut sums = if deterministic { 0 } else { sums_bytes(problem, dims.q, asked.keys().step) };
        let mut counters = 0;
        if gpu.is_hopper() {
            let dims = hopper::keys_dims(dims);
            let (own, walk) =
                ((ScoreKind::of(problem).product, are_by_query(problem), false), hopper::Walk::of(problem));
            let own = hopper::keys(dims, own, (dropout, deterministic), walk);
            sums = sums.max(sums_bytes(problem, dims.q, own.step));
            counters = own_counters_bytes(problem, &own);
        }
        let lists = 8 * heads(problem) * stat_rows(problem);
        let ranges = lists + LISTS as u64 * list_bytes(problem);
        let counters_at = ranges + ranges_bytes(problem);
        let dq_sums = counters_at + counters.next_multiple_of(SUMS_ALIGN);
        Workspace { lists, ranges, counters: counters_at, dq_sums, bytes: dq_sums + sums }
    }

    /// How many bytes these kernels would need beyond it.
    pub(crate) fn missing(&self, problem: &Problem, keys: &KeysKernel, dq: &DqKernel) -> u64 {
        let sums = match dq {
            DqKernel::FromSums(rows, step, _) => sums_bytes(problem, rows.operands.head_dim, *step),
            DqKernel::Queries(..) => 0,
        };
        let counters = match keys {
            KeysKernel::Hopper(_, form) => own_counters_bytes(problem, form),
            KeysKernel::Portable(..) => 0,
        };
        let room = [self.bytes - self.dq_sums, self.dq_sums - self.counters];
        sums.saturating_sub(room[0]) + counters.saturating_sub(room[1])
    }
}

/// Of the counters of Hopper's pass over keys.
fn own_counters_bytes(problem: &Problem, form: &HopperKeysForm) -> u64 {
    match (form.ordered, form.persistent) {
        (true, _) => steps(problem, form.step) * u64::from(counters_bytes(form)),
        (false, true) if form.begins_sums => {
            NEXT_TILE_BYTES + steps(problem, form.step) * u64::from(counters_bytes(form))
        }
        (false, true) => NEXT_TILE_BYTES,
        (false, false) => 0,
    }
}

/// What sums begin at a multiple of, counted from the workspace: they are read and written in lines of so many bytes.
const SUMS_ALIGN: u64 = 128;

/// Steps of the queries of all heads.
fn steps(problem: &Problem, step: u32) -> u64 {
    heads(problem) * query_tiles(problem, step)
}

fn sums_bytes(problem: &Problem, head_dim: u32, step: u32) -> u64 {
    steps(problem, step) * u64::from(4 * step * head_dim)
}
