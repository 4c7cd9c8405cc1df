//! Everything that is chosen while building a kernel. Two equal configurations are the same kernel.
mod depends;
mod forms;
mod names;
mod overlays;

pub(crate) use depends::HeadDims;
pub use depends::{
    Access, BandKind, Common, DeltaRows, DqSums, HopperCommon, Layout, Operands, Product, RowsCommon,
    ScoreKind, Scores, Stored,
};
pub use forms::{HopperForm, HopperKeysForm, PortableForm};
pub use overlays::{Numbers, OverlayKind, Overlays};
use signflash_ptx::Half;
use std::fmt;

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Config {
    /// out and lse.
    Forward(ForwardKernel),
    /// The normalised, sign-encoded probabilities.
    Probs(ForwardKernel),
    /// delta, and lse in base 2.
    Delta(Half, Layout, DeltaRows),
    /// Gradients of sinks.
    Dsinks,
    /// dk and dv, and dq in pieces, by blocks that own keys.
    Keys(KeysKernel),
    /// dq.
    Dq(DqKernel),
    /// dbias, by blocks that own tiles of it and walk over the heads that share it.
    Dbias(DbiasKernel),
    /// The same by Hopper's own kernel, of a bias that the copy engine brings.
    OwnDbias(HopperCommon),
    /// Lists of the tiles of packed sequences, by which the others' blocks find theirs.
    Tiles,
    /// Which keys of each sequence a mask leaves, where it is the same for all queries.
    Padding,
}

/// Who computes a forward, or probs: blocks that own queries and walk over keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardKernel {
    /// On every GPU since Ampere.
    Portable(Common, PortableForm),
    /// On Hopper.
    Hopper(HopperCommon, HopperForm),
}

/// Who computes a backward's pass over keys: blocks that own keys and walk over the queries of all heads of their
/// group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeysKernel {
    /// On every GPU since Ampere.
    Portable(Common, PortableForm, DqSums),
    /// On Hopper.
    Hopper(HopperCommon, HopperKeysForm),
}

/// Who computes dq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DqKernel {
    /// Blocks that own queries and walk over keys again: the same bits in every run.
    Queries(Common, PortableForm),
    /// From the sums of the pass over keys, by blocks that own so many rows: a step of the pass that added them up.
    FromSums(RowsCommon, u32, DqSums),
}

/// Who computes the gradient of a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DbiasKernel {
    /// What it has in common with the others.
    pub common: Common,
    /// Its rows are queries, its steps the keys of a tile.
    pub form: PortableForm,
    /// Whether two numbers are written at once.
    pub pairs: bool,
}

impl ForwardKernel {
    /// Whether it is Hopper's own.
    pub fn is_hopper(&self) -> bool {
        matches!(self, ForwardKernel::Hopper(..))
    }
}

impl KeysKernel {
    /// Whether it is Hopper's own.
    pub fn is_hopper(&self) -> bool {
        matches!(self, KeysKernel::Hopper(..))
    }
}

/// The kernel's name: it says everything that the kernel depends on, and nothing else, so that no kernel is compiled
/// twice. [`words`](Config::words) say the same in words.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Config::Forward(kernel) => write!(f, "sf_fwd{kernel}"),
            Config::Probs(kernel) => write!(f, "sf_probs{kernel}"),
            Config::Delta(half, layout, rows) => write!(f, "sf_delta_{}{layout}{rows}", half.name()),
            Config::Keys(KeysKernel::Portable(common, form, sums)) => {
                write!(f, "sf_bwd_keys_{common}{form}{sums}")
            }
            Config::Keys(KeysKernel::Hopper(common, form)) => write!(f, "sf_bwd90_keys_{common}{form}"),
            Config::Dq(DqKernel::Queries(common, form)) => write!(f, "sf_bwd_queries_{common}{form}"),
            Config::Dq(DqKernel::FromSums(rows, step, sums)) => {
                write!(f, "sf_convert_dq_{rows}_n{step}{sums}")
            }
            Config::Dbias(DbiasKernel { common, form, pairs }) => {
                write!(f, "sf_dbias_{common}{form}{}", if *pairs { "_x2" } else { "" })
            }
            Config::OwnDbias(common) => write!(f, "sf_dbias90_{common}"),
            Config::Dsinks => f.write_str("sf_dsinks"),
            Config::Tiles => f.write_str("sf_tiles"),
            Config::Padding => f.write_str("sf_padding"),
        }
    }
}

/// The end of the kernel's name.
impl fmt::Display for ForwardKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardKernel::Portable(common, form) => write!(f, "_{common}{form}"),
            ForwardKernel::Hopper(common, form) => write!(f, "90_{common}{form}"),
        }
    }
}
