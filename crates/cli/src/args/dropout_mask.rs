//! `signflash dropout-mask`.

use clap::Args;
use std::path::PathBuf;

pub(super) const LONG: &str = "\
Write a dropout mask, and count it.

It is a function of (seed, offset, batch, head, row, column) alone, FlashAttention-2's bit
for bit. It is computed block by block, so any size fits in memory. Statistics go to stdout: the
kept fraction, its exact expectation (threshold + 1) / 256 with threshold = floor(255 * (1 - p)),
and how many standard deviations lie between (z).";

pub(super) const MORE: &str = "\
Files:
  .npy   bool (batch, heads, seqlen_q, seqlen_k), True = kept
  .bits  the same entries in the same order, a bit each, 1 = kept, least significant bit first,
         without gaps: numpy.unpackbits(numpy.fromfile(FILE, 'u1'), bitorder='little')

Packed sequences draw the mask of a batch, by their number and their own rows and columns: that of
sequence 5 is --first-batch 5, with its lengths.

Examples:
  signflash dropout-mask --heads 3 --seqlen-q 256 --seqlen-k 256 -p 0.1 --seed 123 -o keep.npy
  signflash dropout-mask --heads 3 --first-batch 5 --seqlen-q 64 --seqlen-k 64 -p 0.1 --seed 123";

/// Arguments of `dropout-mask`.
#[derive(Args, Debug)]
pub struct DropoutMaskArgs {
    /// Number of sequences.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// The number of the first sequence: packed sequence N draws what batch N draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first_batch: usize,
    /// Number of query heads.
    #[arg(long, default_value_t = 1)]
    pub heads: usize,
    /// Number of rows.
    #[arg(long)]
    pub seqlen_q: usize,
    /// Number of columns.
    #[arg(long)]
    pub seqlen_k: usize,
    /// Probability of dropping, in [0, 1).
    #[arg(long, short = 'p', value_name = "P")]
    pub dropout_p: f32,
    /// Random seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Random offset.
    #[arg(long, default_value_t = 0)]
    pub offset: u64,
    /// Where to write it [.npy, .bits]; without it, only the statistics are printed.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Number of threads [default: RAYON_NUM_THREADS, else all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}
