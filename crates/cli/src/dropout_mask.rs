//! `signflash dropout-mask`.

use crate::args::DropoutMaskArgs;
use crate::errors::Error;
use crate::files::{extension, npy, wrong_extension};
use crate::output::Pending;
use crate::progress::Progress;
use crate::{machine, memory};
use rayon::prelude::*;
use signflash_core::dropout::{BLOCK_COLUMNS, BLOCK_ROWS};
use signflash_core::{Dropout, KeepRule, Problem, Shape, Shard};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Bands of 16 rows that are computed at a time, at most: what bounds memory.
const BANDS: usize = 256;
/// Entries that are computed at a time, unless one band has more.
const ENTRIES: usize = 1 << 24;

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Npy,
    Bits,
}

/// Writes and counts a dropout mask.
///
/// # Errors
/// [`Error::Problem`], [`Error::Extension`], [`Error::Io`], [`Error::Stdout`].
pub fn run(args: &DropoutMaskArgs, quiet: bool, stdout: &mut dyn Write) -> Result<(), Error> {
    let dropout = Dropout::new(args.dropout_p, args.seed, args.offset)?;
    let shape =
        Shape::new(args.batch, args.seqlen_q, args.seqlen_k).heads(args.heads, args.heads).head_dim(1);
    let shard = Shard { first_batch: args.first_batch, ..Shard::default() };
    let problem = Problem::builder(shape).dropout(dropout).shard(shard).build()?;
    machine::set_threads(args.threads)?;
    let total = count(&shape)?;
    if total > 0 {
        let band = (BLOCK_ROWS * shape.seqlen_k) as u64;
        memory::check("a band of 16 rows (--seqlen-k)", 2 * band, "choose a smaller --seqlen-k")?;
    }
    let kept = match args.output.as_deref() {
        None => walk(&problem, Format::Bits, &mut io::sink(), quiet).map_err(Error::Stdout)?,
        Some(path) => {
            let format = format_of(path)?;
            let mut pending = Pending::create(path)?;
            let mut kept = 0;
            pending.write(|file| {
                let mut sink = BufWriter::with_capacity(1 << 20, file);
                if format == Format::Npy {
                    npy::write_header(&mut sink, "|b1", &shape.probs())?;
                }
                kept = walk(&problem, format, &mut sink, quiet)?;
                sink.flush()
            })?;
            pending.commit()?;
            kept
        }
    };
    statistics(&dropout, kept, total, stdout).map_err(Error::Stdout)
}

fn format_of(path: &Path) -> Result<Format, Error> {
    match extension(path).as_str() {
        "npy" => Ok(Format::Npy),
        "bits" => Ok(Format::Bits),
        _ => Err(wrong_extension("--output", path, ".npy or .bits")),
    }
}

fn count(shape: &Shape) -> Result<u64, Error> {
    let sizes = shape.probs();
    sizes.into_iter().try_fold(1u64, |n, size| n.checked_mul(size as u64)).ok_or_else(|| Error::Argument {
        argument: "--batch * --heads * --seqlen-q * --seqlen-k",
        expected: "less than 2^64".into(),
        got: format!("{sizes:?}"),
    })
}

/// Writes all entries, if there are any, in order, a chunk of bands at a time; returns how many are kept.
fn walk(problem: &Problem, format: Format, sink: &mut impl Write, quiet: bool) -> io::Result<u64> {
    let shape = problem.shape();
    let rule = problem.keep_rule();
    let bands = shape.seqlen_q.div_ceil(BLOCK_ROWS);
    let chunk = (ENTRIES / (BLOCK_ROWS * shape.seqlen_k.max(1))).clamp(1, BANDS);
    // A dropout mask without entries may have heads beyond counting.
    let batches = if shape.probs().contains(&0) { 0 } else { shape.batch };
    let progress = Progress::bar("dropout mask", (batches * shape.num_heads * bands) as u64, quiet);
    let (mut kept, mut packer) = (0, Packer::default());
    for batch in 0..batches {
        for head in 0..shape.num_heads {
            for first in (0..bands).step_by(chunk) {
                let last = bands.min(first + chunk);
                let rows: Vec<Vec<u8>> = (first..last)
                    .into_par_iter()
                    .map(|i| band(problem, rule.as_ref(), (batch, head), i))
                    .collect();
                for entries in rows {
                    kept += entries.iter().map(|&keep| u64::from(keep)).sum::<u64>();
                    match format {
                        Format::Npy => sink.write_all(&entries)?,
                        Format::Bits => packer.write(&entries, sink)?,
                    }
                }
                progress.advance((last - first) as u64);
            }
        }
    }
    packer.finish(sink)?;
    Ok(kept)
}

/// 16 rows (fewer at the end) as bytes of 0 and 1.
fn band(problem: &Problem, rule: Option<&KeepRule>, (batch, head): (usize, usize), band: usize) -> Vec<u8> {
    let shape = problem.shape();
    let rows = BLOCK_ROWS.min(shape.seqlen_q - band * BLOCK_ROWS);
    let columns = shape.seqlen_k;
    let mut entries = vec![1; rows * columns];
    let Some(rule) = rule else { return entries };
    for block in 0..columns.div_ceil(BLOCK_COLUMNS) {
        let first = block * BLOCK_COLUMNS;
        let bits = rule.block(batch, head, band, block);
        for (column, bits) in (first..columns).zip(bits) {
            for row in 0..rows {
                entries[row * columns + column] = (bits >> row & 1) as u8;
            }
        }
    }
    entries
}

/// Packs entries into bits, least significant first, across calls.
#[derive(Default)]
struct Packer {
    byte: u8,
    used: u32,
}

impl Packer {
    fn write(&mut self, entries: &[u8], sink: &mut impl Write) -> io::Result<()> {
        let mut packed = Vec::with_capacity(entries.len() / 8 + 1);
        for &keep in entries {
            self.byte |= keep << self.used;
            self.used += 1;
            if self.used == 8 {
                packed.push(self.byte);
                *self = Self::default();
            }
        }
        sink.write_all(&packed)
    }

    fn finish(self, sink: &mut impl Write) -> io::Result<()> {
        if self.used > 0 { sink.write_all(&[self.byte]) } else { Ok(()) }
    }
}

fn statistics(dropout: &Dropout, kept: u64, total: u64, stdout: &mut dyn Write) -> io::Result<()> {
    let expected = dropout.keep_probability();
    let fraction = if total == 0 { f64::NAN } else { kept as f64 / total as f64 };
    writeln!(stdout, "entries    {total}")?;
    writeln!(stdout, "kept       {kept}")?;
    writeln!(stdout, "fraction   {fraction:.6}")?;
    let threshold = dropout.threshold();
    if dropout.is_active() {
        writeln!(
            stdout,
            "expected   {expected:.6} = {} / 256, for dropout_p {}",
            u32::from(threshold) + 1,
            dropout.p()
        )?;
    } else {
        writeln!(stdout, "expected   1, for dropout_p 0")?;
    }
    let deviation = (total as f64 * expected * (1.0 - expected)).sqrt();
    if deviation > 0.0 {
        writeln!(stdout, "z          {:+.2}", (kept as f64 - total as f64 * expected) / deviation)?;
    }
    Ok(())
}
