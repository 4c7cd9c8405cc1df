//! `signflash info`.

use clap::Args;

/// Arguments of `info`.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// A GPU, cuda or cuda:N: also which kernels its forwards and backwards get, and why.
    #[arg(long)]
    pub device: Option<String>,
}
