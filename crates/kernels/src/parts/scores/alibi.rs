//! ALiBi: of each score its slope times the distance of key and diagonal is taken, |query + diagonal - key|.
//!
//! Most tiles lie on one side of the diagonal. There a distance is the nearest one of the thread's row and a number that is
//! known while building, so that two fused multiply-adds scale a score and add to it; and as they count from the
//! nearest, what is added is rounded no more than by its own size.
use super::{Place, RowsAre, cells, column};
use crate::parts::args::kernel_args;
use crate::parts::sequence::Sequence;
use signflash_ptx::{Acc, F32, GlobalAddr, Pred, S32, Thread, U32, Val, Warp};

kernel_args! {
    /// Where slopes are, and where the diagonal is.
    AlibiArgs / AlibiVals {
        /// f32, a head's behind the other's.
        alibi_slopes: u64,
        /// From a sequence's slopes to the next one's: num_heads, or 0 if all have the same.
        slopes_per_sequence: u32,
        /// The key that query 0 faces. Of packed sequences, whose last query faces their last key, 0.
        facing: i32,
    }
}

/// Of one query head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alibi<'k> {
    /// Minus the slope.
    slope: Val<'k, F32>,
    /// The key that query 0 faces.
    facing: Val<'k, S32>,
}

/// Of an accumulator.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlibiAt<'k> {
    slope: Val<'k, F32>,
    rows_are: RowsAre,
    /// For each of the thread's rows, how far before the diagonal the key is in its first column; negative behind it.
    first: [Val<'k, F32>; 2],
}

impl<'k> AlibiVals<'k> {
    /// The key of a sequence that its query 0 faces.
    pub(super) fn facing_of(&self, sequence: Sequence<'k>) -> Val<'k, S32> {
        match sequence.packed {
            None => self.facing,
            Some(_) => (sequence.seqlen_k - sequence.seqlen_q).cast::<S32>() + self.facing,
        }
    }
}

impl<'k> Alibi<'k> {
    pub(super) fn of_head(
        t: Thread<'k>,
        args: AlibiVals<'k>,
        sequence: Sequence<'k>,
        head: Val<'k, U32>,
    ) -> Self {
        let place = sequence.number.mul_add(args.slopes_per_sequence, head);
        let from = GlobalAddr::new(place.widen().mul_add(4u64, args.alibi_slopes));
        let load = |t: Thread<'k>| -t.load_constant::<F32, 1>(from)[0];
        let Some(begins) = sequence.packed else {
            return Alibi { slope: load(t), facing: args.facing_of(sequence) };
        };
        // What is left over behind the last sequence has a number, but no slopes.
        let slope = t.f32(0.0).var();
        t.when(sequence.number.lt(begins.count - 1), |t| slope.set(load(t)));
        Alibi { slope: slope.get(), facing: args.facing_of(sequence) }
    }

    pub(super) fn at(self, place: Place<'k>) -> AlibiAt<'k> {
        let Place { rows_are, row, column } = place;
        let (query, key) = match rows_are {
            RowsAre::Queries => (row, column),
            RowsAre::Keys => (column, row),
        };
        let first = (query.cast::<S32>() + self.facing - key.cast::<S32>()).to_f32();
        // A row later is a query more, or a key more.
        let second = if rows_are == RowsAre::Queries { first + 8.0 } else { first - 8.0 };
        AlibiAt { slope: self.slope, rows_are, first: [first, second] }
    }
}

impl<'k> AlibiAt<'k> {
    /// Scores are scaled, and this is added.
    pub(super) fn add_to(&self, warp: Warp<'k>, s: &Acc<'k>, scale: Val<'k, F32>) {
        let width = width(s);
        let [some_behind, some_before] = self.some_are(warp, s);
        warp.when(!some_behind, |_| {
            let from_last = self.rows_are == RowsAre::Queries;
            let nearest = self.first.map(|first| if from_last { first - width } else { first });
            self.add_linear(s, scale, nearest, from_last.then_some(width));
        });
        warp.when(some_behind & !some_before, |_| {
            let from_last = self.rows_are == RowsAre::Keys;
            let nearest = self.first.map(|first| if from_last { -first - width } else { -first });
            self.add_linear(s, scale, nearest, from_last.then_some(width));
        });
        warp.when(some_behind & some_before, |_| self.add_to_each(s, scale));
    }

    /// The same, wherever the diagonal is.
    pub(super) fn add_to_each(&self, s: &Acc<'k>, scale: Val<'k, F32>) {
        for (at, x) in cells(s) {
            x.set(self.plus(at, x.get() * scale));
        }
    }

    /// Whether some of a warp's numbers lie behind the diagonal, and whether some lie before it.
    fn some_are(&self, warp: Warp<'k>, s: &Acc<'k>) -> [Val<'k, Pred>; 2] {
        let (width, [first, second]) = (width(s), self.first);
        // How far before the diagonal: at least, at most.
        let (least, most) = match self.rows_are {
            RowsAre::Queries => (first - width, second),
            RowsAre::Keys => (second, first + width),
        };
        let zero = warp.threads().f32(0.0);
        [warp.any(least.lt(0.0)), warp.any(zero.lt(most))]
    }

    /// Whether they lie behind it, and whether they lie on both sides.
    pub(super) fn sides(&self, warp: Warp<'k>, s: &Acc<'k>) -> [Val<'k, Pred>; 2] {
        let [behind, before] = self.some_are(warp, s);
        [behind, behind & before]
    }

    /// What a distance is multiplied by.
    pub(super) fn slope(&self) -> Val<'k, F32> {
        self.slope
    }

    /// For each of the thread's rows, how far before the diagonal its first column is.
    pub(super) fn rows(&self) -> [Val<'k, F32>; 2] {
        self.first
    }

    /// Where distances grow from the nearest on, that of the first column, or of the last, so many columns on.
    fn add_linear(
        &self,
        s: &Acc<'k>,
        scale: Val<'k, F32>,
        nearest: [Val<'k, F32>; 2],
        from_last: Option<f32>,
    ) {
        let least = nearest.map(|nearest| nearest * self.slope);
        for (at, x) in cells(s) {
            let further = from_last.map_or(column(at), |last| last - column(at));
            let addend = self.slope.mul_add(further, least[at[1] / 2]);
            x.set(x.get().mul_add(scale, addend));
        }
    }

    /// A number, and what is added to one of the thread's scores.
    pub(super) fn plus(&self, at: [usize; 2], to: Val<'k, F32>) -> Val<'k, F32> {
        let first = self.first[at[1] / 2];
        let distance = match self.rows_are {
            RowsAre::Queries => first - column(at),
            RowsAre::Keys => first + column(at),
        };
        distance.abs().mul_add(self.slope, to)
    }
}

/// From a thread's first column to its last.
fn width(s: &Acc<'_>) -> f32 {
    (8 * (s.groups() - 1) + 1) as f32
}
