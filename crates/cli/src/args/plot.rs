//! `signflash plot`, and what pictures of other commands show.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

pub(super) const LONG: &str = "\
Draw the attention map of a head.

FILE is what `attend --probs` wrote. Rows are queries, columns are keys. Brightness is the
probability, on the logarithmic scale that the legend shows: it ends at the largest, and what is
darkest holds one part in a thousand of all probability, or less. Dropped entries have another
hue, NaN has a color of its own. If the map has more entries than the picture has room for, each
square covers a block of them, and the title says how many. Then --bin mean shows how much
probability lies in the block and how much of that was dropped, --bin max the largest entry and
whether it was dropped; a NaN is shown in either case. Cells of maps longer than 3 to 1 are
rectangles. Nothing is cut off unless --queries or --keys say so.

Packed sequences are one map of all their queries and keys, each sequence a block of it; --queries
and --keys count from the first.";

pub(super) const MORE: &str = "\
Examples:
  signflash attend in.safetensors --probs -o out.safetensors
  signflash plot out.safetensors --head 1 -o head1.png
  signflash plot out.safetensors --queries 0..64 --keys 0..64 -o corner.png
`attend --plot` draws without storing the probabilities.";

/// Arguments of `plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// The file that holds probs [.safetensors, .npz].
    pub file: PathBuf,
    /// The picture [.png].
    #[arg(long, short, value_name = "PICTURE")]
    pub output: PathBuf,
    /// What to draw.
    #[command(flatten)]
    pub view: ViewArgs,
}

/// Which head to draw and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What to draw")]
pub struct ViewArgs {
    /// Query head.
    #[arg(long, default_value_t = 0)]
    pub head: usize,
    /// Batch.
    #[arg(long, default_value_t = 0)]
    pub batch: usize,
    /// Only queries FROM..TO.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    pub queries: Option<(usize, usize)>,
    /// Only keys FROM..TO.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    pub keys: Option<(usize, usize)>,
    /// What a square shows if it covers several entries.
    #[arg(long, value_enum, default_value = "mean")]
    pub bin: Bin,
}

/// What a square shows of the magnitudes that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bin {
    /// Their mean over the visible entries.
    Mean,
    /// The largest.
    Max,
}

fn parse_range(text: &str) -> Result<(usize, usize), String> {
    let bad = || "expected FROM..TO with FROM < TO, for example 0..128".to_string();
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let (from, to) = (from.trim().parse().map_err(|_| bad())?, to.trim().parse().map_err(|_| bad())?);
    if from < to { Ok((from, to)) } else { Err(bad()) }
}
