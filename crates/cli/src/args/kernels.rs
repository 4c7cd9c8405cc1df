//! `signflash kernels`.

use super::engine::parse_dtype;
use crate::settings::window;
use clap::{Args, ValueEnum};
use signflash_core::{Dtype, Window};

pub(super) const LONG: &str = "\
Show which kernels a GPU gets for a problem, or print one as PTX. No GPU is needed.

A kernel's name says what was chosen, and below the table it is said in words: the format, the padded
head_dim, what becomes of scores, and the form of its blocks; and where Hopper's own kernels do not
compute a problem, why. docs/gpu.md, docs/hopper.md and docs/hopper-backward.md tell more.";

/// Arguments of `kernels`.
#[derive(Args, Debug)]
pub struct KernelsArgs {
    /// Sizes of a head of q and k, and of v unless --head-dim-v says another.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128])]
    pub head_dim: Vec<usize>,
    /// Size of a head of v, if it is not that of q and k.
    #[arg(long)]
    pub head_dim_v: Option<usize>,
    /// f16 or bf16.
    #[arg(long, default_value = "bf16", value_parser = parse_dtype)]
    pub dtype: Dtype,
    /// Whether later keys are hidden.
    #[arg(long)]
    pub causal: bool,
    /// What a query sees of the keys around the one that it faces: -1 is no bound.
    #[arg(
        long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = window::parse,
        default_value = "-1,-1"
    )]
    pub window: Window,
    /// Whether sequences are packed, one behind the other, as a GPU's memory says (cu_seqlens_q, cu_seqlens_k).
    #[arg(long)]
    pub packed: bool,
    /// Probability of dropping, in [0, 1).
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub dropout_p: f32,
    /// The GPU.
    #[arg(long, value_enum, default_value = "hopper")]
    pub gpu: GpuKind,
    /// Print this kernel of the first head_dim as PTX instead of the table.
    #[arg(long, value_enum, value_name = "PASS")]
    pub ptx: Option<KernelPass>,
}

/// GPUs that have tables of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GpuKind {
    /// H100, H200: 227 KiB of shared memory a block.
    Hopper,
    /// A100: 163 KiB.
    Ampere,
    /// Compute capability 8.6, 8.9, 12.0: 99 KiB.
    Small,
}

/// The kernels of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelPass {
    /// Which tiles each block of the others computes, of packed sequences.
    Tiles,
    /// out and lse.
    Forward,
    /// The same, for tensors that the GPU's own kernel does not take.
    PortableForward,
    /// The sign-encoded probabilities.
    Probs,
    /// Statistics of rows.
    Delta,
    /// dk and dv, and sums of dq.
    Keys,
    /// The same of a deterministic backward; without sums of dq where there is a pass over queries for it.
    KeysDeterministic,
    /// dq from its sums.
    ConvertDq,
    /// dk and dv, and sums of dq, for tensors that the GPU's own kernel does not take.
    PortableKeys,
    /// dq from the sums of those.
    PortableConvertDq,
    /// dk and dv alone, of a deterministic backward.
    PortableKeysDeterministic,
    /// dq of a deterministic backward.
    PortableQueries,
}

impl KernelPass {
    /// As `--ptx` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiles => "tiles",
            Self::Forward => "forward",
            Self::PortableForward => "portable-forward",
            Self::Probs => "probs",
            Self::Delta => "delta",
            Self::Keys => "keys",
            Self::KeysDeterministic => "keys-deterministic",
            Self::ConvertDq => "convert-dq",
            Self::PortableKeys => "portable-keys",
            Self::PortableConvertDq => "portable-convert-dq",
            Self::PortableKeysDeterministic => "portable-keys-deterministic",
            Self::PortableQueries => "portable-queries",
        }
    }
}
