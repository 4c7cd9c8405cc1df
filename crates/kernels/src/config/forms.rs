//! Forms of a block: how many threads, who of them does what, what shared memory holds. The tables choose them.
use std::fmt;

/// The form of a block of a portable kernel: its threads, and its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortableForm {
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

impl PortableForm {
    /// Rows that a block owns.
    pub fn rows(&self) -> u32 {
        16 * self.row_tiles * self.warps / self.split
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        32 * self.warps
    }
}

/// The form of a block of Hopper's forward and of its pass that writes probs: warpgroups that multiply 64 rows each,
/// others that draw flags, and one that copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopperForm {
    /// Warpgroups that multiply.
    pub warpgroups: u32,
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

impl HopperForm {
    /// Rows that a block works on at once.
    pub fn rows(&self) -> u32 {
        64 * self.warpgroups
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        128 * (self.warpgroups + self.drawers + 1)
    }

    /// Registers of a thread that copies, and of one that draws: what those that multiply leave.
    pub fn other_registers(&self) -> [u32; 2] {
        const COPIER: u32 = 32;
        // No thread can have more than 255, and the compiler does not start with more than 248.
        let at_start = (65536 / self.threads() / 8 * 8).min(248);
        let left = at_start * (self.warpgroups + self.drawers + 1) - self.registers * self.warpgroups;
        match self.drawers {
            0 => [left.min(128), 0],
            drawers => [COPIER, ((left - COPIER) / drawers / 8 * 8).min(128)],
        }
    }
}

/// The form of a block of Hopper's pass over keys: two warpgroups that multiply, and one that serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopperKeysForm {
    /// Keys of a block: 128, 64 for each of the two; or 64 that they share, which is what head_dim above 128 takes.
    pub keys: u32,
    /// Tiles of keys, and of values, that shared memory holds at once: more than one only where a block takes several.
    pub key_stages: [u32; 2],
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
    /// Whether there are as many blocks as multiprocessors, which take tile after tile.
    pub persistent: bool,
    /// Whether the first block that comes to some queries stores their dq, to which others add then: in a window, where
    /// it is known who that is. Else all add, to zeros.
    pub begins_sums: bool,
}

impl HopperKeysForm {
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

impl fmt::Display for PortableForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortableForm { warps, row_tiles, split, step, slots, blocks_per_sm, late_dq, in_registers } =
            self;
        write!(f, "_w{warps}r{}n{step}s{slots}b{blocks_per_sm}", 16 * row_tiles)?;
        if *split > 1 {
            write!(f, "c{split}")?;
        }
        f.write_str(if *late_dq { "l" } else { "" })?;
        f.write_str(if *in_registers { "r" } else { "" })
    }
}

impl fmt::Display for HopperForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HopperForm { warpgroups, drawers, step, stages, flag_stages, registers, turns, early, out_in_q } =
            self;
        write!(f, "_g{warpgroups}d{drawers}n{step}s{stages}f{flag_stages}r{registers}")?;
        write!(f, "e{early}{}", if *turns { "t" } else { "" })?;
        f.write_str(if *out_in_q { "o" } else { "" })
    }
}

impl fmt::Display for HopperKeysForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HopperKeysForm { keys, key_stages, step, stages, ds_stages, flag_stages, registers, .. } = self;
        write!(f, "_k{keys}")?;
        if *key_stages != [1; 2] {
            write!(f, "x{}{}", key_stages[0], key_stages[1])?;
        }
        write!(f, "n{step}s{stages}p{ds_stages}f{flag_stages}r{registers}")?;
        let flags = [(self.ordered, "o"), (self.persistent, "t"), (self.begins_sums, "b")];
        flags.into_iter().filter(|(on, _)| *on).try_for_each(|(_, letter)| f.write_str(letter))
    }
}
