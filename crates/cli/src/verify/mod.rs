//! `attend --verify`: our results against the formulas in f64, and against the results that the file holds.
//!
//! The contract bounds the distance of a result from the formulas in f64 on the same rounded inputs;
//! `signflash_core`'s judge knows it, as the test suite does. Two implementations within the contract may be twice as
//! far from each other, because each rounds in its own way. So ours against f64 is judged by the contract's bound,
//! ours against the file's by twice that bound, and the file's against f64 is shown so that a reader sees who is to
//! blame.

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
use signflash_core::{Bounds, Piece, Problem, TensorName, contiguous_strides};
use std::io::Write;

/// The tensors that a file may hold to be compared with.
pub const REFERENCES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];
/// What a file may say was dropped.
pub const SIGNBIT: &str = "signbit";

/// Those of them that there are only with a dout.
const GRADIENTS: [&str; 3] = ["dq", "dk", "dv"];

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
            tensor: "a result to compare with (out, lse, signbit or, beside dout, dq, dk, dv)",
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

/// The distances of one tensor; what the file does not hold has none.
#[derive(Clone, Copy, Debug)]
struct Distances {
    ours_to_f64: Distance,
    file_to_f64: Option<Distance>,
    ours_to_file: Option<Distance>,
}

impl Distances {
    fn merge(self, other: Self) -> Self {
        let both = |a: Option<Distance>, b: Option<Distance>| Some(a?.merge(b?));
        Self {
            ours_to_f64: self.ours_to_f64.merge(other.ours_to_f64),
            file_to_f64: both(self.file_to_f64, other.file_to_f64),
            ours_to_file: both(self.ours_to_file, other.ours_to_file),
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
        let mut report = Report::default();
        for (pair, distances) in pairs.iter().zip(&distances) {
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
        // (batch, heads, seqlen_q) in either layout.
        let expected = [shape.batch, shape.num_heads, shape.seqlen_q];
        let lse = &self.results.lse;
        let [batch, head, row, _] = contiguous_strides([shape.batch, shape.num_heads, shape.seqlen_q, 1]);
        pairs.push(Pair {
            name: "lse",
            tensor: TensorName::Lse,
            strides: [batch, row, head, 1],
            bound: Bounds::of(T::DTYPE).lse,
            ours: Box::new(|place| lse[place].into()),
            len: lse.len(),
            file: self.reference("lse", &expected, "(batch, heads, seqlen_q)")?,
        });
        Ok(pairs)
    }

    fn pair<'b>(&'b self, tensor: TensorName, name: &'static str, ours: &'b [T]) -> Result<Pair<'b>, Error> {
        let shape = self.problem.shape().of(tensor);
        let file = self.reference(name, &self.layout.reorder(shape), "as in our result")?;
        let strides = self.layout.view(ours, shape).strides;
        let bound = Bounds::of(T::DTYPE).of_tensor(tensor);
        let len = ours.len();
        Ok(Pair { name, tensor, strides, bound, ours: Box::new(|place| ours[place].to_f64()), len, file })
    }

    fn reference(
        &self,
        name: &'static str,
        expected: &[usize],
        meaning: &'static str,
    ) -> Result<Option<Vec<f64>>, Error> {
        let Some(tensor) = self.archive.tensors.get(name) else { return Ok(None) };
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                tensor: name,
                got: tensor.shape.clone(),
                expected: format!("{expected:?}"),
                meaning,
            });
        }
        Ok(Some(tensor.data.to_f64()))
    }

    /// The distances of all tensors. Groups of heads are independent, and so many threads as there are compute them.
    fn against_f64(&self, pairs: &[Pair<'_>], none: Vec<Distances>) -> Result<Vec<Distances>, Error> {
        let shape = self.problem.shape();
        if pairs.iter().all(|pair| pair.len == 0) {
            return Ok(none); // however many heads there are of nothing
        }
        let groups = shape.batch * shape.num_heads_k;
        let progress = Progress::bar("comparing with f64", groups as u64, self.quiet);
        let sum =
            |a: Vec<Distances>, b: Vec<Distances>| a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect();
        let whole = (0..groups)
            .into_par_iter()
            .map(|group| {
                let at = (group / shape.num_heads_k, group % shape.num_heads_k * shape.group_size());
                let distances = self.group_against_f64(at, pairs);
                progress.advance(1);
                distances
            })
            .try_reduce_with(|a, b| Ok(sum(a, b)));
        whole.unwrap_or(Ok(none))
    }

    fn group_against_f64(&self, at: (usize, usize), pairs: &[Pair<'_>]) -> Result<Vec<Distances>, Error> {
        let (whole, (batch, head)) = (self.problem, at);
        let heads = head..head + whole.shape().group_size();
        let piece = Piece { batches: batch..batch + 1, heads, ..Piece::of(whole) };
        let inputs = piece.inputs(whole, &self.operands.inputs(whole, self.layout));
        let backward = self.operands.dout(whole, self.layout).map(|dout| Backward {
            dout: piece.share(whole, TensorName::Dout, &dout),
            dlse: self.operands.dlse.as_deref().map(|dlse| self.group_rows(dlse, at)),
        });
        let truth = Truth::of(&whole.piece(&piece)?, &inputs, backward)?;
        let of_pair = |pair: &Pair<'_>| {
            let expected = truth.tensor(pair.tensor)?;
            let (rows, heads, dim) = match (pair.tensor, piece.place_in(whole, pair.tensor)) {
                (TensorName::Lse, [_, heads, rows, last]) => (rows, heads, last.len()),
                (_, [_, rows, heads, last]) => (rows, heads, last.len()),
            };
            let (seqlen, head, heads) = (rows.len(), heads.start, heads.len());
            Some(pair.distances(expected, &Place { batch, head, seqlen, heads, dim }))
        };
        Ok(pairs.iter().filter_map(of_pair).collect())
    }

    /// The part of a dense (batch, num_heads, seqlen_q) that a group of heads has from (batch, head) on.
    fn group_rows<'b>(&self, rows: &'b [f32], (batch, head): (usize, usize)) -> &'b [f32] {
        let shape = self.problem.shape();
        let first = (batch * shape.num_heads + head) * shape.seqlen_q;
        &rows[first..first + shape.group_size() * shape.seqlen_q]
    }
}

/// The part of a tensor that a group of heads has.
struct Place {
    batch: usize,
    /// The first.
    head: usize,
    seqlen: usize,
    heads: usize,
    dim: usize,
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
        Distances { ours_to_f64: unknown, file_to_f64: self.file.as_ref().map(|_| unknown), ours_to_file }
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
        }
    }

    /// Where the n-th number of the truth of a piece lies in the whole's storage.
    fn place(&self, place: &Place, n: usize) -> usize {
        let Place { batch, head, seqlen, heads, dim } = *place;
        let (row, h, d) = match self.tensor {
            TensorName::Lse => (n % seqlen, n / seqlen, 0),
            _ => (n / dim / heads, n / dim % heads, n % dim),
        };
        let [batch_stride, row_stride, head_stride, _] = self.strides;
        batch * batch_stride + row * row_stride + (head + h) * head_stride + d
    }
}
