//! A row is checked before it is timed: the fastest wrong answer is worth nothing.
//!
//! All of it would take far longer than the measurement, and the test suite does that. What is compared with the f64
//! formulas is, of the last group of heads, the last queries' out and lse, and for a backward their dq; and the dk and dv
//! of the first and the last keys, from the call's own out and lse.

use super::case::{Case, Tensors};
use crate::args::Pass;
use crate::compute::{len, part, part_inputs, sub};
use crate::errors::Error;
use crate::files::FileElement;
use signflash_core::judge::{Backward, Distance, Expected, Truth};
use signflash_core::oracle::Forward;
use signflash_core::{Inputs, Problem, Shape, Shard, TensorName, TensorRef};
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
    /// The first head of the last group, and its batch.
    fn at(&self) -> (usize, usize) {
        let shape = self.problem.shape();
        (shape.batch - 1, shape.num_heads - shape.group_size())
    }

    /// The rows from `row` on of a tensor of q's kind, as many as a part has.
    fn view<'b>(&self, tensor: TensorName, data: &'b [T], row: usize, part: &Shape) -> TensorRef<'b, T> {
        sub(&TensorRef::bhsd(data, self.problem.shape().of(tensor)), self.at(), row, part.of(tensor))
    }

    /// out, lse and, of a backward, dq of the last queries.
    fn queries(&self) -> Result<(), Error> {
        let Self { problem, tensors, .. } = self;
        let shape = problem.shape();
        let rows = shape.seqlen_q.saturating_sub(ROWS)..shape.seqlen_q;
        let part = part(problem, self.at(), shape.group_size(), rows.clone(), shape.seqlen_k)?;
        let inputs = part_inputs(problem, &tensors.inputs(shape), &part);
        let view = |tensor, data| self.view(tensor, data, rows.start, part.shape());
        let backward = (self.case.pass == Pass::Bwd)
            .then(|| Backward { dout: view(TensorName::Dout, &tensors.dout), dlse: None });
        let truth = Truth::of(&part, &inputs, backward)?;
        let element = |tensor, data, n| view(tensor, data).at(index(n, part.shape().of(tensor))).to_f64();
        let judge = |tensor, got: &dyn Fn(usize) -> f64| match truth.tensor(tensor) {
            Some(expected) => self.judge(tensor, expected.distance(got)),
            None => Ok(()), // dq of a forward
        };
        judge(TensorName::Out, &|n| element(TensorName::Out, &tensors.out, n))?;
        judge(TensorName::Lse, &|n| self.lse(n, &rows))?;
        judge(TensorName::Dq, &|n| element(TensorName::Dq, &tensors.dq, n))
    }

    /// dk and dv of some keys. Bench's problems are square: of a causal one the queries at the keys' own places see a
    /// triangle of them, those behind see all, and those before see none.
    fn keys(&self, keys: Range<usize>) -> Result<(), Error> {
        let seqlen_q = self.problem.shape().seqlen_q;
        let parts = if self.problem.causal() {
            vec![self.of_keys(&keys, keys.clone(), true)?, self.of_keys(&keys, keys.end..seqlen_q, false)?]
        } else {
            vec![self.of_keys(&keys, 0..seqlen_q, false)?]
        };
        for (tensor, ours) in [(TensorName::Dk, &self.tensors.dk), (TensorName::Dv, &self.tensors.dv)] {
            let expected = parts.iter().filter_map(|truth| truth.tensor(tensor).cloned());
            let Some(expected) = expected.reduce(Expected::plus) else { continue };
            let shape @ [.., heads, dim] = self.problem.shape().of(tensor);
            let of_keys = [1, keys.len(), 1, dim];
            let at = (self.at().0, heads - 1);
            let ours = sub(&TensorRef::bhsd(ours, shape), at, keys.start, of_keys);
            self.judge(tensor, expected.distance(|n| ours.at(index(n, of_keys)).to_f64()))?;
        }
        Ok(())
    }

    /// What some queries give some keys, by the call's own out and lse.
    fn of_keys(&self, keys: &Range<usize>, rows: Range<usize>, causal: bool) -> Result<Truth, Error> {
        let Self { problem, tensors, .. } = self;
        let shape = problem.shape();
        let (at, group) = (self.at(), shape.group_size());
        let first = rows.start;
        let shard = Shard {
            first_batch: at.0,
            first_head: at.1,
            first_row: first,
            first_column: keys.start,
            num_heads_total: Some(shape.num_heads),
        };
        let of_part = Shape::new(1, rows.len(), keys.len()).heads(group, 1).head_dim(shape.head_dim);
        let builder =
            Problem::builder(of_part).causal(causal).softmax_scale(problem.softmax_scale()).shard(shard);
        let part = problem.dropout().into_iter().fold(builder, |builder, &x| builder.dropout(x)).build()?;
        let inputs = tensors.inputs(shape);
        let at_k = (at.0, at.1 / group);
        let k = sub(&inputs.k, at_k, keys.start, of_part.k());
        let v = sub(&inputs.v, at_k, keys.start, of_part.v());
        let inputs = Inputs::new(self.view(TensorName::Q, &tensors.q, first, &of_part), k, v);
        let out = self.view(TensorName::Out, &tensors.out, first, &of_part);
        let forward = Forward {
            out: (0..len(of_part.out())).map(|n| out.at(index(n, of_part.out())).to_f64()).collect(),
            lse: (0..of_part.lse_len()).map(|n| self.lse(n, &rows)).collect(),
        };
        let dout = self.view(TensorName::Dout, &tensors.dout, first, &of_part);
        Ok(Truth::from_forward(&part, &inputs, Some(Backward { dout, dlse: None }), forward)?)
    }

    /// The n-th lse of (group, rows).
    fn lse(&self, n: usize, rows: &Range<usize>) -> f64 {
        let Shape { num_heads, seqlen_q, .. } = *self.problem.shape();
        let (batch, head) = self.at();
        let head = batch * num_heads + head + n / rows.len();
        self.tensors.lse[head * seqlen_q + rows.start + n % rows.len()].into()
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

/// The index of the n-th number in the order of the dimensions.
fn index(n: usize, [_, rows, heads, dim]: [usize; 4]) -> [usize; 4] {
    [n / dim / heads / rows, n / dim / heads % rows, n / dim % heads, n % dim]
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
