//! The command line: a file for each command, its help beside its arguments.

mod attend;
mod bench;
mod dropout_mask;
mod engine;
mod info;
mod kernels;
mod plot;

pub use attend::{Against, AttendArgs};
pub use bench::{BenchArgs, Pass};
pub use dropout_mask::DropoutMaskArgs;
pub use engine::EngineArgs;
pub(crate) use engine::parse_dtype;
pub use info::InfoArgs;
pub use kernels::{GpuKind, KernelPass, KernelsArgs};
pub use plot::{Bin, PlotArgs, ViewArgs};

use clap::{Parser, Subcommand};

/// The commit that was built.
pub const COMMIT: &str = env!("SIGNFLASH_COMMIT");
/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SIGNFLASH_COMMIT"), ")");

const ABOUT: &str = "\
Exact attention whose dropout mask lives in the sign bit of the probabilities.

A softmax is never negative, so its sign bit is free: signflash lets it say \"dropped\". One
tensor then says how probable an entry is and whether it was dropped, and no dropout mask is
stored: it is a function of (seed, offset, position), FlashAttention-2's bit for bit.";

const EXAMPLES: &str = "\
Examples:
  signflash attend in.safetensors -o out.safetensors --dropout-p 0.1 --seed 42 --probs
  signflash attend reference.safetensors --verify --plot map.png
  signflash plot out.safetensors --head 3 -o head3.png
  signflash dropout-mask --seqlen-q 4096 --seqlen-k 4096 --heads 8 -p 0.1 --seed 42 -o keep.npy
  signflash bench --seqlen 1024,4096 --dropout-p 0,0.1 --pass fwd,bwd

Exit codes:
  0    done
  1    a result is beyond its bounds (attend --verify, bench)
  2    bad usage or a bad file: the message says what was expected
  3    the system refused to read or write
  4    not enough memory, or threads, within the limits of machine, container and ulimit
  5    no GPU, or its driver refused
  101  internal error, please report it
  128 and more, as shells say it: a signal ended it (130: Ctrl-C)

Files are written whole or not at all, before anything is printed: whatever ends a run, an older
file stays, and nothing half written does. A reader that goes away (| head) is no failure.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "signflash", version = VERSION, about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// No progress and no notes; results and errors only.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run attention on the tensors of a file.
    #[command(allow_negative_numbers = true, long_about = attend::LONG, after_long_help = attend::MORE)]
    Attend(Box<AttendArgs>),
    /// Write a dropout mask, and count it.
    #[command(
        visible_alias = "mask",
        allow_negative_numbers = true,
        long_about = dropout_mask::LONG,
        after_long_help = dropout_mask::MORE
    )]
    DropoutMask(DropoutMaskArgs),
    /// Draw the attention map of a head.
    #[command(allow_negative_numbers = true, long_about = plot::LONG, after_long_help = plot::MORE)]
    Plot(PlotArgs),
    /// Measure speed and memory.
    #[command(allow_negative_numbers = true, long_about = bench::LONG, after_long_help = bench::MORE)]
    Bench(Box<BenchArgs>),
    /// Show what this machine offers.
    Info(InfoArgs),
    /// Show which kernels a GPU gets for a problem, or print one as PTX.
    #[command(long_about = kernels::LONG)]
    Kernels(KernelsArgs),
}
