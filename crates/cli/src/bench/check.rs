//! A row is checked before it is timed: the fastest wrong answer is worth nothing.
//!
//! All of it would take far longer than the measurement, and the test suite does that. What is compared with the f64
//! formulas is, of the last group of heads, the last queries' out and lse, and for a backward their dq; and the dk
//! and dv of the first and the last keys, from the call's own out and lse.

use super::case::Case;
use super::tensors::Tensors;
use crate::args::Pass;
use crate::compute::len;
use crate::errors::Error;
use crate::files::FileElement;
use signflash_core::judge::{Backward, Distance, Truth};
use signflash_core::oracle::Forward;
use signflash_core::{Piece, Problem, TensorName, TensorRef};
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
    let check = Check { case, problem, tensors };
    check.queries()?;
    if case.pass == Pass::Bwd {
        let seqlen_k = problem.shape().seqlen_k;
        check.keys(0..ROWS.min(seqlen_k))?;
        check.keys(seqlen_k.saturating_sub(ROWS)..seqlen_k)?;
    }
    Ok(())
}

struct Check<'a, T> {
    case: &'a Case,
    problem: &'a Problem,
    tensors: &'a Tensors<T>,
}

impl<T: FileElement> Check<'_, T> {
    /// Some queries and keys of the last group of heads.
    fn piece(&self, rows: Range<usize>, columns: Range<usize>) -> Piece {
        let shape = self.problem.shape();
        let (batch, heads) = (shape.batch, shape.num_heads);
        Piece { batches: batch - 1..batch, heads: heads - shape.group_size()..heads, rows, columns }
    }

    /// A piece's share of one of the call's tensors.
    fn share<'b>(&self, piece: &Piece, tensor: TensorName, data: &'b [T]) -> TensorRef<'b, T> {
        let whole = TensorRef::bhsd(data, self.problem.shape().of(tensor));
        piece.share(self.problem, tensor, &whole)
    }

    /// out, lse and, of a backward, dq of the last queries.
    fn queries(&self) -> Result<(), Error> {
        let Self { problem, tensors, .. } = self;
        let shape = problem.shape();
        let piece = self.piece(shape.seqlen_q.saturating_sub(ROWS)..shape.seqlen_q, 0..shape.seqlen_k);
        let inputs = piece.inputs(problem, &tensors.inputs(shape));
        let backward = (self.case.pass == Pass::Bwd)
            .then(|| Backward { dout: self.share(&piece, TensorName::Dout, &tensors.dout), dlse: None });
        let truth = Truth::of(&problem.piece(&piece)?, &inputs, backward)?;
        let judge = |tensor, got: &dyn Fn(usize) -> f64| match truth.tensor(tensor) {
            Some(expected) => self.judge(tensor, expected.distance(got)),
            None => Ok(()), // dq of a forward
        };
        let [out, dq] = [(TensorName::Out, &tensors.out), (TensorName::Dq, &tensors.dq)]
            .map(|(tensor, data)| self.share(&piece, tensor, data));
        judge(TensorName::Out, &|n| element(&out, n))?;
        judge(TensorName::Lse, &|n| self.lse(&piece, n))?;
        judge(TensorName::Dq, &|n| element(&dq, n))
    }

    /// dk and dv of some keys, by the call's own out and lse of the queries that see any of them.
    fn keys(&self, keys: Range<usize>) -> Result<(), Error> {
        let Self { problem, tensors, .. } = self;
        let seen_by = problem.visibility().queries_of_all(keys.start as i64, keys.end as i64 - 1);
        let piece = self.piece(seen_by.some.positions(), keys);
        let part = problem.piece(&piece)?;
        let share = |tensor, data| self.share(&piece, tensor, data);
        let out = share(TensorName::Out, &tensors.out);
        let forward = Forward {
            out: (0..len(out.shape)).map(|n| element(&out, n)).collect(),
            lse: (0..part.shape().lse_len()).map(|n| self.lse(&piece, n)).collect(),
        };
        let inputs = piece.inputs(problem, &tensors.inputs(problem.shape()));
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
        let sequence = self.problem.sequence(piece.batches.start).expect("the piece lies in the problem");
        let (head, row) = (piece.heads.start + n / piece.rows.len(), piece.rows.start + n % piece.rows.len());
        self.tensors.lse[sequence.lse(self.problem.shape(), row, head)].into()
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
    use crate::engine::Engine;
    use crate::settings::Settings;
    use signflash_core::{Dtype, f16};
    use signflash_cpu::CpuEngine;

    /// Makes a result wrong, at a place if it has one.
    type Spoil = fn(&mut Tensors<f16>, usize);

    /// A backward and its results, right.
    fn right(causal: bool) -> (Case, Problem, Tensors<f16>) {
        let case = Case {
            dtype: Dtype::F16,
            pass: Pass::Bwd,
            batch: 2,
            heads: 4,
            heads_k: 2,
            head_dim: 40,
            seqlen: 70,
            settings: Settings { causal, dropout_p: 0.1, seed: 42, ..Settings::default() },
        };
        let (engine, problem) = (Engine::Cpu(CpuEngine::new()), case.problem().unwrap());
        let mut tensors = Tensors::random(problem.shape());
        tensors.call(&engine, &problem, Pass::Fwd).unwrap();
        tensors.call(&engine, &problem, Pass::Bwd).unwrap();
        check(&case, &problem, &tensors).unwrap();
        (case, problem, tensors)
    }

    #[test]
    fn every_tensor_of_a_backward_is_looked_at() {
        for causal in [false, true] {
            let (case, problem, mut right) = right(causal);
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
            right.dk.rotate_left(70 * 40); // another head's
            assert!(check(&case, &problem, &right).is_err());
        }
    }

    fn scaled(x: f16) -> f16 {
        f16::from_f32(1.01 * x.to_f32())
    }
}
