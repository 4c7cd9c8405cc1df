//! `attend --verify`: our results against the formulas in f64, and against the results that the file holds.
//!
//! The contract bounds the distance of a result from the formulas in f64 on the same rounded inputs;
//! `signflash_core`'s judge knows it, as the test suite does. Two implementations within the contract may be twice as
//! far from each other, because each rounds in its own way. So ours against f64 is judged by the contract's bound,
//! ours against the file's by twice that bound, and the file's against f64 is shown so that a reader sees who is to
//! blame. A short sequence is lost among long ones, so each sequence is also judged by itself, by twice the bound of the
//! whole tensor: few numbers scatter more.

mod report;
mod sign_bits;

use crate::compute::Results;
use crate::errors::Error;
use crate::files::{Archive, FileElement, listing};
use crate::input::Operands;
use crate::progress::Progress;
use crate::settings::Layout;
use rayon::prelude::*;
use report::Report;
use signflash_core::judge::{Backward, Distance, Expected, Truth};
use signflash_core::{Bounds, Piece, Problem, Sequence, TensorName, contiguous_strides};
use std::io::Write;
use std::ops::Range;

/// The tensors that a file may hold to be compared with.
pub const REFERENCES: [&str; 7] = ["out", "lse", "dq", "dk", "dv", "dbias", "dsinks"];
/// What a file may say was dropped.
pub const SIGNBIT: &str = "signbit";

/// Those of them that there are only with a dout.
const GRADIENTS: [&str; 5] = ["dq", "dk", "dv", "dbias", "dsinks"];

/// Whether `--verify=file` finds anything in the file that it can compare with.
///
/// # Errors
/// [`Error::MissingTensor`]: what has been compared with nothing is not right.
pub fn expect_references(archive: &Archive) -> Result<(), Error> {
    let holds = |name: &str| archive.present.iter().any(|there| there == name);
    let usable = |name: &str| holds(name) && (!GRADIENTS.contains(&name) || holds("dout"));
    match REFERENCES.iter().chain([&SIGNBIT]).any(|name| usable(name)) {
        true => Ok(()),
        false => Err(Error::MissingTensor {
            tensor: "a result to compare with (out, lse, signbit or, beside dout, dq, dk, dv, dbias, dsinks)",
            present: listing(&archive.present),
            remedy: "--verify alone compares with the formulas in f64",
        }),
    }
}

/// What is compared.
pub struct Verify<'a, T> {
    /// The problem.
    pub problem: &'a Problem,
    /// How tensors are stored.
    pub layout: Layout,
    /// What attention read.
    pub operands: &'a Operands<T>,
    /// What it gave.
    pub results: &'a Results<T>,
    /// The file's own results.
    pub archive: &'a Archive,
    /// Whether to compare with the formulas in f64.
    pub with_f64: bool,
    /// Whether to show no progress.
    pub quiet: bool,
}

/// What the bound of a tensor is multiplied by for the part of it that is one sequence's.
const ONE_SEQUENCE: f64 = 2.0;

/// The distances of one tensor; what the file does not hold has none.
#[derive(Clone, Copy, Debug)]
struct Distances {
    ours_to_f64: Distance,
    file_to_f64: Option<Distance>,
    ours_to_file: Option<Distance>,
    /// The first sequence that is beyond its own bound, to f64 and to the file.
    apart: [Option<usize>; 2],
}

impl Distances {
    /// The distances of a whole sequence, judged by themselves.
    fn of_sequence(self, index: usize) -> Self {
        let apart = |distance: Distance| {
            let beyond = distance.error() > ONE_SEQUENCE * distance.bound();
            beyond.then_some(index)
        };
        Self { apart: [apart(self.ours_to_f64), self.ours_to_file.and_then(apart)], ..self }
    }

    fn merge(self, other: Self) -> Self {
        let both = |a: Option<Distance>, b: Option<Distance>| Some(a?.merge(b?));
        Self {
            ours_to_f64: self.ours_to_f64.merge(other.ours_to_f64),
            file_to_f64: both(self.file_to_f64, other.file_to_f64),
            ours_to_file: both(self.ours_to_file, other.ours_to_file),
            apart: [0, 1].map(|n| [self.apart[n], other.apart[n]].into_iter().flatten().min()),
        }
    }
}

/// One tensor, ours and the file's, stored alike.
struct Pair<'a> {
    name: &'static str,
    tensor: TensorName,
    /// As (batch, seqlen, heads, head_dim); lse has head_dim 1.
    strides: [usize; 4],
    /// The contract's bound where scores are ordinary.
    bound: f64,
    /// By place in storage.
    ours: Box<dyn Fn(usize) -> f64 + Sync + 'a>,
    len: usize,
    file: Option<Vec<f64>>,
}

impl<T: FileElement> Verify<'_, T> {
    /// Prints the comparison.
    ///
    /// # Errors
    /// [`Error::BeyondBounds`] after the table, if anything is beyond its bound; errors about the file's tensors.
    pub fn run(&self, stdout: &mut dyn Write) -> Result<(), Error> {
        let pairs = self.pairs()?;
        let mut distances: Vec<Distances> = pairs.iter().map(Pair::without_f64).collect();
        // Without what f64 knows of cancelling, a right result may seem far from the file's.
        let far = distances.iter().any(|x| x.ours_to_file.is_some_and(|distance| !distance.is_right()));
        if self.with_f64 || far {
            distances = self.against_f64(&pairs, distances)?;
        }
        let shared = self.shared_pairs()?;
        let shared_distances = self.shared_distances(&shared)?;
        let mut report = Report::default();
        for (pair, distances) in pairs.iter().chain(&shared).zip(distances.iter().chain(&shared_distances)) {
            report.tensor(pair.name, distances, self.with_f64);
        }
        let mut lines = self.sign_bits(&mut report)?;
        lines.extend(self.idle_gradients());
        report.print(&lines, stdout).map_err(Error::Stdout)?;
        report.verdict()
    }

    /// The file's gradients that nothing is compared with.
    fn idle_gradients(&self) -> Option<String> {
        let idle: Vec<_> =
            GRADIENTS.into_iter().filter(|&name| self.archive.tensors.contains_key(name)).collect();
        let computed = self.results.gradients.is_some();
        (!computed && !idle.is_empty())
            .then(|| format!("{}: not compared, the file holds no dout", listing(&idle)))
    }

    /// lse last, in the order of the table.
    fn pairs(&self) -> Result<Vec<Pair<'_>>, Error> {
        let shape = self.problem.shape();
        let mut pairs = vec![self.pair(TensorName::Out, "out", &self.results.out)?];
        if let Some(grads) = &self.results.gradients {
            pairs.push(self.pair(TensorName::Dq, "dq", &grads.dq)?);
            pairs.push(self.pair(TensorName::Dk, "dk", &grads.dk)?);
            pairs.push(self.pair(TensorName::Dv, "dv", &grads.dv)?);
        }
        let lse = &self.results.lse;
        let [batch, head, row, _] = contiguous_strides([shape.batch, shape.num_heads, shape.seqlen_q, 1]);
        pairs.push(Pair {
            name: "lse",
            tensor: TensorName::Lse,
            strides: [batch, row, head, 1],
            bound: Bounds::of(T::DTYPE).lse,
            ours: Box::new(|place| lse[place].into()),
            len: lse.len(),
            file: self.reference("lse", TensorName::Lse)?,
        });
        Ok(pairs)
    }

    /// The gradients that all heads and sequences have a part in: of a bias, of sinks.
    fn shared_pairs(&self) -> Result<Vec<Pair<'_>>, Error> {
        let Some(grads) = &self.results.gradients else { return Ok(Vec::new()) };
        let dbias = grads.dbias.as_ref().map(|dbias| ("dbias", TensorName::Dbias, dbias.to_f64()));
        let dsinks = grads.dsinks.as_ref().map(|dsinks| {
            ("dsinks", TensorName::Dsinks, dsinks.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
        });
        let pair = |(name, tensor, ours): (&'static str, TensorName, Vec<f64>)| {
            Ok(Pair {
                name,
                tensor,
                strides: [0; 4], // their place is that of the truth
                bound: Bounds::of(T::DTYPE).of_tensor(tensor),
                len: ours.len(),
                ours: Box::new(move |place| ours[place]),
                file: self.reference(name, tensor)?,
            })
        };
        dbias.into_iter().chain(dsinks).map(pair).collect()
    }

    /// Their distances. The formulas are those of the whole problem at once: what a head or a sequence adds is no part
    /// of the result.
    fn shared_distances(&self, pairs: &[Pair<'_>]) -> Result<Vec<Distances>, Error> {
        let near: Vec<Distances> = pairs.iter().map(Pair::without_f64).collect();
        let far = near.iter().any(|x| x.ours_to_file.is_some_and(|distance| !distance.is_right()));
        if pairs.is_empty() || !(self.with_f64 || far) {
            return Ok(near);
        }
        let inputs = self.operands.inputs(self.problem, self.layout);
        let backward = self.operands.dout(self.problem, self.layout);
        let backward = backward.map(|dout| Backward { dout, dlse: self.operands.dlse.as_deref() });
        let truth = Truth::of(self.problem, &inputs, backward)?;
        let of_pair = |(pair, near): (&Pair<'_>, &Distances)| {
            let Some(expected) = truth.tensor(pair.tensor) else { return *near };
            let file = pair.file.as_ref();
            Distances {
                ours_to_f64: expected.distance(&pair.ours),
                file_to_f64: file.map(|file| expected.distance(|n| file[n])),
                ours_to_file: file.map(|file| expected.distance_of_two(&pair.ours, |n| file[n])),
                apart: [None; 2],
            }
        };
        Ok(pairs.iter().zip(&near).map(of_pair).collect())
    }

    fn pair<'b>(&'b self, tensor: TensorName, name: &'static str, ours: &'b [T]) -> Result<Pair<'b>, Error> {
        let shape = self.problem.shape().of(tensor);
        let file = self.reference(name, tensor)?;
        let strides = self.layout.view(ours, shape).strides;
        let bound = Bounds::of(T::DTYPE).of_tensor(tensor);
        let len = ours.len();
        Ok(Pair { name, tensor, strides, bound, ours: Box::new(|place| ours[place].to_f64()), len, file })
    }

    fn reference(&self, name: &'static str, like: TensorName) -> Result<Option<Vec<f64>>, Error> {
        let Some(tensor) = self.archive.tensors.get(name) else { return Ok(None) };
        let expected = self.layout.shape_of(self.problem, like);
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                tensor: name,
                got: tensor.shape.clone(),
                expected: format!("{expected:?}"),
                meaning: self.layout.meaning(like),
            });
        }
        Ok(Some(tensor.data.to_f64()))
    }

    /// The distances of all tensors. Groups of heads of a sequence are independent, and so many threads as there are
    /// compute them.
    fn against_f64(&self, pairs: &[Pair<'_>], none: Vec<Distances>) -> Result<Vec<Distances>, Error> {
        let shape = self.problem.shape();
        if pairs.iter().all(|pair| pair.len == 0) {
            return Ok(none); // however many heads there are of nothing
        }
        let sequences: Vec<_> = self.problem.sequences().collect();
        let groups = sequences.len() * shape.num_heads_k;
        let progress = Progress::bar("comparing with f64", groups as u64, self.quiet);
        let sum = |a: Vec<Distances>, b: Vec<Distances>| -> Result<_, Error> {
            Ok(a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect())
        };
        let of_sequence = |(index, sequence): (usize, &Sequence)| {
            let alone = self.problem.alone(sequence)?;
            let whole = (0..shape.num_heads_k).into_par_iter().map(|group| {
                let distances = self.group_against_f64(&alone, sequence, group, pairs);
                progress.advance(1);
                distances
            });
            let whole: Vec<Distances> = whole.try_reduce_with(sum).unwrap_or_else(|| Ok(none.clone()))?;
            Ok(whole.into_iter().map(|distances| distances.of_sequence(index)).collect())
        };
        let whole = sequences.par_iter().enumerate().map(of_sequence).try_reduce_with(sum);
        whole.unwrap_or_else(|| Ok(none.clone()))
    }

    /// Of the query heads that share a key head, in one sequence.
    fn group_against_f64(
        &self,
        alone: &Problem,
        sequence: &Sequence,
        group: usize,
        pairs: &[Pair<'_>],
    ) -> Result<Vec<Distances>, Error> {
        let (whole, size) = (self.problem, self.problem.shape().group_size());
        let piece = Piece { heads: group * size..(group + 1) * size, ..Piece::of(alone) };
        let inputs = piece.inputs(alone, &sequence.inputs(whole, &self.operands.inputs(whole, self.layout)));
        let dlse = self.operands.dlse.as_deref().map(|dlse| self.rows(dlse, sequence, &piece));
        let backward = self.operands.dout(whole, self.layout).map(|dout| {
            let dout = sequence.share(TensorName::Dout, &dout);
            Backward { dout: piece.share(alone, TensorName::Dout, &dout), dlse: dlse.as_deref() }
        });
        let truth = Truth::of(&alone.piece(&piece)?, &inputs, backward)?;
        let of_pair = |pair: &Pair<'_>| {
            let expected = truth.tensor(pair.tensor)?;
            Some(pair.distances(expected, &Place::of(sequence, &piece.place_in(alone, pair.tensor), pair)))
        };
        Ok(pairs.iter().filter_map(of_pair).collect())
    }

    /// The numbers that some heads of a sequence have in a tensor of lse's shape.
    fn rows(&self, numbers: &[f32], sequence: &Sequence, piece: &Piece) -> Vec<f32> {
        let shape = self.problem.shape();
        let places = piece.heads.clone().flat_map(|head| piece.rows.clone().map(move |i| (head, i)));
        places.map(|(head, i)| numbers[sequence.lse(shape, i, head)]).collect()
    }
}

/// The part of a tensor that some heads of a sequence have: where its first number lies, and how many there are of
/// each dimension.
struct Place {
    first: usize,
    seqlen: usize,
    heads: usize,
    dim: usize,
}

impl Place {
    /// `within` is the part of the sequence's tensor.
    fn of(sequence: &Sequence, within: &[Range<usize>; 4], pair: &Pair<'_>) -> Self {
        let [_, rows, heads, last] = within;
        // Of lse heads come before rows.
        let (rows, heads) = if pair.tensor == TensorName::Lse { (heads, rows) } else { (rows, heads) };
        let [batch, row, head, _] = match pair.tensor {
            TensorName::Dk | TensorName::Dv => sequence.key(rows.start, heads.start),
            _ => sequence.query(rows.start, heads.start),
        };
        let [of_batch, of_row, of_head, _] = pair.strides;
        let first = batch * of_batch + row * of_row + head * of_head;
        Self { first, seqlen: rows.len(), heads: heads.len(), dim: last.len() }
    }
}

impl Pair<'_> {
    /// As far as can be said without knowing the right values.
    fn without_f64(&self) -> Distances {
        let between = |file: &Vec<f64>| {
            let pairs = (0..self.len).map(|place| ((self.ours)(place), file[place]));
            Distance::between(pairs, self.bound).of_two_results()
        };
        let ours_to_file = self.file.as_ref().map(between);
        let unknown = Distance::between([], self.bound);
        let file_to_f64 = self.file.as_ref().map(|_| unknown);
        Distances { ours_to_f64: unknown, file_to_f64, ours_to_file, apart: [None; 2] }
    }

    fn distances(&self, expected: &Expected, place: &Place) -> Distances {
        let ours = |n| (self.ours)(self.place(place, n));
        Distances {
            ours_to_f64: expected.distance(ours),
            file_to_f64: self.file.as_ref().map(|file| expected.distance(|n| file[self.place(place, n)])),
            ours_to_file: self
                .file
                .as_ref()
                .map(|file| expected.distance_of_two(ours, |n| file[self.place(place, n)])),
            apart: [None; 2],
        }
    }

    /// Where the n-th number of the truth of a part lies in the whole's storage.
    fn place(&self, place: &Place, n: usize) -> usize {
        let Place { first, seqlen, heads, dim } = *place;
        let (row, head, d) = match self.tensor {
            TensorName::Lse => (n % seqlen, n / seqlen, 0),
            _ => (n / dim / heads, n / dim % heads, n % dim),
        };
        let [_, of_row, of_head, _] = self.strides;
        first + row * of_row + head * of_head + d
    }
}
