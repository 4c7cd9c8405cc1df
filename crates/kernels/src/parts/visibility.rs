//! What a query sees, on the GPU: core's [`Visibility`] of numbers that the kernel computes.
//!
//! The builder runs core's lines, which leave instructions. What is known while building leaves none: a band without
//! a left side begins at key 0, to which nothing is added and with which nothing is compared. So a kernel asks for
//! both ends of what is seen, and costs no more than one that had been written for the end alone.
use super::args::{ProblemVals, kernel_args};
use super::sequence::Sequence;
use crate::config::BandKind;
use signflash_core::{Cover, Number, Span, Visibility};
use signflash_ptx::{Arg, Cta, Pred, S32, Thread, U32, Val};

/// A position in a sequence: a number that the kernel computes, if any, and one that is known while building.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position<'k> {
    t: Thread<'k>,
    computed: Option<Val<'k, S32>>,
    known: i32,
}

impl<'k> Position<'k> {
    /// One that is known.
    pub(crate) fn known(t: Thread<'k>, known: i32) -> Self {
        Position { t, computed: None, known }
    }

    /// One that the kernel computes; what lies before the tensor has a negative number.
    pub(crate) fn computed(t: Thread<'k>, value: Val<'k, U32>) -> Self {
        Position { t, computed: Some(value.cast()), known: 0 }
    }

    /// Whether it is known to be the first.
    pub(crate) fn is_first(self) -> bool {
        self.computed.is_none() && self.known == 0
    }

    /// As a number with a sign.
    #[track_caller]
    pub(crate) fn signed(self) -> Val<'k, S32> {
        match self.computed {
            Some(value) if self.known == 0 => value,
            Some(value) if self.known < 0 => value - self.known.wrapping_neg(),
            Some(value) => value + self.known,
            None => self.t.u32(self.known as u32).cast(),
        }
    }

    /// As a number without one: what lies before the tensor is huge.
    #[track_caller]
    pub(crate) fn unsigned(self) -> Val<'k, U32> {
        self.signed().cast()
    }

    #[track_caller]
    fn choose(
        self,
        other: Self,
        known: fn(i32, i32) -> i32,
        computed: fn(Val<'k, S32>, Val<'k, S32>) -> Val<'k, S32>,
    ) -> Self {
        match (self.computed, other.computed) {
            (None, None) => Position { known: known(self.known, other.known), ..self },
            _ => Position { computed: Some(computed(self.signed(), other.signed())), known: 0, ..self },
        }
    }
}

impl Number for Position<'_> {
    fn constant(self, value: i32) -> Self {
        Position::known(self.t, value)
    }

    #[track_caller]
    fn plus(self, other: Self) -> Self {
        let computed = match (self.computed, other.computed) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        Position { computed, known: self.known.wrapping_add(other.known), ..self }
    }

    #[track_caller]
    fn minus(self, other: Self) -> Self {
        let known = self.known.wrapping_sub(other.known);
        let (computed, known) = match (self.computed, other.computed) {
            (a, None) => (a, known),
            (Some(a), Some(b)) => (Some(a - b), known),
            (None, Some(b)) => (Some(Position { known, ..self }.signed() - b), 0),
        };
        Position { computed, known, ..self }
    }

    #[track_caller]
    fn least(self, other: Self) -> Self {
        self.choose(other, i32::min, |a, b| a.min(b))
    }

    #[track_caller]
    fn most(self, other: Self) -> Self {
        self.choose(other, i32::max, |a, b| a.max(b))
    }
}

kernel_args! {
    /// Where the keys that queries see end.
    RightArgs / RightVals {
        /// The last key that query 0 sees: the one that it faces, or as many behind it as the window has. Of packed
        /// sequences, how far behind the one that it faces.
        diagonal: i32,
    }
}

kernel_args! {
    /// Where they begin.
    LeftArgs / LeftVals {
        /// How many keys a query sees before its last.
        before: i32,
    }
}

/// The band of keys that queries see, where they do not see all. The window's right side is part of the diagonal, so
/// that any right side is as cheap as that of causal attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BandArgs {
    pub(crate) right: RightArgs,
    pub(crate) left: Option<LeftArgs>,
}

/// The same on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BandVals<'k> {
    right: RightVals<'k>,
    left: Option<LeftVals<'k>>,
}

impl BandArgs {
    pub(crate) fn push(self, args: &mut Vec<Arg>) {
        self.right.push(args);
        if let Some(left) = self.left {
            left.push(args);
        }
    }
}

impl<'k> BandVals<'k> {
    /// Of a kernel that is built for so many sides; none if it sees all keys.
    pub(crate) fn declare(cta: Cta<'k>, kind: BandKind) -> Option<Self> {
        let both = match kind {
            BandKind::Full => return None,
            BandKind::Right => false,
            BandKind::Both => true,
        };
        Some(BandVals { right: RightVals::declare(cta), left: both.then(|| LeftVals::declare(cta)) })
    }
}

/// The last key that query 0 of a sequence sees; of packed ones the last query faces the last key.
#[track_caller]
fn diagonal<'k>(sequence: Sequence<'k>, band: BandVals<'k>) -> Val<'k, U32> {
    match sequence.packed {
        None => band.right.diagonal.cast(),
        Some(_) => sequence.seqlen_k - sequence.seqlen_q + band.right.diagonal.cast::<U32>(),
    }
}

/// The keys of a sequence that some query may see, whatever the band says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenRange<'k> {
    /// The first, if it is not key 0.
    pub(crate) begin: Option<Val<'k, U32>>,
    /// Behind the last.
    pub(crate) end: Val<'k, U32>,
    /// Whether some between them are hidden, if that is known.
    pub(crate) has_holes: Option<Val<'k, Pred>>,
}

/// What the queries of a sequence see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight<'k> {
    pub(super) t: Thread<'k>,
    pub(super) visibility: Visibility<Position<'k>>,
    /// What else hides keys.
    range: Option<SeenRange<'k>>,
    /// How many rows, and columns, the first tile starts before the tensor.
    shifts: [Val<'k, U32>; 2],
}

impl<'k> Sight<'k> {
    /// Of a sequence, as far as a band says.
    pub(crate) fn new(
        t: Thread<'k>,
        problem: &ProblemVals<'k>,
        sequence: Sequence<'k>,
        band: Option<BandVals<'k>>,
    ) -> Self {
        let computed = |value| Position::computed(t, value);
        let visibility = Visibility {
            left: band.and_then(|band| band.left).map(|left| computed(left.before.cast())),
            right: band.map(|_| Position::known(t, 0)),
            diagonal: band.map_or(Position::known(t, 0), |band| computed(diagonal(sequence, band))),
            queries: computed(sequence.seqlen_q),
            keys: computed(sequence.seqlen_k),
        };
        let shifts = [problem.row_shift, problem.column_shift];
        Sight { t, visibility, range: None, shifts }
    }

    /// The same where keys outside of a range, if there is one, are not looked at.
    pub(crate) fn within(self, range: Option<SeenRange<'k>>) -> Self {
        let Some(SeenRange { end, .. }) = range else { return self };
        let keys = Position::computed(self.t, end);
        Sight { visibility: Visibility { keys, ..self.visibility }, range, ..self }
    }

    /// The keys that a query sees; those of rows before the first and behind the last are what they would be.
    #[track_caller]
    pub(crate) fn keys_of(&self, query: Val<'k, U32>) -> Span<Position<'k>> {
        self.visibility.keys_of(Position::computed(self.t, query))
    }

    /// Whether this is a key of the sequence.
    #[track_caller]
    pub(super) fn is_key(&self, key: Val<'k, U32>) -> Val<'k, Pred> {
        key.lt(self.visibility.keys.unsigned())
    }

    /// The queries that see a key.
    #[track_caller]
    pub(crate) fn queries_of(&self, key: Val<'k, U32>) -> Span<Position<'k>> {
        self.visibility.queries_of(Position::computed(self.t, key))
    }

    /// The tiles of `columns` keys that a tile of queries, `rows` from `first` on, has to look at.
    #[track_caller]
    pub(crate) fn key_tiles(&self, first: Val<'k, U32>, rows: u32, columns: u32) -> KeyTiles<'k> {
        let (first, shift) = (Position::computed(self.t, first), self.shifts[1]);
        let one = first.constant(1);
        let last = first.plus(first.constant(rows as i32 - 1)).least(self.visibility.queries.minus(one));
        let Cover { some, all } = self.visibility.keys_of_all(first, last);
        let seen = some.end.unsigned();
        let end = (seen + shift + (columns - 1)) / columns;
        let begin = self.tile_of(some.begin, shift, columns);
        KeyTiles {
            begin: self
                .first_key_tile(columns)
                .map_or(begin, |first| begin.most(Position::computed(self.t, first))),
            end: seen.eq(0).select(0u32, end),
            all: Span { begin: self.shifted(all.begin, shift), end: all.end.unsigned() + shift },
            columns,
        }
    }

    /// The tiles of `rows` queries that a tile of keys, so many from `first` on, has to look at.
    #[track_caller]
    pub(crate) fn query_tiles(&self, first: Val<'k, U32>, keys: u32, rows: u32) -> QueryTiles<'k> {
        let (first, shift) = (Position::computed(self.t, first), self.shifts[0]);
        let has_left = self.visibility.left.is_some();
        let last = first.plus(first.constant(keys as i32 - 1));
        // Without a left side queries have no end that depends on the last key.
        let last = if has_left { last.least(self.visibility.keys.minus(first.constant(1))) } else { last };
        let Cover { some, .. } = self.visibility.queries_of_all(first, last);
        let seeing = some.end.unsigned();
        let end = (seeing + shift + (rows - 1)) / rows;
        let end = if has_left { seeing.eq(0).select(0u32, end) } else { end };
        let end = match self.range {
            Some(SeenRange { begin, end: range_end, .. }) => {
                let (first, behind) = (first.signed(), first.plus(first.constant(keys as i32)).signed());
                let ends = !range_end.cast::<S32>().le(first);
                let begins = begin.map(|begin| !behind.le(begin.cast::<S32>()));
                begins.map_or(ends, |begins| begins & ends).select(end, 0u32)
            }
            None => end,
        };
        let begin = self.tile_of(some.begin, shift, rows);
        let begin = if begin.is_first() { begin } else { begin.least(Position::computed(self.t, end)) };
        QueryTiles { begin: begin.unsigned(), end }
    }

    /// The first tile of `keys` keys that some query may see, if it is not tile 0.
    #[track_caller]
    pub(crate) fn first_key_tile(&self, keys: u32) -> Option<Val<'k, U32>> {
        let begin = self.range.and_then(|range| range.begin)?;
        Some((begin + self.shifts[1]) / keys)
    }

    /// Of the tiles of `keys` keys whose [`query_tiles`](Self::query_tiles) have the tile of queries that ends with
    /// `last_query`, the last one; if there is any.
    #[track_caller]
    pub(crate) fn last_key_tile(&self, last_query: Val<'k, U32>, keys: u32) -> Val<'k, U32> {
        (self.keys_of(last_query).end.unsigned() + self.shifts[1] - 1) / keys
    }

    /// Whether something is hidden in a tile of `queries` and `keys`, so many from the first of each on.
    #[track_caller]
    pub(crate) fn hides_some_of(
        &self,
        [first_query, first_key]: [Val<'k, U32>; 2],
        [queries, keys]: [u32; 2],
    ) -> Val<'k, Pred> {
        let first = Position::computed(self.t, first_query);
        let Cover { all, .. } =
            self.visibility.keys_of_all(first, first.plus(first.constant(queries as i32 - 1)));
        let (key, behind) = (first_key.cast::<S32>(), (first_key + keys).cast::<S32>());
        all.end.signed().lt(behind) | key.lt(all.begin.signed())
    }

    /// In which tile of so many a position is.
    #[track_caller]
    fn tile_of(&self, at: Position<'k>, shift: Val<'k, U32>, size: u32) -> Position<'k> {
        match at.is_first() {
            true => at, // the first tile starts before the tensor, but not a tile before it
            false => Position::computed(self.t, (at.unsigned() + shift) / size),
        }
    }

    /// A position as the first tile counts them, which starts `shift` before the tensor.
    #[track_caller]
    fn shifted(&self, at: Position<'k>, shift: Val<'k, U32>) -> Val<'k, U32> {
        if at.is_first() { shift } else { at.unsigned() + shift }
    }
}

/// The tiles of keys that a tile of queries looks at, and which of them have nothing to hide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyTiles<'k> {
    /// The first one.
    pub(crate) begin: Position<'k>,
    /// Behind the last one.
    pub(crate) end: Val<'k, U32>,
    /// The columns that every query sees, counted from the first tile's first.
    all: Span<Val<'k, U32>>,
    columns: u32,
}

impl<'k> KeyTiles<'k> {
    /// Whether some column of a tile is hidden from some query: before or behind what it sees.
    #[track_caller]
    pub(crate) fn is_edge(&self, tile: Val<'k, U32>) -> Val<'k, Pred> {
        let [behind, before] = self.edges(tile);
        behind | before
    }

    /// The same of what lies behind, and of what lies before.
    #[track_caller]
    pub(crate) fn edges(&self, tile: Val<'k, U32>) -> [Val<'k, Pred>; 2] {
        let first = tile * self.columns;
        [self.all.end.lt(first + self.columns), first.lt(self.all.begin)]
    }
}

/// The tiles of queries that a tile of keys looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryTiles<'k> {
    /// The first one.
    pub(crate) begin: Val<'k, U32>,
    /// Behind the last one.
    pub(crate) end: Val<'k, U32>,
}

#[cfg(test)]
mod tests;
