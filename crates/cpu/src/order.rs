//! In which order sequences are worked on.

use crate::sequence::{Sequence, Sequences};
use signflash_core::Problem;
use std::cmp::Reverse;

/// The sequences of a problem, those of the largest units of work first: a unit that takes long and begins last would
/// be computed by one thread while the others have nothing left to do. No result depends on it.
pub(crate) struct Order(Vec<u32>);

impl Order {
    /// `unit` says how much work the largest unit of a sequence is.
    pub(crate) fn largest_first(problem: &Problem, unit: impl Fn(&Sequence) -> usize) -> Self {
        if !problem.is_packed() {
            return Self(Vec::new()); // all are alike
        }
        let sequences = Sequences::of(problem);
        let mut order: Vec<u32> = (0..sequences.count() as u32).collect();
        order.sort_by_cached_key(|&index| Reverse(unit(&sequences.at(index as usize))));
        Self(order)
    }

    /// In this order.
    pub(crate) fn of<'a>(&'a self, problem: &'a Problem) -> Sequences<'a> {
        Sequences::Of { problem, order: &self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signflash_core::Shape;

    #[test]
    fn the_largest_comes_first_and_every_sequence_once() {
        let shape = Shape::new(1, 10, 14).heads(1, 1).head_dim(1);
        let problem = Problem::builder(shape).packed(&[0, 2, 2, 7, 9], &[0, 1, 4, 7, 13]).build().unwrap();
        let order = Order::largest_first(&problem, |sequence| sequence.place.seqlen_k);
        let streams = |sequences: Sequences| sequences.iter().map(|x| x.place.stream).collect::<Vec<usize>>();
        assert_eq!(streams(order.of(&problem)), [3, 1, 2, 0, 4, 4]); // left over: a key, and a query
        let dense = Problem::builder(shape.batch(3)).build().unwrap();
        let order = Order::largest_first(&dense, |sequence| sequence.place.stream);
        assert_eq!(streams(order.of(&dense)), [0, 1, 2]);
    }
}
