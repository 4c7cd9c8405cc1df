//! Hides what is not seen: entries of accumulators whose rows are queries, or keys.
//!
//! Of an accumulator a thread has two rows, and of each the same columns: of every eight two neighbours, from
//! [`first_column`] on.
use super::softmax::THREAD_ROWS;
use super::visibility::{Position, Sight};
use signflash_core::Number;
use signflash_ptx::{Acc, B32, F32, Operand, Pred, S32, Thread, U32, Val, Var};

/// The first of a thread's columns.
#[track_caller]
pub(crate) fn first_column<'k>(t: Thread<'k>) -> Val<'k, U32> {
    (t.index() & 3) * 2
}

/// The keys that one of a thread's rows sees, if rows are queries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenKeys<'k> {
    begin: Position<'k>,
    end: Val<'k, U32>,
    /// How many.
    count: Val<'k, U32>,
}

impl<'k> SeenKeys<'k> {
    /// Of a query.
    #[track_caller]
    pub(crate) fn of(sight: &Sight<'k>, query: Val<'k, U32>) -> Self {
        let span = sight.keys_of(query);
        let count = match span.begin.is_first() {
            true => span.end,
            false => span.end.minus(span.begin).most(span.begin.constant(0)),
        };
        SeenKeys { begin: span.begin, end: span.end.unsigned(), count: count.unsigned() }
    }

    /// Whether a key is one of them. One comparison is enough for both ends: a key before the first is a huge number.
    #[track_caller]
    pub(crate) fn contains(&self, key: Val<'k, U32>) -> Val<'k, Pred> {
        match self.begin.is_first() {
            true => key.lt(self.count),
            false => (key - self.begin.unsigned()).lt(self.count),
        }
    }

    /// Whether some key of a tile of `columns` keys is none of them, where the first tile starts with the first key.
    #[track_caller]
    pub(crate) fn lacks_some_of(&self, tile: Val<'k, U32>, columns: u32) -> Val<'k, Pred> {
        let behind = self.end.lt((tile + 1) * columns);
        match self.begin.is_first() {
            true => behind,
            false => behind | (tile * columns).lt(self.begin.unsigned()),
        }
    }
}

/// A side of what is seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Behind,
    Before,
}

/// The columns of an accumulator that see one of a thread's rows, if rows are keys.
///
/// Queries before the tensor's first and behind its last are not asked for: the probabilities that statistics give
/// them are zero. Only a band hides queries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeeingColumns<'k> {
    begin: Val<'k, S32>,
    end: Option<Val<'k, S32>>,
}

impl<'k> SeeingColumns<'k> {
    /// Of a key; `first` is the query of the thread's first column.
    #[track_caller]
    pub(crate) fn of(sight: &Sight<'k>, key: Val<'k, U32>, first: Val<'k, U32>) -> Self {
        let (span, first) = (sight.queries_of(key), Position::computed(sight.t, first));
        let begin = if span.begin.is_first() { span.begin } else { span.begin.minus(first) };
        let nobody = sight.t.u32(i32::MAX as u32).cast();
        SeeingColumns {
            begin: sight.is_key(key).select(begin.signed(), nobody),
            end: sight.visibility.left.map(|_| span.end.minus(first).signed()),
        }
    }

    /// Whether a column, counted from the thread's first, is one of them.
    #[track_caller]
    pub(crate) fn contains(&self, column: u32) -> Val<'k, Pred> {
        let begins = self.begin.le(column as i32);
        self.end.map_or(begins, |end| begins & !end.le(column as i32))
    }
}

/// Gives hidden entries of accumulators this value. `sees` says of one of the thread's rows, and of a column counted
/// from its first, whether that entry stays.
#[track_caller]
pub(crate) fn hide<'k>(
    accs: &[&Acc<'k>],
    value: impl Operand<'k, F32> + Copy,
    sees: impl Fn(usize, u32) -> Val<'k, Pred>,
) {
    for (group, register) in (0..accs[0].groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
        let seen = sees(register / 2, (8 * group + register % 2) as u32);
        for acc in accs {
            let cell = acc.at(group, register);
            cell.set(seen.select::<F32>(cell.get(), value));
        }
    }
}

/// The same where rows are queries, and the thread's first column is a key, `first`.
#[track_caller]
pub(crate) fn hide_keys<'k>(
    acc: &Acc<'k>,
    seen: &[SeenKeys<'k>; THREAD_ROWS],
    first: Val<'k, U32>,
    value: impl Operand<'k, F32> + Copy,
) {
    hide(&[acc], value, |row, column| seen[row].contains(first + column));
}

/// The same on one side alone: few tiles of a window have hidden keys on both, and a comparison with a number that is
/// known takes one instruction.
#[track_caller]
pub(crate) fn hide_keys_on<'k>(
    side: Side,
    acc: &Acc<'k>,
    seen: &[SeenKeys<'k>; THREAD_ROWS],
    first: Val<'k, U32>,
    value: impl Operand<'k, F32> + Copy,
) {
    let first = first.cast::<S32>();
    let ends = seen.each_ref().map(|seen| match side {
        Side::Behind => seen.end.cast::<S32>() - first,
        Side::Before => seen.begin.signed() - first,
    });
    hide(&[acc], value, |row, column| {
        let reached = ends[row].le(column as i32);
        if side == Side::Before { reached } else { !reached }
    });
}

/// The same of packed pairs, for each 16 columns four; what is hidden becomes +0, whatever sign it had.
#[track_caller]
pub(crate) fn hide_packed<'k>(words: &[[Var<'k, B32>; 4]], sees: impl Fn(usize, u32) -> Val<'k, Pred>) {
    for (k16, words) in words.iter().enumerate() {
        for (i, word) in words.iter().enumerate() {
            let (group, row) = (2 * k16 + i / 2, i % THREAD_ROWS);
            let seen = [0, 1].map(|x| sees(row, 8 * group as u32 + x));
            let low = seen[0].select::<B32>(0xFFFFu32, 0u32);
            let high = seen[1].select::<B32>(0xFFFF_0000u32, 0u32);
            word.set(word.get() & (low | high));
        }
    }
}
