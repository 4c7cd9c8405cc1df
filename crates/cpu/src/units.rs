//! Numbers the units of work of a pass.

use crate::sequence::{Sequence, Sequences};

/// The units of a pass, numbered sequence by sequence. Its size does not depend on the batch, where all sequences are
/// alike.
pub(crate) struct Units<'a> {
    sequences: Sequences<'a>,
    runs: Vec<Run>,
    count: usize,
}

/// Neighbouring sequences of equally many units.
struct Run {
    first_sequence: usize,
    first_unit: usize,
    /// Units of one sequence.
    each: usize,
}

impl<'a> Units<'a> {
    /// `each` says how many units a sequence has.
    pub(crate) fn new(sequences: Sequences<'a>, each: impl Fn(&Sequence) -> usize) -> Self {
        let (mut runs, mut count): (Vec<Run>, usize) = (Vec::new(), 0);
        for (index, sequence) in sequences.iter().enumerate() {
            let each = each(&sequence);
            if each > 0 && runs.last().is_none_or(|run| run.each != each || run.end(count) != index) {
                runs.push(Run { first_sequence: index, first_unit: count, each });
            }
            count += each;
        }
        Self { sequences, runs, count }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The sequence of a unit, and which of its units it is.
    pub(crate) fn at(&self, unit: usize) -> (Sequence, usize) {
        let run = &self.runs[self.runs.partition_point(|run| run.first_unit <= unit) - 1];
        let within = unit - run.first_unit;
        (self.sequences.at(run.first_sequence + within / run.each), within % run.each)
    }
}

impl Run {
    /// One past its last sequence, if its last unit is the one before `unit`.
    fn end(&self, unit: usize) -> usize {
        self.first_sequence + (unit - self.first_unit) / self.each
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signflash_core::{Problem, Shape};

    #[test]
    fn every_unit_is_found_whatever_the_lengths() {
        let problem = Problem::builder(Shape::new(1, 0, 0).heads(1, 1).head_dim(1)).build().expect("empty");
        for lens in [&[][..], &[3], &[2, 2, 2], &[0, 2, 0, 2, 1, 1, 0], &[1, 0, 1], &[0, 0]] {
            let sequences: Vec<Sequence> = lens
                .iter()
                .enumerate()
                .map(|(batch, &seqlen_q)| {
                    let mut sequence = Sequences::of(&problem).at(0);
                    (sequence.place.batch, sequence.place.seqlen_q) = (batch, seqlen_q);
                    sequence
                })
                .collect();
            let units = Units::new(Sequences::These(&sequences), |sequence| sequence.place.seqlen_q);
            let found: Vec<(usize, usize)> = (0..units.count())
                .map(|unit| {
                    let (sequence, within) = units.at(unit);
                    (sequence.place.batch, within)
                })
                .collect();
            let expected: Vec<(usize, usize)> =
                lens.iter().enumerate().flat_map(|(batch, &len)| (0..len).map(move |n| (batch, n))).collect();
            assert_eq!(found, expected, "{lens:?}");
        }
    }
}
