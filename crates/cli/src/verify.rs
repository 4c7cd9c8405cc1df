//! `attend --verify`: our results against the formulas in f64, and against the results that the file holds.
//!
//! The contract bounds the distance of a result from the formulas in f64 on the same rounded inputs. Two
//! implementations within the contract may be twice as far from each other, because each rounds in its own way. So
//! ours against f64 is judged by the contract's bound, ours against the file's by twice that bound, and the file's
//! against f64 is shown so that a reader sees who is to blame.

use crate::compute::{Results, part, part_inputs, sub};
use crate::errors::Error;
use crate::files::{Archive, FileElement};
use crate::input::Operands;
use crate::progress::Progress;
use crate::settings::Layout;
use crate::table::table;
use rayon::prelude::*;
use signflash_core::oracle;
use signflash_core::{Bounds, Dtype, Problem, TensorRef, contiguous_strides};
use std::io::Write;

/// The tensors that a file may hold to be compared with.
pub const REFERENCES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];
/// The mask that a file may hold.
pub const SIGNBIT: &str = "signbit";

/// The contract's bound on the relative Frobenius error of a tensor against f64.
pub fn bound(tensor: &str, dtype: Dtype) -> f64 {
    let Bounds { out, gradients, lse } = Bounds::of(dtype);
    match tensor {
        "lse" => lse,
        "out" => out,
        _ => gradients,
    }
}

/// Squared sums of a difference and of what it is relative to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    difference: f64,
    reference: f64,
}

impl Distance {
    /// Counts one element. Two equal infinities, or two NaNs, are no distance; anything else not finite is infinite.
    pub fn add(&mut self, x: f64, reference: f64) {
        if x == reference || (x.is_nan() && reference.is_nan()) {
            self.reference += if reference.is_finite() { reference * reference } else { 0.0 };
        } else if x.is_finite() && reference.is_finite() {
            self.difference += (x - reference) * (x - reference);
            self.reference += reference * reference;
        } else {
            self.difference = f64::INFINITY;
        }
    }

    fn merge(self, other: Self) -> Self {
        Self { difference: self.difference + other.difference, reference: self.reference + other.reference }
    }

    /// ||x - reference|| / ||reference||; 0 if both are 0.
    pub fn relative(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { (self.difference / self.reference).sqrt() }
    }
}

/// The distances of one tensor.
#[derive(Clone, Copy, Debug, Default)]
struct Distances {
    ours_to_f64: Distance,
    file_to_f64: Distance,
    ours_to_file: Distance,
}

impl Distances {
    fn merge(self, other: Self) -> Self {
        Self {
            ours_to_f64: self.ours_to_f64.merge(other.ours_to_f64),
            file_to_f64: self.file_to_f64.merge(other.file_to_f64),
            ours_to_file: self.ours_to_file.merge(other.ours_to_file),
        }
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

/// One tensor, ours and the file's, as (batch, seqlen, heads, head_dim) views; lse has head_dim 1.
struct Pair<'a, T> {
    name: &'static str,
    ours: TensorRef<'a, T>,
    file: Option<Vec<f64>>,
}

impl<T: FileElement> Verify<'_, T> {
    /// Prints the comparison.
    ///
    /// # Errors
    /// [`Error::BeyondBounds`] after the table, if anything is beyond its bound; errors about the file's tensors.
    pub fn run(&self, stdout: &mut dyn Write) -> Result<(), Error> {
        let shape = self.problem.shape();
        let (q, k) = (shape.q(), shape.k());
        let mut pairs = vec![self.pair("out", &self.results.out, q)?];
        if let Some(grads) = &self.results.gradients {
            pairs.push(self.pair("dq", &grads.dq, q)?);
            pairs.push(self.pair("dk", &grads.dk, k)?);
            pairs.push(self.pair("dv", &grads.dv, k)?);
        }
        let lse = self.lse_pair()?;
        let mut report = Report::default();
        let distances = if self.with_f64 { self.against_f64(&pairs, &lse)? } else { Vec::new() };
        for (index, pair) in pairs.iter().enumerate() {
            report.tensor(
                pair.name,
                T::DTYPE,
                distances.get(index).copied(),
                self.to_file(pair),
                pair.file.is_some(),
            );
        }
        report.tensor("lse", T::DTYPE, distances.last().copied(), self.to_file(&lse), lse.file.is_some());
        let mask = self.mask(&mut report)?;
        report.print(&mask, stdout).map_err(Error::Stdout)?;
        report.verdict()
    }

    fn pair<'b>(
        &'b self,
        name: &'static str,
        ours: &'b [T],
        shape: [usize; 4],
    ) -> Result<Pair<'b, T>, Error> {
        let expected = self.layout.reorder(shape);
        let file = self.reference(name, &expected, "as in our result")?;
        Ok(Pair { name, ours: self.layout.view(ours, shape), file })
    }

    /// lse is (batch, heads, seqlen_q) in either layout.
    fn lse_pair(&self) -> Result<Pair<'_, f32>, Error> {
        let shape = self.problem.shape();
        let expected = [shape.batch, shape.num_heads, shape.seqlen_q];
        let file = self.reference("lse", &expected, "(batch, heads, seqlen_q)")?;
        Ok(Pair { name: "lse", ours: TensorRef::bhsd(&self.results.lse, self.lse_shape()), file })
    }

    fn lse_shape(&self) -> [usize; 4] {
        let shape = self.problem.shape();
        [shape.batch, shape.seqlen_q, shape.num_heads, 1]
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

    /// The distances of all tensors, lse last. Groups of heads are independent, and so many threads as there are
    /// compute them.
    fn against_f64(&self, pairs: &[Pair<'_, T>], lse: &Pair<'_, f32>) -> Result<Vec<Distances>, Error> {
        let shape = self.problem.shape();
        let groups: Vec<(usize, usize)> = (0..shape.batch)
            .flat_map(|batch| (0..shape.num_heads_k).map(move |head_k| (batch, head_k * shape.group_size())))
            .collect();
        let progress = Progress::bar("comparing with f64", groups.len() as u64, self.quiet);
        let none = || Ok(vec![Distances::default(); pairs.len() + 1]);
        let sum =
            |a: Vec<Distances>, b: Vec<Distances>| a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect();
        groups
            .into_par_iter()
            .map(|at| {
                let distances = self.group_against_f64(at, pairs, lse);
                progress.advance(1);
                distances
            })
            .reduce(none, |a, b| Ok(sum(a?, b?)))
    }

    fn group_against_f64(
        &self,
        at: (usize, usize),
        pairs: &[Pair<'_, T>],
        lse: &Pair<'_, f32>,
    ) -> Result<Vec<Distances>, Error> {
        let whole = self.problem.shape();
        let part = part(self.problem, at, whole.group_size(), 0..whole.seqlen_q, whole.seqlen_k)?;
        let inputs = part_inputs(self.problem, &self.operands.inputs(self.problem, self.layout), &part);
        let forward = oracle::forward(&part, &inputs)?;
        let gradients = match self.operands.dout(self.problem, self.layout) {
            Some(dout) => {
                let dout = sub(&dout, at, 0, part.shape().q());
                let dlse = self.operands.dlse.as_deref().map(|dlse| self.group_rows(dlse, at));
                Some(oracle::backward(&part, &inputs, &dout, dlse, &forward)?)
            }
            None => None,
        };
        let (q, k) = (part.shape().q(), part.shape().k());
        let at_k = (at.0, at.1 / whole.group_size());
        let mut truths = vec![(at, q, forward.out.as_slice())];
        if let Some(gradients) = &gradients {
            truths.extend([
                (at, q, gradients.dq.as_slice()),
                (at_k, k, &gradients.dk),
                (at_k, k, &gradients.dv),
            ]);
        }
        let mut distances: Vec<Distances> = pairs
            .iter()
            .zip(truths)
            .map(|(pair, (at, shape, truth))| pair.distances(at, &TensorRef::bshd(truth, shape)))
            .collect();
        let lse_shape = [1, whole.seqlen_q, whole.group_size(), 1];
        distances.push(lse.distances(at, &TensorRef::bhsd(&forward.lse, lse_shape)));
        Ok(distances)
    }

    /// The part of a dense (batch, num_heads, seqlen_q) that a group of heads has from (batch, head) on.
    fn group_rows<'b>(&self, rows: &'b [f32], (batch, head): (usize, usize)) -> &'b [f32] {
        let shape = self.problem.shape();
        let first = (batch * shape.num_heads + head) * shape.seqlen_q;
        &rows[first..first + shape.group_size() * shape.seqlen_q]
    }

    fn to_file<U: FileElement>(&self, pair: &Pair<'_, U>) -> Distance {
        let mut distance = Distance::default();
        if let Some(file) = &pair.file {
            let file = pair.file_view(file);
            each_index(pair.ours.shape, |index| distance.add(pair.ours.at(index).to_f64(), file.at(index)));
        }
        distance
    }

    /// Compares sign bits, as they stand in the probs that the engine wrote, with the file's and with the formula.
    fn mask(&self, report: &mut Report) -> Result<Vec<String>, Error> {
        let shape = self.problem.shape();
        let Some(probs) = &self.results.probs else {
            return Ok(vec![
                "mask bits: not compared, the file holds no signbit; --probs compares with the formula"
                    .into(),
            ]);
        };
        let probs = TensorRef::bshd(probs.as_slice(), shape.probs());
        let signbit = self.reference(SIGNBIT, &shape.probs(), "(batch, heads, seqlen_q, seqlen_k)")?;
        let signbit = signbit
            .as_deref()
            .map(|bits| TensorRef::strided(bits, shape.probs(), contiguous_strides(shape.probs())));
        let rule = self.problem.keep_rule();
        let mut count = MaskCount::default();
        for (b, h, i) in rows(shape.batch, shape.num_heads, shape.seqlen_q) {
            let visible = self.problem.visible_keys(i);
            let keep = rule.as_ref().map(|rule| rule.keep_mask(b, h, i..i + 1, visible.clone()));
            for j in 0..shape.seqlen_k {
                let (probability, dropped) = probs.at([b, h, i, j]).decode();
                if !visible.contains(&j) {
                    count.hidden_not_zero += u64::from(dropped || probability.to_f32() != 0.0);
                    continue;
                }
                count.visible += 1;
                count.wrong_by_rule += u64::from(dropped == keep.as_ref().is_none_or(|keep| keep.keep(0, j)));
                if let Some(bits) = &signbit {
                    count.wrong_by_file += u64::from(dropped != (bits.at([b, h, i, j]) != 0.0));
                }
            }
        }
        Ok(count.lines(signbit.is_some(), report))
    }
}

impl<T: FileElement> Pair<'_, T> {
    /// The file's tensor is stored as ours.
    fn file_view<'b>(&self, file: &'b [f64]) -> TensorRef<'b, f64> {
        TensorRef::strided(file, self.ours.shape, self.ours.strides)
    }

    /// Distances of the part that starts at (batch, head) and has the shape of `truth`.
    fn distances(&self, at: (usize, usize), truth: &TensorRef<'_, f64>) -> Distances {
        let mut distances = Distances::default();
        let ours = sub(&self.ours, at, 0, truth.shape);
        let file = self.file.as_deref().map(|file| sub(&self.file_view(file), at, 0, truth.shape));
        each_index(truth.shape, |index| {
            let exact = truth.at(index);
            distances.ours_to_f64.add(ours.at(index).to_f64(), exact);
            if let Some(file) = &file {
                distances.file_to_f64.add(file.at(index), exact);
            }
        });
        distances
    }
}

fn rows(batches: usize, heads: usize, rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batches).flat_map(move |b| (0..heads).flat_map(move |h| (0..rows).map(move |i| (b, h, i))))
}

fn each_index([a, b, c, d]: [usize; 4], mut visit: impl FnMut([usize; 4])) {
    for (i, j, k) in rows(a, b, c) {
        (0..d).for_each(|l| visit([i, j, k, l]));
    }
}

/// Entries of probs by what is wrong with their sign.
#[derive(Default)]
struct MaskCount {
    visible: u64,
    wrong_by_file: u64,
    wrong_by_rule: u64,
    hidden_not_zero: u64,
}

impl MaskCount {
    fn lines(&self, with_file: bool, report: &mut Report) -> Vec<String> {
        let mut lines = Vec::new();
        let visible = self.visible;
        let mut line = |what: &str, wrong: u64, against: &str| {
            report.check(what, wrong == 0);
            lines.push(format!("{what}: {wrong} of {visible} visible entries, against {against}"));
        };
        if with_file {
            line("wrong mask bits", self.wrong_by_file, "the file's signbit");
        }
        line("wrong mask bits", self.wrong_by_rule, "the formula");
        report.check("hidden entries", self.hidden_not_zero == 0);
        if self.hidden_not_zero > 0 {
            lines.push(format!("hidden entries that are not +0.0: {}", self.hidden_not_zero));
        }
        lines
    }
}

/// The table and its verdict.
#[derive(Default)]
struct Report {
    rows: Vec<Vec<String>>,
    checks: usize,
    failed: Vec<String>,
}

impl Report {
    fn check(&mut self, name: &str, passed: bool) -> bool {
        self.checks += 1;
        if !passed {
            self.failed.push(name.to_string());
        }
        passed
    }

    fn tensor(&mut self, name: &str, dtype: Dtype, f64: Option<Distances>, to_file: Distance, in_file: bool) {
        let bound = bound(name, dtype);
        let shown = |distance: f64| format!("{distance:.2e}");
        let none = || "-".to_string();
        let mut passed = true;
        let mut row = vec![name.to_string()];
        match f64.map(|distances| distances.ours_to_f64.relative()) {
            Some(ours) => {
                passed &= self.check(&format!("{name} vs f64"), ours <= bound);
                row.extend([shown(ours), shown(bound)]);
            }
            None => row.extend([none(), none()]),
        }
        let file_error = f64.filter(|_| in_file).map(|distances| distances.file_to_f64.relative());
        row.push(file_error.map_or_else(none, shown));
        if in_file {
            let ours = to_file.relative();
            passed &= self.check(&format!("{name} vs file"), ours <= 2.0 * bound);
            row.extend([shown(ours), shown(2.0 * bound)]);
        } else {
            row.extend([none(), none()]);
        }
        let file_is_off = file_error.is_some_and(|error| error > bound);
        row.push(match (passed, file_is_off) {
            (true, false) => "ok".into(),
            (true, true) => "ok; the file's is off".into(),
            (false, true) => "FAILED; the file's is off".into(),
            (false, false) => "FAILED".into(),
        });
        self.rows.push(row);
    }

    fn print(&self, mask: &[String], stdout: &mut dyn Write) -> std::io::Result<()> {
        let header = ["tensor", "ours vs f64", "bound", "file vs f64", "ours vs file", "bound", "verdict"];
        writeln!(stdout, "{}", table(&header, self.rows.iter().cloned(), 1))?;
        mask.iter().try_for_each(|line| writeln!(stdout, "{line}"))
    }

    fn verdict(&self) -> Result<(), Error> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let names = self.failed.join(", ");
        Err(Error::BeyondBounds { failed: self.failed.len(), checks: self.checks, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(pairs: &[(f64, f64)]) -> f64 {
        let mut distance = Distance::default();
        pairs.iter().for_each(|&(x, reference)| distance.add(x, reference));
        distance.relative()
    }

    #[test]
    fn equal_infinities_are_no_distance_and_unequal_ones_are_infinite() {
        let inf = f64::INFINITY;
        assert_eq!(distance(&[(-inf, -inf), (1.0, 1.0)]), 0.0);
        assert_eq!(distance(&[(f64::NAN, f64::NAN)]), 0.0);
        assert_eq!(distance(&[(0.0, -inf), (1.0, 1.0)]), inf);
        assert_eq!(distance(&[(f64::NAN, 1.0)]), inf);
        assert_eq!(distance(&[(0.0, 0.0)]), 0.0);
        assert_eq!(distance(&[(1.0, 0.0)]), inf);
    }

    #[test]
    fn the_distance_is_relative_and_of_frobenius() {
        assert!((distance(&[(3.0, 0.0), (4.0, 4.0), (0.0, 3.0)]) - (18f64 / 25.0).sqrt()).abs() < 1e-15);
    }
}
