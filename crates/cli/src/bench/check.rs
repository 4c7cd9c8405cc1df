//! A row is checked before it is timed: the fastest wrong answer is worth nothing.
//!
//! All of it would take far longer than the measurement, and the test suite does that. What is compared with the f64
//! formulas is, of the longest sequence and the last one, and of the last group of heads, the last queries' out and lse,
//! and for a backward their dq, and their dbias where nobody shares it; and the dk and dv of the first and the last keys, from the call's own out and lse.

use super::case::Case;
use super::tensors::Tensors;
use crate::args::Pass;
use crate::compute::len;
use crate::errors::Error;
use crate::files::{Data, FileElement};
use signflash_core::judge::{Backward, Distance, Truth};
use signflash_core::oracle::Forward;
use signflash_core::{Inputs, Piece, Problem, Sequence, TensorName, TensorRef};
use std::ops::Range;

/// Queries, and keys at each end, that are checked.
const ROWS: usize = 4;
/// What their bound is multiplied by.
const FEW_ROWS: f64 = 2.0;

/// Compares what is described above.
///
/// # Errors
/// [`Error::WrongResult`] with the first tensor that is beyond its bound.
pub(super) fn check<T: FileElement>(
    case: &Case,
    problem: &Problem,
    tensors: &Tensors<T>,
) -> Result<(), Error> {
    for sequence in chosen(problem) {
        let alone = problem.alone(&sequence)?;
        let seqlen_k = sequence.seqlen_k;
        let check = Check { case, problem, tensors, sequence, alone };
        check.queries()?;
        if case.pass == Pass::Bwd {
            check.keys(0..ROWS.min(seqlen_k))?;
            check.keys(seqlen_k.saturating_sub(ROWS)..seqlen_k)?;
        }
    }
    Ok(())
}

/// The longest sequence, and the last one that is not empty.
fn chosen(problem: &Problem) -> impl Iterator<Item = Sequence> {
    let there = || problem.sequences().filter(|sequence| sequence.seqlen_q > 0 && sequence.seqlen_k > 0);
    let longest = there().max_by_key(|sequence| sequence.seqlen_q);
    let last = there().last().filter(|last| Some(*last) != longest);
    longest.into_iter().chain(last)
}

struct Check<'a, T> {
    case: &'a Case,
    problem: &'a Problem,
    tensors: &'a Tensors<T>,
    sequence: Sequence,
    /// The sequence as a problem of its own.
    alone: Problem,
}

impl<T: FileElement> Check<'_, T> {
    /// Some queries and keys of the last group of heads.
    fn piece(&self, rows: Range<usize>, columns: Range<usize>) -> Piece {
        let shape = self.alone.shape();
        let heads = shape.num_heads - shape.group_size()..shape.num_heads;
        Piece { heads, rows, columns, ..Piece::of(&self.alone) }
    }

    /// A piece's share of one of the call's tensors.
    fn share<'b>(&self, piece: &Piece, tensor: TensorName, data: &'b [T]) -> TensorRef<'b, T> {
        let whole = TensorRef::bhsd(data, self.problem.shape().of(tensor));
        piece.share(&self.alone, tensor, &self.sequence.share(tensor, &whole))
    }

    /// A piece's share of what the call's forward reads.
    fn inputs(&self, piece: &Piece) -> Inputs<'_, T> {
        let whole = self.tensors.inputs(self.problem);
        piece.inputs(&self.alone, &self.sequence.inputs(self.problem, &whole))
    }

    /// out, lse and, of a backward, dq of the last queries.
    fn queries(&self) -> Result<(), Error> {
        let Self { alone, tensors, .. } = self;
        let shape = alone.shape();
        let piece = self.piece(shape.seqlen_q.saturating_sub(ROWS)..shape.seqlen_q, 0..shape.seqlen_k);
        let inputs = self.inputs(&piece);
        let backward = (self.case.pass == Pass::Bwd)
            .then(|| Backward { dout: self.share(&piece, TensorName::Dout, &tensors.dout), dlse: None });
        let truth = Truth::of(&alone.piece(&piece)?, &inputs, backward)?;
        let judge = |tensor, got: &dyn Fn(usize) -> f64| match truth.tensor(tensor) {
            Some(expected) => self.judge(tensor, expected.distance(got)),
            None => Ok(()), // dq of a forward
        };
        let [out, dq] = [(TensorName::Out, &tensors.out), (TensorName::Dq, &tensors.dq)]
            .map(|(tensor, data)| self.share(&piece, tensor, data));
        judge(TensorName::Out, &|n| element(&out, n))?;
        judge(TensorName::Lse, &|n| self.lse(&piece, n))?;
        judge(TensorName::Dq, &|n| element(&dq, n))?;
        match self.dbias(&piece) {
            Some(dbias) => judge(TensorName::Dbias, &dbias),
            None => Ok(()),
        }
    }

    /// The n-th number of a piece's dbias, if it was computed and nobody else shares it.
    fn dbias(&self, piece: &Piece) -> Option<impl Fn(usize) -> f64> {
        let data = self.tensors.dbias.as_ref()?;
        let [sequences, heads, queries, keys] = self.problem.bias()?.shape;
        let shape = self.alone.shape();
        let is_own = (sequences == self.problem.sequence_count())
            && (heads == shape.num_heads)
            && (queries > 1 || shape.seqlen_q == 1);
        let (stream, piece) = (self.sequence.stream, piece.clone());
        let [rows, columns] = [&piece.rows, &piece.columns].map(|range| range.len());
        is_own.then_some(move |n: usize| {
            let (head, row, column) = (n / columns / rows, n / columns % rows, n % columns);
            let (head, row) = (piece.heads.start + head, piece.rows.start + row);
            let at = ((stream * heads + head) * queries + row) * keys + piece.columns.start + column;
            match data {
                Data::F32(x) => x[at].into(),
                Data::F16(x) => x[at].to_f64(),
                Data::Bf16(x) => x[at].to_f64(),
                _ => f64::NAN,
            }
        })
    }

    /// dk and dv of some keys, by the call's own out and lse of the queries that see any of them.
    fn keys(&self, keys: Range<usize>) -> Result<(), Error> {
        let Self { alone, tensors, .. } = self;
        let seen_by = alone.visibility().queries_of_all(keys.start as i64, keys.end as i64 - 1);
        let piece = self.piece(seen_by.some.positions(), keys);
        let part = alone.piece(&piece)?;
        let share = |tensor, data| self.share(&piece, tensor, data);
        let out = share(TensorName::Out, &tensors.out);
        let forward = Forward {
            out: (0..len(out.shape)).map(|n| element(&out, n)).collect(),
            lse: (0..part.shape().lse_len()).map(|n| self.lse(&piece, n)).collect(),
        };
        let inputs = self.inputs(&piece);
        let backward = Backward { dout: share(TensorName::Dout, &tensors.dout), dlse: None };
        let truth = Truth::from_forward(&part, &inputs, Some(backward), forward)?;
        for (tensor, ours) in [(TensorName::Dk, &tensors.dk), (TensorName::Dv, &tensors.dv)] {
            let Some(expected) = truth.tensor(tensor) else { continue };
            let ours = share(tensor, ours);
            self.judge(tensor, expected.distance(|n| element(&ours, n)))?;
        }
        Ok(())
    }

    /// The n-th lse of a piece.
    fn lse(&self, piece: &Piece, n: usize) -> f64 {
        let (head, row) = (piece.heads.start + n / piece.rows.len(), piece.rows.start + n % piece.rows.len());
        self.tensors.lse[self.sequence.lse(self.problem.shape(), row, head)].into()
    }

    fn judge(&self, tensor: TensorName, distance: Distance) -> Result<(), Error> {
        // A few rows scatter more than the whole tensor that the contract speaks of.
        let (error, bound) = (distance.error(), FEW_ROWS * distance.bound());
        if error <= bound {
            return Ok(());
        }
        Err(Error::WrongResult { case: self.case.to_string(), tensor, error, bound })
    }
}

/// The n-th number in the order of the dimensions.
fn element<T: FileElement>(x: &TensorRef<'_, T>, n: usize) -> f64 {
    let [_, rows, heads, dim] = x.shape;
    x.at([n / dim / heads / rows, n / dim / heads % rows, n / dim % heads, n % dim]).to_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::Sequences;
    use crate::bench::joins::{BiasOf, Joins};
    use crate::engine::Engine;
    use crate::settings::Settings;
    use signflash_core::{Dtype, Window, bf16, f16};
    use signflash_cpu::CpuEngine;

    /// Makes a result wrong, at a place if it has one.
    type Spoil = fn(&mut Tensors<f16>, usize);

    /// A backward and its results, right.
    fn right(
        (causal, window): (bool, Window),
        sequences: Sequences,
        joins: Joins,
    ) -> (Case, Problem, Tensors<f16>) {
        let case = Case {
            dtype: Dtype::F16,
            pass: Pass::Bwd,
            sequences,
            heads: 4,
            heads_k: 2,
            head_dim: 40,
            head_dim_v: 40,
            joins,
            settings: Settings { causal, window, dropout_p: 0.1, seed: 42, ..Settings::default() },
        };
        let (engine, problem) = (Engine::Cpu(CpuEngine::new()), case.problem().unwrap());
        let mut tensors = Tensors::random(&problem, &joins);
        tensors.call(&engine, &problem, Pass::Fwd).unwrap();
        tensors.call(&engine, &problem, Pass::Bwd).unwrap();
        check(&case, &problem, &tensors).unwrap();
        (case, problem, tensors)
    }

    #[test]
    fn every_tensor_of_a_backward_is_looked_at() {
        let batch = || Sequences::Batch { batch: 2, seqlen: 70 };
        let packed = Sequences::packed("70x2", &[70; 2]).unwrap();
        let narrow = Window { left: Some(9), right: Some(5) };
        let none = Joins::default();
        let bias: Option<BiasOf> = Some("bf16:bhq".parse().unwrap());
        let all = Joins { alibi: true, bias, dbias: true, mask: Some("b".parse().unwrap()), sinks: true };
        for (causal, window, sequences, joins) in [
            (false, Window::FULL, batch(), none),
            (true, Window::FULL, batch(), none),
            (false, narrow, batch(), Joins { alibi: true, sinks: true, ..none }),
            (true, narrow, packed.clone(), none),
            (false, Window::FULL, packed, Joins { mask: None, ..all }),
        ] {
            let (case, problem, mut right) = right((causal, window), sequences, joins);
            let last_key = right.dk.len() - 40;
            let spoils: [(TensorName, Spoil); 5] = [
                (TensorName::Out, |x, _| x.out.iter_mut().for_each(|x| *x = scaled(*x))),
                (TensorName::Lse, |x, _| x.lse.iter_mut().for_each(|x| *x += 1e-2)),
                (TensorName::Dq, |x, _| x.dq.iter_mut().for_each(|x| *x = scaled(*x))),
                (TensorName::Dk, |x, at| x.dk[at..at + 40].fill(f16::ONE)),
                (TensorName::Dv, |x, at| x.dv[at..at + 40].fill(f16::ONE)),
            ];
            for (name, spoil) in spoils {
                // The first and the last key of the last head, which are stored one behind the other.
                for at in [last_key + 40 - 70 * 40, last_key] {
                    let mut tensors = right.clone();
                    spoil(&mut tensors, at);
                    let refused = check(&case, &problem, &tensors).unwrap_err();
                    let found = matches!(&refused, Error::WrongResult { tensor, .. } if *tensor == name);
                    assert!(found, "{name}, causal {causal}: {refused}");
                }
            }
            if let Some(Data::Bf16(dbias)) = &mut right.dbias {
                let (before, count) = (dbias.clone(), dbias.len());
                dbias[count - 70..].fill(bf16::ONE); // those of the last query
                let refused = check(&case, &problem, &right).unwrap_err();
                assert!(
                    matches!(&refused, Error::WrongResult { tensor: TensorName::Dbias, .. }),
                    "{refused}"
                );
                right.dbias = Some(Data::Bf16(before));
            }
            right.dk.rotate_left(70 * 40); // another head's
            assert!(check(&case, &problem, &right).is_err());
        }
    }

    fn scaled(x: f16) -> f16 {
        f16::from_f32(1.01 * x.to_f32())
    }
}
