//! What commands that compute have in common.

use clap::Args;
use signflash_core::Dtype;

/// Where and how to compute.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Where to compute")]
pub struct EngineArgs {
    /// The device: cpu, cuda or cuda:N; `signflash info` lists those there are.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The same gradients to the bit in every run, on a GPU a tenth to a half slower; the CPU's always are.
    #[arg(long)]
    pub deterministic: bool,
    /// On a GPU the kernels that every one since Ampere runs, even where it has faster ones of its own.
    #[arg(long)]
    pub portable_kernels: bool,
    /// Instruction set [default: the fastest; `signflash info` lists them].
    #[arg(long)]
    pub isa: Option<String>,
    /// Number of threads [default: RAYON_NUM_THREADS, else all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

pub(crate) fn parse_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::Bf16),
        _ => Err("expected f32, f16 or bf16".to_string()),
    }
}
