//! Everything that is chosen while building a kernel. Two equal configurations are the same kernel.
use crate::parts::copy::Access;
use signflash_ptx::Half;
use std::fmt;

/// What all kernels of one problem have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Common {
    /// Format of q, k, v and the results.
    pub half: Half,
    /// Columns a head in shared memory: head_dim, rounded up to a multiple of 16.
    pub head_dim: u32,
    /// Whether head_dim is that already, so that no column needs a check.
    pub full_width: bool,
    /// How rows are moved.
    pub access: Access,
    /// Whether a query sees only some keys.
    pub causal: bool,
    /// Whether probabilities are dropped.
    pub dropout: bool,
    /// Whether softmax_scale is negative: scores then change their sign.
    pub negative_scale: bool,
}

/// What moving rows depends on: work that knows neither scores nor dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// As in [`Common`].
    pub half: Half,
    /// As in [`Common`].
    pub head_dim: u32,
    /// As in [`Common`].
    pub full_width: bool,
    /// As in [`Common`].
    pub access: Access,
}

/// How the kernel of statistics reads rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeltaRows {
    /// In pieces of 16 bytes, each by a lane: so many lanes share a row, a power of two.
    Wide {
        /// How many.
        lanes: u32,
    },
    /// Element by element, a row by a warp.
    Narrow {
        /// How many a lane has.
        columns: u32,
    },
}

/// What Hopper's own kernels have in common: as [`Common`], but rows come in boxes of 64 columns, and the copy engine knows
/// how long they are and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct HopperCommon {
    pub half: Half,
    pub head_dim: u32,
    pub causal: bool,
    pub dropout: bool,
    pub negative_scale: bool,
}

/// The shape of a block of threads and of its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Warps a block.
    pub warps: u32,
    /// Tiles of 16 rows that each warp owns.
    pub row_tiles: u32,
    /// Warps that own the same rows: each takes its part of a step's columns where columns are made, and its part of
    /// the columns of what is summed up. 1 but in the pass over keys.
    pub split: u32,
    /// Rows of the other operand a step: keys in kernels whose warps own queries, and the other way round.
    pub step: u32,
    /// Steps that shared memory holds at once.
    pub slots: u32,
    /// Blocks a multiprocessor should hold at once.
    pub blocks_per_sm: u32,
    /// In the pass over keys: whether dq of a step is added a step later, behind a barrier that is there anyway.
    pub late_dq: bool,
    /// Whether the rows that a warp owns stay in registers (all of them, or only in shared memory).
    pub in_registers: bool,
}

impl Tiles {
    /// Rows that a block owns.
    pub fn rows(&self) -> u32 {
        16 * self.row_tiles * self.warps / self.split
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        32 * self.warps
    }
}

/// The shape of a block of Hopper's kernels: warpgroups that multiply 64 rows each, others that draw flags, and one that
/// copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Warpgroups {
    /// Warpgroups that multiply.
    pub groups: u32,
    /// With dropout: warpgroups that draw flags, each those of as many of those that multiply. Else none.
    pub drawers: u32,
    /// Keys a step: a multiple of 16, with dropout of 32.
    pub step: u32,
    /// Steps of keys, and of values, that shared memory holds at once.
    pub stages: u32,
    /// With dropout: steps of flags that shared memory holds at once.
    pub flag_stages: u32,
    /// Registers of a thread that multiplies, a multiple of 8.
    pub registers: u32,
    /// Whether warpgroups start their products in turns.
    pub turns: bool,
    /// Of each step so many pieces of 16 keys go through the softmax while the product with values is under way. They
    /// take registers.
    pub early: u32,
    /// Whether the output leaves by way of the queries' shared memory: less of it, but the next queries wait.
    pub out_in_q: bool,
}

impl Warpgroups {
    /// Rows that a block works on at once.
    pub fn rows(&self) -> u32 {
        64 * self.groups
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        128 * (self.groups + self.drawers + 1)
    }

    /// Registers of a thread that copies, and of one that draws: what those that multiply leave.
    pub fn other_registers(&self) -> [u32; 2] {
        const COPIER: u32 = 32;
        // No thread can have more than 255, and the compiler does not start with more than 248.
        let at_start = (65536 / self.threads() / 8 * 8).min(248);
        let left = at_start * (self.groups + self.drawers + 1) - self.registers * self.groups;
        match self.drawers {
            0 => [left.min(128), 0],
            drawers => [COPIER, ((left - COPIER) / drawers / 8 * 8).min(128)],
        }
    }
}

/// The shape of a block of Hopper's pass over keys: two warpgroups that multiply, and one that serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeySteps {
    /// Keys of a block: 128, 64 for each of the two; or 64 that they share, which is what head_dim above 128 takes.
    pub keys: u32,
    /// Queries a step: 64, or with a head_dim up to 64 also 128.
    pub step: u32,
    /// Steps of queries that shared memory holds at once.
    pub stages: u32,
    /// Steps of ds that it holds at once.
    pub ds_stages: u32,
    /// With dropout: steps of flags that it holds at once.
    pub flag_stages: u32,
    /// Registers of a thread that multiplies, a multiple of 8.
    pub registers: u32,
    /// Whether blocks add to dq in the order of their keys.
    pub ordered: bool,
}

impl KeySteps {
    /// Threads a block.
    pub fn threads(&self) -> u32 {
        3 * 128
    }

    /// Whether the multiplying warpgroups share their keys.
    pub fn shares_keys(&self) -> bool {
        self.keys == 64
    }

    /// Registers of a thread that serves: what those that multiply leave.
    pub fn serving_registers(&self) -> u32 {
        let at_start = 65536 / self.threads() / 8 * 8;
        (3 * at_start - 2 * self.registers).min(at_start)
    }
}

/// Whether a pass over keys adds up dq in global memory, in f32, in no fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DqSums {
    /// It leaves dq to a pass over queries.
    None,
    /// One float at a time.
    Narrow,
    /// Four floats at a time (Hopper).
    Wide,
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Config {
    /// out and lse.
    Forward(Common, Tiles),
    /// The same on Hopper.
    HopperForward(HopperCommon, Warpgroups),
    /// The normalised, sign-encoded probabilities.
    Probs(Common, Tiles),
    /// The same on Hopper.
    HopperProbs(HopperCommon, Warpgroups),
    /// delta, and lse in base 2.
    Delta(Half, DeltaRows),
    /// dk and dv, and dq in pieces, by blocks that own keys.
    Keys(Common, Tiles, DqSums),
    /// The same on Hopper.
    HopperKeys(HopperCommon, KeySteps),
    /// dq by blocks that own queries: the same bits in every run.
    Queries(Common, Tiles),
    /// dq from its sums, by blocks that own so many rows: a step of the pass over keys that added them up.
    ConvertDq(Rows, u32, DqSums),
}

impl Common {
    /// Of these, what moving rows depends on.
    pub fn rows(&self) -> Rows {
        let Common { half, head_dim, full_width, access, .. } = *self;
        Rows { half, head_dim, full_width, access }
    }

    /// Of these, what Hopper's own kernels depend on.
    pub fn hopper(&self) -> HopperCommon {
        let Common { half, head_dim, causal, dropout, negative_scale, .. } = *self;
        HopperCommon { half, head_dim, causal, dropout, negative_scale }
    }
}

impl HopperCommon {
    /// Boxes of 64 columns that a row takes, as the copy engine moves them.
    pub(crate) fn boxes(&self) -> u32 {
        self.head_dim.div_ceil(64)
    }
}

/// Those texts whose flags are set.
fn write_flags<const N: usize>(f: &mut fmt::Formatter<'_>, flags: [(bool, &str); N]) -> fmt::Result {
    flags.into_iter().filter(|(on, _)| *on).try_for_each(|(_, text)| f.write_str(text))
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rows { half, head_dim, full_width, access } = self;
        write!(f, "{}_d{head_dim}", half.name())?;
        // Single elements are checked one by one, whatever the width.
        let narrow = *access == Access::Narrow;
        write_flags(f, [(!full_width && !narrow, "_ragged"), (narrow, "_narrow")])
    }
}

impl fmt::Display for DeltaRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeltaRows::Wide { lanes } => write!(f, "_lanes{lanes}"),
            DeltaRows::Narrow { columns } => write!(f, "_narrow{columns}"),
        }
    }
}

impl fmt::Display for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Common { causal, dropout, negative_scale, .. } = *self;
        write!(f, "{}", self.rows())?;
        write_flags(f, [(causal, "_causal"), (dropout, "_drop"), (negative_scale, "_neg")])
    }
}

impl fmt::Display for HopperCommon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HopperCommon { half, head_dim, causal, dropout, negative_scale } = *self;
        write!(f, "{}_d{head_dim}", half.name())?;
        write_flags(f, [(causal, "_causal"), (dropout, "_drop"), (negative_scale, "_neg")])
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tiles { warps, row_tiles, split, step, slots, blocks_per_sm, late_dq, in_registers } = self;
        write!(f, "_w{warps}r{}n{step}s{slots}b{blocks_per_sm}", 16 * row_tiles)?;
        if *split > 1 {
            write!(f, "c{split}")?;
        }
        f.write_str(if *late_dq { "l" } else { "" })?;
        f.write_str(if *in_registers { "r" } else { "" })
    }
}

impl fmt::Display for Warpgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warpgroups { groups, drawers, step, stages, flag_stages, registers, turns, early, out_in_q } =
            self;
        write!(f, "_g{groups}d{drawers}n{step}s{stages}f{flag_stages}r{registers}")?;
        write!(f, "e{early}{}", if *turns { "t" } else { "" })?;
        f.write_str(if *out_in_q { "o" } else { "" })
    }
}

impl fmt::Display for KeySteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeySteps { keys, step, stages, ds_stages, flag_stages, registers, ordered } = self;
        write!(f, "_k{keys}n{step}s{stages}p{ds_stages}f{flag_stages}r{registers}")?;
        f.write_str(if *ordered { "o" } else { "" })
    }
}

impl fmt::Display for DqSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DqSums::None => "",
            DqSums::Narrow => "_dq",
            DqSums::Wide => "_dq4",
        })
    }
}

/// The kernel's name: it says everything that the kernel depends on, and nothing else, so that no kernel is compiled twice.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Config::Forward(common, tiles) => write!(f, "sf_fwd_{common}{tiles}"),
            Config::HopperForward(common, shape) => write!(f, "sf_fwd90_{common}{shape}"),
            Config::Probs(common, tiles) => write!(f, "sf_probs_{common}{tiles}"),
            Config::HopperProbs(common, shape) => write!(f, "sf_probs90_{common}{shape}"),
            Config::Delta(half, rows) => write!(f, "sf_delta_{}{rows}", half.name()),
            Config::Keys(common, tiles, sums) => write!(f, "sf_bwd_keys_{common}{tiles}{sums}"),
            Config::HopperKeys(common, shape) => write!(f, "sf_bwd90_keys_{common}{shape}"),
            Config::Queries(common, tiles) => write!(f, "sf_bwd_queries_{common}{tiles}"),
            Config::ConvertDq(rows, step, sums) => write!(f, "sf_convert_dq_{rows}_n{step}{sums}"),
        }
    }
}

impl Config {
    /// The shape of its blocks, if it has a choice.
    pub fn tiles(&self) -> Option<&Tiles> {
        match self {
            Config::Delta(..)
            | Config::ConvertDq(..)
            | Config::HopperForward(..)
            | Config::HopperProbs(..)
            | Config::HopperKeys(..) => None,
            Config::Forward(_, tiles)
            | Config::Probs(_, tiles)
            | Config::Keys(_, tiles, _)
            | Config::Queries(_, tiles) => Some(tiles),
        }
    }

    /// Builds the kernel.
    pub fn kernel(&self) -> signflash_ptx::Kernel {
        use crate::{sm80, sm90};
        let name = self.to_string();
        match self {
            Config::Forward(common, tiles) => sm80::forward::kernel(&name, common, tiles),
            Config::HopperForward(common, shape) => sm90::forward::kernel(&name, common, shape),
            Config::Probs(common, tiles) => sm80::probs::kernel(&name, common, tiles),
            Config::HopperProbs(common, shape) => sm90::probs::kernel(&name, common, shape),
            Config::Delta(half, rows) => sm80::delta::kernel(&name, *half, *rows),
            Config::Keys(common, tiles, sums) => sm80::backward_keys::kernel(&name, common, tiles, *sums),
            Config::HopperKeys(common, shape) => sm90::backward::kernel(&name, common, shape),
            Config::Queries(common, tiles) => sm80::backward_queries::kernel(&name, common, tiles),
            Config::ConvertDq(rows, step, sums) => sm80::convert_dq::kernel(&name, rows, *step, *sums),
        }
    }
}
