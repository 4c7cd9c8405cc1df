//! `signflash plot` and `attend --plot`: the attention map of a head as a picture.

mod axis;
mod color;
mod grid;
mod layout;
mod legend;
mod picture;
mod scale;

use crate::args::{PlotArgs, ViewArgs};
use crate::errors::Error;
use crate::files::{self, Archive, Data, FileElement, Format, extension, wrong_extension};
use crate::input;
use crate::output::{self, Pending};
use crate::packed::{self, CU_SEQLENS};
use crate::progress::Progress;
use crate::sequences;
use crate::settings::{Overrides, Settings};
use grid::Grid;
use signflash_core::{Dtype, Problem, Shape, TensorRef, bf16, f16};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Entries that are held at a time, unless one row has more.
const BAND_ENTRIES: usize = 1 << 22;

/// What is drawn, for the title.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The file's name.
    pub name: String,
    /// The problem whose probabilities these are.
    pub problem: &'a Problem,
    /// The part and the way.
    pub view: &'a ViewArgs,
    /// The element type.
    pub dtype: Dtype,
}

impl<'a> Subject<'a> {
    /// The map of a head of `path`.
    pub fn of_file(path: &Path, problem: &'a Problem, view: &'a ViewArgs, dtype: Dtype) -> Self {
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { name, problem, view, dtype }
    }

    /// The queries that are drawn.
    pub fn queries(&self) -> Range<usize> {
        self.view.queries.map_or(0..self.problem.shape().seqlen_q, |(from, to)| from..to)
    }

    /// The keys that are drawn.
    pub fn keys(&self) -> Range<usize> {
        self.view.keys.map_or(0..self.problem.shape().seqlen_k, |(from, to)| from..to)
    }
}

/// Starts a picture.
///
/// # Errors
/// [`Error::Extension`], [`Error::Io`].
pub fn create(argument: &'static str, path: &Path) -> Result<Pending, Error> {
    if extension(path) != "png" {
        return Err(wrong_extension(argument, path, ".png"));
    }
    Pending::create(path)
}

/// Whether the head and the ranges lie within the problem, if anything is to be drawn.
///
/// # Errors
/// [`Error::Argument`].
pub fn check_view(view: &ViewArgs, problem: &Problem, drawn: bool) -> Result<(), Error> {
    let shape = problem.shape();
    let below = |argument, got: usize, size: usize| match got < size {
        true => Ok(()),
        false => Err(Error::Argument { argument, expected: format!("below {size}"), got: got.to_string() }),
    };
    let inside = |argument, range: Option<(usize, usize)>, size: usize| match range {
        Some((from, to)) if to > size => Err(Error::Argument {
            argument,
            expected: format!("within 0..{size}"),
            got: format!("{from}..{to}"),
        }),
        _ => Ok(()),
    };
    if !drawn {
        return Ok(());
    }
    if shape.probs().contains(&0) {
        let [batch, heads, queries, keys] = shape.probs();
        let got = format!("batch {batch}, {heads} heads, {queries} queries and {keys} keys");
        return Err(Error::Argument {
            argument: "the map to draw",
            expected: "of at least one entry".into(),
            got,
        });
    }
    below("--head", view.head, shape.num_heads)?;
    below("--batch", view.batch, shape.batch)?;
    inside("--queries", view.queries, shape.seqlen_q)?;
    inside("--keys", view.keys, shape.seqlen_k)
}

/// Draws the map; `fetch` gives rows of it, (rows, seqlen_k), some at a time. Packed sequences are a map of all their
/// queries and keys, where each is a block of its own.
///
/// # Errors
/// Those of `fetch`; [`Error::Draw`], [`Error::Io`].
pub fn attention<T: FileElement>(
    pending: &mut Pending,
    subject: &Subject<'_>,
    mut fetch: impl FnMut(Range<usize>) -> Result<Vec<T>, Error>,
    quiet: bool,
) -> Result<(), Error> {
    let (queries, keys) = (subject.queries(), subject.keys());
    let (problem, seqlen_k) = (subject.problem, subject.problem.shape().seqlen_k);
    let mut grid = Grid::new(queries.clone(), keys);
    let band = (BAND_ENTRIES / seqlen_k).max(1);
    let progress = Progress::bar("drawing", queries.len() as u64, quiet);
    for first in queries.clone().step_by(band) {
        let rows = first..queries.end.min(first + band);
        let entries = fetch(rows.clone())?;
        for (sequence, own) in sequences::among(problem, subject.view.batch, rows.clone()) {
            for query in own {
                let row = sequence.first_q + query;
                let entries = &entries[(row - rows.start) * seqlen_k..][..seqlen_k];
                grid.add_row(row, entries, sequences::columns(problem, &sequence, query));
            }
        }
        progress.advance(rows.len() as u64);
    }
    drop(progress);
    let png = picture::draw(subject, &grid)
        .map_err(|why| Error::Draw { path: pending.path().to_path_buf(), why: why.to_string() })?;
    pending.write(|file| file.write_all(&png))
}

/// Draws the map of a head of a file that `attend --probs` wrote.
///
/// # Errors
/// Any [`Error`].
pub fn run(args: &PlotArgs, quiet: bool, stdout: &mut dyn Write) -> Result<(), Error> {
    let mut pending = create("--output", &args.output)?;
    output::expect_distinct(&args.file, &[("--output", Some(&pending))])?;
    let archive = files::read(&args.file, &["probs", CU_SEQLENS[0], CU_SEQLENS[1]])?;
    let format = Format::of("FILE", &args.file)?;
    let settings = Settings::of_file(&Overrides::default(), &archive, format)?;
    let tensor =
        input::tensor(&archive, "probs", "write it with attend --probs, or draw at once with attend --plot")?;
    let shape: [usize; 4] = tensor.shape.as_slice().try_into().map_err(|_| Error::TensorShape {
        tensor: "probs",
        got: tensor.shape.clone(),
        expected: "four dimensions".into(),
        meaning: "(batch, heads, seqlen_q, seqlen_k)",
    })?;
    let problem = problem_of(&settings, &archive, shape)?;
    check_view(&args.view, &problem, true)?;
    match &tensor.data {
        Data::F32(probs) => from_probs(&mut pending, args, &problem, probs, quiet),
        Data::F16(probs) => from_probs::<f16>(&mut pending, args, &problem, probs, quiet),
        Data::Bf16(probs) => from_probs::<bf16>(&mut pending, args, &problem, probs, quiet),
        other => {
            let (tensor, got) = ("probs", other.name());
            Err(Error::TensorDtype { tensor, got, expected: "f32, f16 or bf16".into() })
        }
    }?;
    pending.commit()?;
    if quiet {
        return Ok(());
    }
    let (head, batch) = (args.view.head, args.view.batch);
    writeln!(stdout, "drew head {head} of batch {batch}: {}", crate::text::path(&args.output))
        .map_err(Error::Stdout)
}

/// Enough of the problem for visibility and title; probs know nothing of head_dim and key heads.
fn problem_of(settings: &Settings, archive: &Archive, probs: [usize; 4]) -> Result<Problem, Error> {
    let [batch, num_heads, seqlen_q, seqlen_k] = probs;
    let problem = |shape: Shape| settings.builder(shape.heads(num_heads, num_heads).head_dim(1));
    let Some([q, k]) = packed::cu_seqlens(archive)? else {
        return Ok(problem(Shape::new(batch, seqlen_q, seqlen_k))?.build()?);
    };
    let [all_q, all_k] = [&q, &k].map(|numbers| numbers.last().map_or(0, |&end| end as usize));
    let problem = problem(Shape::new(1, all_q, all_k))?.packed(&q, &k).build()?;
    if problem.probs() != probs {
        return Err(Error::TensorShape {
            tensor: "probs",
            got: probs.to_vec(),
            expected: format!("{:?} (by cu_seqlens_q and cu_seqlens_k)", problem.probs()),
            meaning: "(sequences, heads, seqlen_q, seqlen_k), of the longest sequences",
        });
    }
    Ok(problem)
}

fn from_probs<T: FileElement>(
    pending: &mut Pending,
    args: &PlotArgs,
    problem: &Problem,
    probs: &[T],
    quiet: bool,
) -> Result<(), Error> {
    let (batch, head, seqlen_k) = (args.view.batch, args.view.head, problem.shape().seqlen_k);
    let probs = TensorRef::bshd(probs, problem.probs());
    let subject = Subject::of_file(&args.file, problem, &args.view, T::DTYPE);
    let fetch = |rows: Range<usize>| {
        let mut entries = vec![T::default(); rows.len() * seqlen_k];
        for (sequence, own) in sequences::among(problem, batch, rows.clone()) {
            for query in own.filter(|_| sequence.seqlen_k > 0) {
                let [a, b, c, _] = sequence.probs(query, head);
                let first = (sequence.first_q + query - rows.start) * seqlen_k + sequence.first_k;
                let stored = &probs.data[probs.row_offset(a, b, c)..][..sequence.seqlen_k];
                entries[first..first + sequence.seqlen_k].copy_from_slice(stored);
            }
        }
        Ok(entries)
    };
    attention(pending, &subject, fetch, quiet)
}
