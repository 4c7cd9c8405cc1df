//! What a correct kernel never does, in words.
use std::fmt;
use std::panic::Location;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A register or memory was read before anything was written to it.
    Uninitialised,
    /// Two warps touch the same memory, one of them writes, and no barrier orders them; or two lanes of one warp do
    /// without `bar.warp.sync`.
    Race,
    /// Data was touched while an asynchronous copy owns it: a wait is missing.
    InFlight,
    /// An address outside every buffer, or past the end of shared memory.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// Shared memory written by ordinary stores was read by the asynchronous proxy without `fence.proxy.async`.
    MissingFence,
    /// Lanes took different ways where the instruction needs all of them together.
    Divergent,
    /// No warp can go on.
    Deadlock,
    /// A barrier was used against its rules: a wrong count, too many arrivals, no initialisation.
    Barrier,
    /// Two blocks touch the same global memory and one writes it with an ordinary store.
    BlockRace,
    /// Copies were still in flight when the warp ended.
    Abandoned,
    /// The launch does not fit the kernel.
    Launch,
}

/// A broken rule, seen while one instruction ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which rule.
    pub rule: Rule,
    /// What happened, with names and Rust lines of the other parties.
    pub what: String,
}

impl Fault {
    pub(crate) fn new(rule: Rule, what: impl Into<String>) -> Fault {
        Fault { rule, what: what.into() }
    }
}

/// Why the interpreter stopped: the fault, where it happened, and how to see it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}, block {block}, {who}, at {at}: {} ({:?}; schedule seed {seed})", fault.what, fault.rule)]
pub struct Trap {
    /// The kernel's name.
    pub kernel: String,
    /// Which block of the grid.
    pub block: u32,
    /// `warp 3`, or `all warps`.
    pub who: String,
    /// The Rust line that made the instruction.
    pub at: String,
    /// What was wrong.
    pub fault: Fault,
    /// The schedule that showed it.
    pub seed: u64,
}

/// A Rust line, short.
pub(crate) struct At(pub(crate) &'static Location<'static>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.file(), self.0.line())
    }
}
