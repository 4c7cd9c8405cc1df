//! Sequences that lie side by side: what one holds must not matter to another.
//!
//! Every second one is filled with NaNs, then every other second one. Whoever reads a row of its neighbour, even to
//! multiply it by 0, has a NaN where a number belongs.

use super::inputs::Values;
use crate::{Problem, Sequence, TensorName};
use std::ops::Range;

/// Every second sequence of a packed problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Half {
    /// 0 or 1: of their places, what is left by 2.
    parity: usize,
}

impl Half {
    /// The halves of a problem that leave somebody to judge; none where sequences are not packed.
    pub(super) fn of(problem: &Problem) -> impl Iterator<Item = Self> {
        let several = problem.is_packed() && problem.sequences().len() > 1;
        [0, 1].into_iter().filter(move |_| several).map(|parity| Self { parity })
    }

    /// Where its sequences lie in a dense tensor.
    fn places(self, problem: &Problem, tensor: TensorName) -> Vec<Range<usize>> {
        let sequences = problem.sequences().skip(self.parity).step_by(2);
        sequences.flat_map(|sequence| places(problem, &sequence, tensor)).collect()
    }

    /// Makes its elements of a dense tensor NaNs.
    pub(super) fn poison(self, problem: &Problem, tensor: TensorName, dense: &mut [f64]) {
        self.places(problem, tensor).into_iter().for_each(|range| dense[range].fill(f64::NAN));
    }

    /// Operands whose elements are NaNs there.
    pub(super) fn poisoned(self, problem: &Problem, values: &Values) -> Values {
        let mut values = values.clone();
        let Values { q, k, v, dout, dlse, bias, .. } = &mut values;
        let tensors = [(TensorName::Q, q), (TensorName::K, k), (TensorName::V, v), (TensorName::Dout, dout)];
        tensors.into_iter().for_each(|(tensor, x)| self.poison(problem, tensor, x));
        dlse.iter_mut().for_each(|dlse| self.poison(problem, TensorName::Dlse, dlse));
        if problem.shape_of(TensorName::Bias)[0] > 1 {
            self.poison(problem, TensorName::Bias, bias);
        }
        values
    }

    /// Puts `want` where its results are, which are nobody's business.
    pub(super) fn forgive(self, problem: &Problem, tensor: TensorName, got: &mut [f64], want: &[f64]) {
        for range in self.places(problem, tensor) {
            got[range.clone()].copy_from_slice(&want[range]);
        }
    }
}

/// Where a packed sequence lies in a dense tensor.
fn places(
    problem: &Problem,
    sequence: &Sequence,
    tensor: TensorName,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let shape @ [_, b, c, d] = problem.shape_of(tensor);
    let Sequence { first_q, first_k, seqlen_q, seqlen_k, stream, .. } = *sequence;
    let (times, step, first, len) = match tensor {
        TensorName::Lse | TensorName::Dlse => (b, c, first_q, seqlen_q), // head by head
        TensorName::Probs => {
            let has_some = stream < shape[0]; // what is left over has none
            (usize::from(has_some), 0, stream * b * c * d, b * c * d)
        }
        TensorName::Bias | TensorName::Dbias if shape[0] > 1 => {
            let has_some = stream < shape[0];
            (usize::from(has_some), 0, stream * b * c * d, b * c * d)
        }
        // What all sequences share belongs to each.
        TensorName::Bias | TensorName::Mask | TensorName::Dbias => (1, 0, 0, b * c * d),
        TensorName::AlibiSlopes | TensorName::Sinks | TensorName::Dsinks => (1, 0, 0, c * d),
        TensorName::K | TensorName::V | TensorName::Dk | TensorName::Dv => {
            (1, 0, first_k * c * d, seqlen_k * c * d)
        }
        TensorName::Q | TensorName::Dq | TensorName::Out | TensorName::Dout => {
            (1, 0, first_q * c * d, seqlen_q * c * d)
        }
    };
    (0..times).map(move |n| n * step + first..n * step + first + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn both_halves_together_are_everything_and_share_nothing() {
        let shape = Shape::new(1, 9, 8).heads(4, 2).head_dim(3);
        let problem = Problem::builder(shape).packed(&[0, 2, 2, 6], &[0, 1, 4, 5]).build().unwrap();
        let all = [
            TensorName::Q,
            TensorName::K,
            TensorName::V,
            TensorName::Out,
            TensorName::Lse,
            TensorName::Probs,
            TensorName::Dout,
            TensorName::Dlse,
            TensorName::Dq,
            TensorName::Dk,
            TensorName::Dv,
        ];
        for tensor in all {
            let len = problem.shape_of(tensor).into_iter().product();
            let mut times = vec![0; len];
            for half in Half::of(&problem) {
                half.places(&problem, tensor).into_iter().flatten().for_each(|at| times[at] += 1);
            }
            assert_eq!(times, vec![1; len], "{tensor}");
        }
        let alone = Problem::builder(shape).packed(&[0, 9], &[0, 8]).build().unwrap();
        assert_eq!(Half::of(&alone).count(), 0);
        assert_eq!(Half::of(&Problem::builder(shape).build().unwrap()).count(), 0);
    }
}
