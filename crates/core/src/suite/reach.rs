//! What is asked of implementations that recompute p from an lse in f32.
//!
//! The rounding of lse then moves all p of a row by the same factor. Where lse is so large that it says nothing of p
//! any more, the row must say so by NaNs: in its probs and its dq, and in dk and dv of the keys that it sees. A
//! number there has to be right.

use crate::tensor::dense_row;
use crate::{Problem, Sequence, TensorName};
use std::ops::Range;

/// Up to this magnitude of lse the ordinary bounds hold even so.
const ORDINARY_LSE: f64 = 4096.0;

/// By which part of lse exponents may be off: it is rounded twice, as such and in base 2. (softmax_scale would be
/// rounded, too, but is a power of two in the cases that come near this.)
const PART_OF_LSE: f64 = 1.0 / (1 << 23) as f64;

/// An lse this close, relatively, to the largest that says something of p may be taken for one that does or does not.
const ABOUT: f64 = 1e-6;

/// Of which rows an implementation can recompute p.
#[derive(Clone)]
pub(super) struct Reach {
    /// Whether a row's lse is too large for that, in the order of lse; empty if none is.
    beyond: Vec<bool>,
    /// By how much exponents of the other rows may be off.
    moved: f64,
}

impl Reach {
    /// For rows with these lse, and an implementation that has p [up to](super::Implementation::largest_lse_of_p)
    /// `largest`.
    pub(super) fn of(lse: &[f64], largest: Option<f64>) -> Self {
        let Some(largest) = largest else { return Self { beyond: Vec::new(), moved: 0.0 } };
        let finite = || lse.iter().map(|lse| if lse.is_finite() { lse.abs() } else { 0.0 });
        let within = finite().filter(|lse| *lse <= largest * (1.0 + ABOUT)).fold(0.0, f64::max);
        Self {
            beyond: finite().map(|lse| lse >= largest * (1.0 - ABOUT)).collect(),
            moved: if within > ORDINARY_LSE { within * PART_OF_LSE } else { 0.0 },
        }
    }

    /// By how much, relative to themselves, rounding lse may change probabilities.
    pub(super) fn error_of_p(&self) -> f64 {
        self.moved.exp_m1()
    }

    /// Puts `want` where a NaN says that lse has lost what is asked for. `got` is dense.
    pub(super) fn forgive(&self, problem: &Problem, tensor: TensorName, got: &mut [f64], want: &[f64]) {
        if !self.beyond.contains(&true) {
            return;
        }
        let mut forgive = |places: Range<usize>| {
            for n in places {
                if got[n].is_nan() {
                    got[n] = want[n];
                }
            }
        };
        let shape = problem.shape();
        let beyond =
            |(sequence, head, i): &(Sequence, usize, usize)| self.beyond[sequence.lse(shape, *i, *head)];
        for (sequence, head, i) in problem.rows().filter(beyond) {
            let keys = problem.visibility_in(&sequence).keys_of(i as i64).positions();
            let key = |j| sequence.key(j, head / shape.group_size());
            match tensor {
                TensorName::Probs => {
                    let first = dense_row(problem.probs(), sequence.probs(i, head)).start;
                    forgive(first + keys.start..first + keys.end);
                }
                TensorName::Dq => forgive(dense_row(shape.q(), sequence.query(i, head))),
                TensorName::Dk => keys.for_each(|j| forgive(dense_row(shape.k(), key(j)))),
                TensorName::Dv => keys.for_each(|j| forgive(dense_row(shape.v(), key(j)))),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Problem, Shape};

    const SHAPE: Shape = Shape::new(1, 2, 3).heads(2, 1).head_dim(1);

    fn forgiven(tensor: TensorName, len: usize, reach: &Reach) -> Vec<bool> {
        let problem = Problem::builder(SHAPE).causal(true).build().unwrap();
        let mut got = vec![f64::NAN; len];
        reach.forgive(&problem, tensor, &mut got, &vec![1.0; len]);
        got.iter().map(|x| *x == 1.0).collect()
    }

    #[test]
    fn only_what_a_lost_row_gives_may_be_nan() {
        // Of the second head the first row, which does not see the last key.
        let reach = Reach::of(&[1.0, f64::NEG_INFINITY, 3e6, -1e6], Some(1048576.0));
        let of = |tensor, len| forgiven(tensor, len, &reach);
        let [no, yes] = [false, true];
        assert_eq!(of(TensorName::Probs, 12), [[no; 3], [no; 3], [yes, yes, no], [no; 3]].concat());
        assert_eq!(of(TensorName::Dq, 4), [no, yes, no, no]);
        assert_eq!(of(TensorName::Dk, 3), [yes, yes, no]);
        assert_eq!(of(TensorName::Dv, 3), [yes, yes, no]);
        assert_eq!(of(TensorName::Out, 4), [no; 4]);
        assert!(reach.error_of_p() > 0.12 && reach.error_of_p() < 0.13);
    }

    #[test]
    fn nothing_is_forgiven_where_p_does_not_come_from_lse_or_lse_is_small() {
        for reach in [Reach::of(&[1e9; 4], None), Reach::of(&[4000.0, -4000.0, 0.0, 1.0], Some(1048576.0))] {
            assert_eq!(forgiven(TensorName::Probs, 12, &reach), [false; 12]);
            assert_eq!(reach.error_of_p(), 0.0);
        }
    }
}
