//! Everything that is chosen while building a kernel. Two equal configurations are the same kernel.
mod depends;
mod forms;

pub use depends::{Access, Common, DeltaRows, DqSums, HopperCommon, Operands, Rows, Scores};
pub use forms::{HopperForm, HopperKeysForm, PortableForm};
use signflash_ptx::Half;
use std::fmt;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Config {
    /// out and lse.
    Forward(Common, PortableForm),
    /// The same on Hopper.
    HopperForward(HopperCommon, HopperForm),
    /// The normalised, sign-encoded probabilities.
    Probs(Common, PortableForm),
    /// The same on Hopper.
    HopperProbs(HopperCommon, HopperForm),
    /// delta, and lse in base 2.
    Delta(Half, DeltaRows),
    /// dk and dv, and dq in pieces, by blocks that own keys.
    Keys(Common, PortableForm, DqSums),
    /// The same on Hopper.
    HopperKeys(HopperCommon, HopperKeysForm),
    /// dq by blocks that own queries: the same bits in every run.
    Queries(Common, PortableForm),
    /// dq from its sums, by blocks that own so many rows: a step of the pass over keys that added them up.
    ConvertDq(Rows, u32, DqSums),
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
    pub fn tiles(&self) -> Option<&PortableForm> {
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
}
