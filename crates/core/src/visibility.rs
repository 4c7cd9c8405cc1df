//! Which keys a query sees.
//!
//! Everything that asks this asks here: the oracle, the suite, the CPU's engine, the planning of GPU kernels and the
//! kernels themselves, whose builder runs the same lines on numbers of the GPU (see [`Number`]).

use std::ops::Range;

/// Whole numbers with a sign: what positions are counted in.
///
/// Besides `i64`, numbers that exist only while a GPU kernel runs are such numbers. That is why nothing here
/// compares: what is built for a kernel cannot branch on what it will compute.
pub trait Number: Copy {
    /// This constant, in the place where `self` lives.
    fn constant(self, value: i32) -> Self;
    /// `self + other`.
    fn plus(self, other: Self) -> Self;
    /// `self - other`.
    fn minus(self, other: Self) -> Self;
    /// The smaller one.
    fn least(self, other: Self) -> Self;
    /// The larger one.
    fn most(self, other: Self) -> Self;
}

impl Number for i64 {
    fn constant(self, value: i32) -> Self {
        value.into()
    }

    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }

    fn minus(self, other: Self) -> Self {
        self.saturating_sub(other)
    }

    fn least(self, other: Self) -> Self {
        self.min(other)
    }

    fn most(self, other: Self) -> Self {
        self.max(other)
    }
}

/// Neighbouring positions, from `begin` up to and without `end`; none if `begin` is not below `end`.
///
/// Both sides travel together: whoever takes a span apart has both in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<N> {
    /// The first position.
    pub begin: N,
    /// One behind the last position.
    pub end: N,
}

impl Span<i64> {
    /// Whether there is no position.
    pub const fn is_empty(self) -> bool {
        self.begin >= self.end
    }

    /// Whether this position is one of them.
    pub const fn contains(self, position: i64) -> bool {
        self.begin <= position && position < self.end
    }

    /// The positions, of which none is below zero.
    ///
    /// ```
    /// use signflash_core::Span;
    /// assert_eq!(Span { begin: 2, end: 5 }.positions(), 2..5);
    /// assert!(Span { begin: 5, end: 2 }.positions().is_empty());
    /// ```
    ///
    /// # Panics
    /// If a position is below zero.
    pub fn positions(self) -> Range<usize> {
        if self.is_empty() {
            return 0..0;
        }
        let position = |x: i64| usize::try_from(x).expect("a position is not below zero");
        position(self.begin)..position(self.end)
    }
}

/// Of several neighbouring queries, the keys; or of several neighbouring keys, the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover<N> {
    /// Those that some of them see. Nothing outside needs to be computed.
    pub some: Span<N>,
    /// Those that all of them see. Nothing inside needs to be hidden.
    pub all: Span<N>,
}

/// A band of keys around the diagonal of one sequence.
///
/// Query `i` faces key `i + diagonal`, and sees the keys from `left` before it to `right` behind it, as far as there
/// are keys. A side that is `None` has no bound. Causal attention is `right = 0`, and its diagonal is
/// `keys - queries`, so that the last query faces the last key, as in FlashAttention-2.
///
/// ```
/// use signflash_core::{Span, Visibility};
/// let causal = Visibility { left: None, right: Some(0), diagonal: 1, queries: 3, keys: 4 };
/// assert_eq!(causal.keys_of(0), Span { begin: 0, end: 2 });
/// assert_eq!(causal.queries_of(3), Span { begin: 2, end: 3 });
/// let window = Visibility { left: Some(1), right: Some(1), ..causal };
/// assert_eq!(window.keys_of(2), Span { begin: 2, end: 4 }); // key 3, the one before, and nothing behind it
/// let cover = window.keys_of_all(0, 1);
/// assert_eq!((cover.some, cover.all), (Span { begin: 0, end: 4 }, Span { begin: 1, end: 3 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visibility<N> {
    /// How many keys before the diagonal one a query sees at most.
    pub left: Option<N>,
    /// How many keys behind the diagonal one a query sees at most.
    pub right: Option<N>,
    /// The key that query 0 faces; any sign.
    pub diagonal: N,
    /// Number of queries.
    pub queries: N,
    /// Number of keys.
    pub keys: N,
}

impl<N: Number> Visibility<N> {
    /// The keys that a query sees. A span that is not empty lies within the keys.
    pub fn keys_of(&self, query: N) -> Span<N> {
        let (facing, zero) = (query.plus(self.diagonal), query.constant(0));
        Span {
            begin: self.left.map_or(zero, |left| facing.minus(left).most(zero)),
            end: self.right.map_or(self.keys, |right| {
                // The least first: a GPU has an instruction for a sum, another's least and zero's most, in this order.
                facing.plus(right).plus(query.constant(1)).least(self.keys).most(zero)
            }),
        }
    }

    /// The queries that see a key: the inverse of [`keys_of`](Self::keys_of).
    pub fn queries_of(&self, key: N) -> Span<N> {
        self.transposed().keys_of(key)
    }

    /// What the queries from `first` to `last`, which is one of them, see.
    pub fn keys_of_all(&self, first: N, last: N) -> Cover<N> {
        // Both ends grow with the query.
        let (first, last) = (self.keys_of(first), self.keys_of(last));
        Cover {
            some: Span { begin: first.begin, end: last.end },
            all: Span { begin: last.begin, end: first.end },
        }
    }

    /// Who sees the keys from `first` to `last`, which is one of them.
    pub fn queries_of_all(&self, first: N, last: N) -> Cover<N> {
        self.transposed().keys_of_all(first, last)
    }

    /// The same band, where keys ask for queries.
    fn transposed(&self) -> Self {
        Self {
            left: self.right,
            right: self.left,
            diagonal: self.diagonal.constant(0).minus(self.diagonal),
            queries: self.keys,
            keys: self.queries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, entry by entry.
    fn sees(band: &Visibility<i64>, i: i64, j: i64) -> bool {
        let behind = j - (i + band.diagonal);
        band.left.is_none_or(|left| -behind <= left) && band.right.is_none_or(|right| behind <= right)
    }

    /// Every band of up to five queries and keys, with every diagonal that makes a difference, and some.
    fn bands() -> impl Iterator<Item = Visibility<i64>> {
        let sides = || std::iter::once(None).chain((0..7).map(Some));
        (0..=5).flat_map(move |queries| {
            (0..=5).flat_map(move |keys| {
                (-7..=7).flat_map(move |diagonal| {
                    sides().flat_map(move |left| {
                        sides().map(move |right| Visibility { left, right, diagonal, queries, keys })
                    })
                })
            })
        })
    }

    #[test]
    fn keys_of_a_query_and_queries_of_a_key_are_the_definition() {
        for band in bands() {
            for i in 0..band.queries {
                for j in 0..band.keys {
                    let expected = sees(&band, i, j);
                    assert_eq!(band.keys_of(i).contains(j), expected, "{band:?}, query {i}, key {j}");
                    assert_eq!(band.queries_of(j).contains(i), expected, "{band:?}, query {i}, key {j}");
                }
                let Span { begin, end } = band.keys_of(i);
                assert!(begin >= end || (begin >= 0 && end <= band.keys), "{band:?}, query {i}");
            }
        }
    }

    #[test]
    fn a_cover_is_the_union_and_the_intersection() {
        for band in bands() {
            for first in 0..band.queries {
                for last in first..band.queries {
                    let cover = band.keys_of_all(first, last);
                    for j in 0..band.keys {
                        let all = (first..=last).all(|i| sees(&band, i, j));
                        assert_eq!(
                            cover.all.contains(j),
                            all,
                            "{band:?}, queries {first} to {last}, key {j}"
                        );
                        let some = (first..=last).any(|i| sees(&band, i, j));
                        assert!(
                            cover.some.contains(j) || !some,
                            "{band:?}, queries {first} to {last}, key {j}"
                        );
                    }
                    // The hull may hold keys that nobody sees only where some of the queries see nothing.
                    let blind = (first..=last).any(|i| band.keys_of(i).is_empty());
                    let seen = |j| (first..=last).any(|i| sees(&band, i, j));
                    assert!(blind || cover.some.positions().all(|j| seen(j as i64)), "{band:?}");
                }
            }
        }
    }
}
