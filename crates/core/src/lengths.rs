//! How long the sequences of a problem are.

use crate::error::ProblemError;
use std::sync::Arc;

/// How the sequences of a problem lie in its tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Lengths {
    /// Each has its own place in the first dimension, and all are equally long.
    #[default]
    Batch,
    /// One behind the other.
    Packed(Arc<Packed>),
    /// One behind the other, so many; where each begins is known on the device alone.
    OnDevice(usize),
}

/// Where packed sequences begin and end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    q: Vec<u32>,
    k: Vec<u32>,
}

/// Which of the two a message is about.
const NAMES: [&str; 2] = ["cu_seqlens_q", "cu_seqlens_k"];

impl Packed {
    pub(crate) fn new(q: &[u32], k: &[u32]) -> Self {
        Self { q: q.to_vec(), k: k.to_vec() }
    }

    /// Whether these are beginnings of sequences within tensors of so many queries and keys.
    pub(crate) fn check(&self, totals: [usize; 2]) -> Result<(), ProblemError> {
        for ((argument, cu_seqlens), total) in NAMES.into_iter().zip([&self.q, &self.k]).zip(totals) {
            let refuse = |index: usize, expected: String| {
                let got = cu_seqlens.get(index).copied();
                Err(ProblemError::CuSeqlens { argument, index, expected, got })
            };
            if cu_seqlens.first() != Some(&0) {
                return refuse(0, "0".into());
            }
            if let Some(at) = cu_seqlens.windows(2).position(|pair| pair[1] < pair[0]) {
                return refuse(at + 1, format!("at least {}, the number before it", cu_seqlens[at]));
            }
            let last = cu_seqlens.len() - 1;
            if cu_seqlens[last] as usize > total {
                return refuse(
                    last,
                    format!("at most {total}, the rows of {}", &argument[argument.len() - 1..]),
                );
            }
        }
        if self.q.len() != self.k.len() {
            return Err(ProblemError::CuSeqlensCount { q: self.q.len(), k: self.k.len() });
        }
        Ok(())
    }

    /// How many sequences.
    pub(crate) fn count(&self) -> usize {
        self.q.len() - 1
    }

    /// The numbers themselves: of queries, and of keys.
    pub(crate) fn cu_seqlens(&self) -> [&[u32]; 2] {
        [&self.q, &self.k]
    }

    /// Where the queries, and the keys, of a sequence begin, and how many they are.
    pub(crate) fn places(&self, index: usize) -> [[usize; 2]; 2] {
        [&self.q, &self.k].map(|cu_seqlens| {
            let [begin, end] = [cu_seqlens[index], cu_seqlens[index + 1]].map(|at| at as usize);
            [begin, end - begin]
        })
    }

    /// Behind the last sequence.
    pub(crate) fn ends(&self) -> [usize; 2] {
        [&self.q, &self.k].map(|cu_seqlens| cu_seqlens[cu_seqlens.len() - 1] as usize)
    }

    /// The longest sequence's queries, and the longest one's keys.
    pub(crate) fn longest(&self) -> [usize; 2] {
        [&self.q, &self.k].map(|cu_seqlens| {
            cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Piece, Problem, ProblemError, Sequence, Shape, Shard};

    const SHAPE: Shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(16);

    fn refused(q: &[u32], k: &[u32]) -> String {
        Problem::builder(SHAPE).packed(q, k).build().unwrap_err().to_string()
    }

    fn places(problem: &Problem) -> Vec<[usize; 5]> {
        let place = |x: Sequence| [x.first_q, x.seqlen_q, x.first_k, x.seqlen_k, x.stream];
        problem.sequences().map(place).collect()
    }

    #[test]
    fn wrong_numbers_are_named() {
        let at = |text: String, what: &str| assert!(text.starts_with(what), "{text}");
        at(refused(&[], &[0]), "cu_seqlens_q[0] must be 0, got nothing");
        at(refused(&[0, 5], &[1, 7]), "cu_seqlens_k[0] must be 0, got 1");
        at(
            refused(&[0, 3, 2], &[0, 1, 7]),
            "cu_seqlens_q[2] must be at least 3, the number before it, got 2",
        );
        at(refused(&[0, 5], &[0, 8]), "cu_seqlens_k[1] must be at most 7, the rows of k, got 8");
        at(refused(&[0, 5], &[0, 2, 7]), "cu_seqlens_q and cu_seqlens_k must have as many numbers");
    }

    #[test]
    fn what_is_left_over_sees_nothing_and_is_seen_by_nobody() {
        let problem = |q: &[u32], k: &[u32]| Problem::builder(SHAPE).packed(q, k).build().unwrap();
        assert_eq!(places(&problem(&[0, 2, 5], &[0, 0, 7])), [[0, 2, 0, 0, 0], [2, 3, 0, 7, 1]]);
        let both = [[0, 2, 0, 1, 0], [2, 3, 1, 0, 1], [2, 0, 1, 6, 1]];
        assert_eq!(places(&problem(&[0, 2], &[0, 1])), both);
        assert_eq!(places(&problem(&[0, 5], &[0, 1]))[1..], [[5, 0, 1, 6, 1]]);
        assert_eq!(places(&problem(&[0], &[0])), [[0, 5, 0, 0, 0], [0, 0, 0, 7, 0]]);
        let rows: Vec<_> =
            problem(&[0, 2], &[0, 1]).rows().map(|(own, head, i)| own.lse(&SHAPE, i, head)).collect();
        assert_eq!(rows.len(), SHAPE.lse_len());
        assert!((0..SHAPE.lse_len()).all(|at| rows.contains(&at)), "{rows:?}");
    }

    #[test]
    fn settings_that_do_not_go_with_packed_sequences_are_named() {
        let packed = || Problem::builder(SHAPE).packed(&[0, 2, 5], &[0, 4, 7]);
        let argument = |got: Result<Problem, ProblemError>| match got.unwrap_err() {
            ProblemError::Packed { argument, .. } => argument,
            other => panic!("{other}"),
        };
        assert_eq!(argument(packed().diagonal(0).build()), "diagonal");
        assert_eq!(argument(packed().shape(SHAPE.batch(2)).build()), "batch");
        let shard = Shard { first_column: 32, ..Shard::default() };
        assert_eq!(argument(packed().shard(shard).build()), "shard.first_column");
        let whole = packed().build().unwrap();
        assert_eq!(argument(whole.piece(&Piece { rows: 0..2, ..Piece::of(&whole) })), "piece.rows");
        let heads = Piece { heads: 1..2, ..Piece::of(&whole) };
        assert_eq!(places(&whole.piece(&heads).unwrap()), places(&whole));
        assert_eq!(whole.to_builder().build().unwrap(), whole);
    }

    #[test]
    fn lengths_on_a_device_are_refused_where_the_host_computes() {
        use crate::{Inputs, TensorRef};
        let problem = Problem::builder(SHAPE).packed_on_device(3).build().unwrap();
        let (q, k) = (vec![0.0f32; 160], vec![0.0f32; 112]);
        let [q, k] = [TensorRef::bshd(&q, SHAPE.q()), TensorRef::bshd(&k, SHAPE.k())];
        let refused = Inputs::new(q, k, k).check(&problem).unwrap_err();
        assert_eq!(refused, ProblemError::LengthsOnDevice { sequences: 3 });
    }

    #[test]
    fn a_side_that_hides_nothing_is_none() {
        use crate::Window;
        let sides = |left, right| {
            let problem = Problem::builder(SHAPE).packed(&[0, 2, 5], &[0, 4, 7]).window(left, right);
            problem.build().unwrap().sides()
        };
        // Lengths (2, 4) and (3, 3): the longest reach is 3 before, and 2 behind.
        assert_eq!(sides(Some(3), Some(2)), Window::FULL);
        assert_eq!(sides(Some(2), Some(1)), Window { left: Some(2), right: Some(1) });
        let unknown = Problem::builder(SHAPE).packed_on_device(2).window(Some(6), Some(3)).build().unwrap();
        assert_eq!(unknown.sides(), Window { left: None, right: Some(3) });
    }
}
