//! A row is checked before it is timed: the fastest wrong answer is worth nothing.
//!
//! Some rows of the last head are compared with the f64 formulas: out of the forward, dq of the backward. All rows
//! would take far longer than the measurement; the test suite does that.

use super::case::{Case, Tensors};
use crate::cli::Pass;
use crate::compute::{part, part_inputs, sub};
use crate::errors::Error;
use crate::files::FileElement;
use crate::verify::{Distance, bound};
use signflash_core::{Problem, TensorRef, oracle};

/// Rows that are checked.
const ROWS: usize = 4;

/// Compares the last rows of the last head.
pub(super) fn check<T: FileElement>(
    case: &Case,
    problem: &Problem,
    tensors: &Tensors<T>,
) -> Result<(), Error> {
    let shape = problem.shape();
    let at = (shape.batch - 1, shape.num_heads - 1);
    let rows = shape.seqlen_q.saturating_sub(ROWS)..shape.seqlen_q;
    let first = rows.start;
    let part = part(problem, at, 1, rows, shape.seqlen_k)?;
    let inputs = part_inputs(problem, &tensors.inputs(shape), &part);
    let forward = oracle::forward(&part, &inputs)?;
    let view = |data| sub(&TensorRef::bhsd(data, shape.q()), at, first, part.shape().q());
    let (tensor, ours, truth) = match case.pass {
        Pass::Fwd => ("out", view(tensors.out.as_slice()), forward.out),
        Pass::Bwd => {
            let dout = view(tensors.dout.as_slice());
            ("dq", view(tensors.dq.as_slice()), oracle::backward(&part, &inputs, &dout, None, &forward)?.dq)
        }
    };
    let mut distance = Distance::default();
    let [_, rows, _, head_dim] = part.shape().q();
    for i in 0..rows {
        for d in 0..head_dim {
            distance.add(ours.at([0, i, 0, d]).to_f64(), truth[i * head_dim + d]);
        }
    }
    // A few rows scatter more than the whole tensor that the contract speaks of.
    let bound = 2.0 * bound(tensor, T::DTYPE);
    let error = distance.relative();
    if error <= bound {
        Ok(())
    } else {
        Err(Error::WrongResult { case: case.to_string(), tensor, error, bound })
    }
}
