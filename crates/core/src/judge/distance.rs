//! How far a tensor is from what it should be, and how far it may be.

/// Rounding alone may be exceeded by this factor: implementations round elsewhere, too.
const ROUNDINGS: f64 = 1.25;
/// Fewer numbers than these average badly, and their bound is multiplied by so much.
const FEW: [(u64, f64); 2] = [(128, 2.0), (512, 1.25)];

/// The distance of a result, or of a piece of one, from the oracle's, and what it is judged by. Those of pieces
/// [`merge`](Self::merge) into that of the whole.
///
/// ```
/// use signflash_core::{Bounds, Dtype, judge::Distance};
/// let bound = Bounds::of(Dtype::F32).out;
/// let distance = Distance::between([(3.0, 3.0), (4.0000001, 4.0)], bound);
/// assert!((distance.error() - 2e-8).abs() < 1e-12 && distance.is_right());
/// assert!(!Distance::between([(3.0, 3.0), (4.1, 4.0)], bound).is_right());
/// assert!(!Distance::between([(f64::NAN, 3.0)], bound).is_right());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// The sum of the squares of the differences of what is finite.
    pub(super) difference: f64,
    /// How many are NaN, infinite or not exactly 0 against the oracle.
    pub(super) special: u64,
    /// Squared norms.
    pub(super) oracle: f64,
    pub(super) terms: f64,
    pub(super) rounding: f64,
    pub(super) numbers: u64,
    /// The contract's.
    pub(super) bound: f64,
}

impl Distance {
    /// The distance of numbers from others without any more knowledge: relative to the others alone. Two NaNs, and
    /// equal infinities, are no distance.
    pub fn between(pairs: impl IntoIterator<Item = (f64, f64)>, bound: f64) -> Self {
        let mut distance = Self { bound, ..Self::default() };
        for (got, want) in pairs {
            distance.numbers += 1;
            distance.add(got, want);
            distance.oracle += if want.is_finite() { want * want } else { 0.0 };
        }
        distance
    }

    /// Counts a difference, but nothing that it is relative to.
    pub(super) fn add(&mut self, got: f64, want: f64) {
        if got.is_finite() && want.is_finite() {
            self.difference += (got - want) * (got - want);
        } else if !(got == want || got.is_nan() && want.is_nan()) {
            self.special += 1;
        }
    }

    /// The distance of two pieces together.
    pub fn merge(self, other: Self) -> Self {
        Self {
            difference: self.difference + other.difference,
            special: self.special + other.special,
            oracle: self.oracle + other.oracle,
            terms: self.terms + other.terms,
            rounding: self.rounding + other.rounding,
            numbers: self.numbers + other.numbers,
            bound: self.bound.max(other.bound),
        }
    }

    /// The same between two results that each may be off by the bound.
    pub fn of_two_results(self) -> Self {
        Self { bound: 2.0 * self.bound, rounding: 4.0 * self.rounding, ..self }
    }

    /// What the error is relative to.
    fn scale(&self) -> f64 {
        self.oracle.sqrt().max(self.terms.sqrt() / 2.0)
    }

    /// The relative error; 0 if nothing differs, infinite if something is NaN, infinite or not 0 where it must not be.
    pub fn error(&self) -> f64 {
        match (self.special, self.difference) {
            (1.., _) => f64::INFINITY,
            (_, 0.0) => 0.0,
            _ => self.difference.sqrt() / self.scale(),
        }
    }

    /// The largest [`error`](Self::error) that is right.
    pub fn bound(&self) -> f64 {
        let few = FEW.into_iter().find(|(numbers, _)| self.numbers < *numbers);
        let bound = self.bound * few.map_or(1.0, |(_, factor)| factor);
        let rounding = ROUNDINGS * self.rounding.sqrt();
        let scale = self.scale();
        if rounding == 0.0 || scale == 0.0 { bound } else { bound.max(rounding / scale) }
    }

    /// Whether the error is within the bound.
    pub fn is_right(&self) -> bool {
        self.error() <= self.bound()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(pairs: &[(f64, f64)]) -> f64 {
        Distance::between(pairs.iter().copied(), 1e-6).error()
    }

    #[test]
    fn equal_infinities_are_no_distance_and_unequal_ones_are_infinite() {
        let inf = f64::INFINITY;
        assert_eq!(error(&[(-inf, -inf), (1.0, 1.0)]), 0.0);
        assert_eq!(error(&[(f64::NAN, f64::NAN)]), 0.0);
        assert_eq!(error(&[(0.0, -inf), (1.0, 1.0)]), inf);
        assert_eq!(error(&[(f64::NAN, 1.0)]), inf);
        assert_eq!(error(&[(0.0, 0.0)]), 0.0);
        assert_eq!(error(&[(1.0, 0.0)]), inf);
    }

    #[test]
    fn the_distance_is_relative_and_of_frobenius() {
        assert!((error(&[(3.0, 0.0), (4.0, 4.0), (0.0, 3.0)]) - (18f64 / 25.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn what_is_special_is_wrong_whatever_rounding_does() {
        let special = Distance { rounding: 1.0, special: 1, bound: 1e-6, ..Distance::default() };
        assert!(!special.is_right());
        assert!(!Distance { rounding: 1.0, difference: 1.0, bound: 1e-6, ..Distance::default() }.is_right());
    }

    #[test]
    fn pieces_merge_into_the_whole() {
        let pairs = [(3.0, 1.0), (4.0, 4.5), (f64::INFINITY, f64::INFINITY), (0.5, 0.25)];
        let (first, second) = pairs.split_at(1);
        let [whole, first, second] =
            [&pairs[..], first, second].map(|pairs| Distance::between(pairs.iter().copied(), 1e-6));
        assert_eq!(first.merge(second), whole);
        assert_eq!(whole.merge(Distance::default()), whole);
    }
}
