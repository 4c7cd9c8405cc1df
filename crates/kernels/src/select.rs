//! (problem, device) -> configuration: tables, first fitting row wins.
//!
//! Rows say what a block owns and what it walks over. They were chosen by measurement on an H200 for head_dim 64 and
//! 128 (see `benchmarks/gpu.md`); other rows are bounded by registers (255 a thread) and by shared memory, which is why
//! the last row of each head_dim is one that fits the 99 KiB of the smallest GPUs since Ampere.
use crate::config::{Common, Config, DqSums, Tiles};
use crate::parts::copy::Access;
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
}

impl Gpu {
    /// An H100 or H200.
    pub const HOPPER: Gpu = Gpu { compute_capability: (9, 0), smem_per_block_bytes: 232_448 };
    /// An A100.
    pub const AMPERE: Gpu = Gpu { compute_capability: (8, 0), smem_per_block_bytes: 166_912 };
    /// The least that runs these kernels: Ada, and Ampere's consumer GPUs.
    pub const SMALL: Gpu = Gpu { compute_capability: (8, 6), smem_per_block_bytes: 101_376 };
}

/// A row of a table: for padded head_dims up to `head_dim`.
#[derive(Clone, Copy, Debug)]
struct Row {
    head_dim: u32,
    /// Only with dropout, or only without.
    dropout: Option<bool>,
    tiles: Tiles,
}

impl Row {
    const fn when(self, dropout: bool) -> Row {
        Row { dropout: Some(dropout), ..self }
    }

    /// dq of a step is added a step later.
    const fn late_dq(self) -> Row {
        Row { tiles: Tiles { late_dq: true, ..self.tiles }, ..self }
    }

    /// The rows that a warp owns stay in its registers.
    const fn in_registers(self) -> Row {
        Row { tiles: Tiles { in_registers: true, ..self.tiles }, ..self }
    }
}

const fn row(head_dim: u32, [warps, row_tiles, step, slots, blocks_per_sm]: [u32; 5]) -> Row {
    keys_row(head_dim, [warps, row_tiles, 1, step, slots, blocks_per_sm])
}

const fn keys_row(head_dim: u32, [warps, row_tiles, split, step, slots, blocks_per_sm]: [u32; 6]) -> Row {
    let tiles =
        Tiles { warps, row_tiles, split, step, slots, blocks_per_sm, late_dq: false, in_registers: false };
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
    /// Rows of 16 bytes can be read and written at once.
    pub access: Access,
}

impl Select {
    /// What all kernels of a problem share.
    pub fn common(&self, problem: &Problem, half: Half) -> Common {
        let head_dim = problem.shape().head_dim as u32;
        let padded = head_dim.next_multiple_of(if head_dim > SPLIT_HEAD_DIM { 32 } else { 16 });
        let access = if head_dim.is_multiple_of(8) { self.access } else { Access::Narrow };
        Common {
            half,
            head_dim: padded,
            full_width: head_dim == padded,
            access,
            causal: problem.causal(),
            dropout: problem.keep_rule().is_some(),
            negative_scale: problem.softmax_scale() < 0.0,
        }
    }

    fn tiles(&self, table: &[Row], common: Common, smem_bytes: impl Fn(&Tiles) -> u32) -> Tiles {
        let head_dim = common.head_dim;
        let fits = |row: &&Row| {
            row.head_dim >= head_dim
                && row.dropout.is_none_or(|dropout| dropout == common.dropout)
                && head_dim.is_multiple_of(16 * row.tiles.split)
                && smem_bytes(&row.tiles) <= self.gpu.smem_per_block_bytes
        };
        table.iter().find(fits).expect("the last row fits every GPU since Ampere").tiles
    }

    /// The forward's kernel.
    pub fn forward(&self, common: Common) -> Config {
        let smem = |t: &Tiles| 2 * common.head_dim * (t.rows() + 2 * t.slots * t.step);
        Config::Forward(common, self.tiles(FORWARD, common, smem))
    }

    /// The kernel that writes probs.
    pub fn probs(&self, common: Common) -> Config {
        let smem = |t: &Tiles| 2 * common.head_dim * (t.rows() + 2 * t.slots * t.step);
        Config::Probs(common, self.tiles(QUERIES, common, smem))
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
        tiles: Option<Tiles>,
    ) -> BackwardConfigs {
        let width = common.head_dim;
        let own = |t: &Tiles| {
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
        let smem = |t: &Tiles| 4 * width * (t.rows() + t.slots * t.step);
        let dq = match sums {
            DqSums::None => Config::Queries(common, self.tiles(QUERIES, common, smem)),
            _ => Config::ConvertDq(common, tiles, sums),
        };
        BackwardConfigs { delta: Config::Delta(common), keys: Config::Keys(common, tiles, sums), dq }
    }
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
