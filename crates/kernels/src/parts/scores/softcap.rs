//! tanh of scores that a softcap bends.
//!
//! The hardware's own tanh is too coarse: 2^-11 of a tanh is 0.02 of a score at a softcap of 50. `ex2` and `rcp` make one
//! that is exact to 1.2e-7, for two operations of the unit that makes exponentials, too, and is what limits a softmax.
//! But scores are seldom near their cap. Up to 0.65 of it tanh is an odd polynomial of five terms, for six multiplications
//! a score. So a warp looks whether all scores of a tile are so small, and takes the other way only if not.
use super::cells;
use crate::parts::args::kernel_args;
use signflash_core::Problem;
use signflash_ptx::{Acc, F32, Pred, Val, Warp};
use std::f64::consts::LOG2_E;

kernel_args! {
    /// What a softcap does.
    SoftcapArgs / SoftcapVals {
        /// What a tanh is multiplied by: the cap, in base 2 unless something is added then.
        cap: f32,
        /// What a product is multiplied by to become twice the tanh's argument in base 2.
        rate_log2: f32,
        /// Coefficients of the polynomial in the product: of its first, third, and so on power.
        first: f32,
        third: f32,
        fifth: f32,
        seventh: f32,
        ninth: f32,
        /// Where squares of products add up to less, the polynomial is good for each.
        small_squares: f32,
    }
}

/// Up to where the polynomial is good.
const SMALL: f64 = 0.65;

/// tanh(x) / x by powers of x^2, of all such polynomials the one whose largest relative error up to [`SMALL`] is least:
/// 1.6e-7.
const COEFFICIENTS: [f64; 5] = [
    0.9999998464552131,
    -0.33331500190999785,
    0.13297873742564958,
    -0.051517916402889045,
    0.014625085510706326,
];

/// Groups of eight columns whose squares are added up together.
const GROUPS: usize = 4;

impl SoftcapArgs {
    /// Of a problem, if it has a softcap.
    pub(crate) fn of(problem: &Problem) -> Option<Self> {
        let adds = problem.alibi().is_some() || problem.bias().is_some();
        let cap = problem.softcap()?;
        let rate = problem.softmax_scale() / cap;
        let largest = f64::from(f32::MAX);
        let [first, third, fifth, seventh, ninth] =
            [0, 1, 2, 3, 4].map(|i| (COEFFICIENTS[i] * rate.powi(2 * i as i32 + 1)) as f32);
        // A coefficient that is no normal number of 32 bits would not be what it is.
        let is_good = rate == 0.0 || (ninth.is_normal() && first.is_normal());
        let small_squares = if is_good { (SMALL / rate).powi(2).min(largest) as f32 } else { 0.0 };
        Some(SoftcapArgs {
            cap: if adds { cap } else { cap * LOG2_E }.min(largest) as f32,
            rate_log2: (2.0 * LOG2_E * rate).clamp(-largest, largest) as f32,
            first,
            third,
            fifth,
            seventh,
            ninth,
            small_squares,
        })
    }
}

impl<'k> SoftcapVals<'k> {
    /// Products become the tanh of what is left of them, in place.
    pub(super) fn tanh(&self, warp: Warp<'k>, s: &Acc<'k>) {
        let is_large = warp.any(self.some_may_be_large(s));
        warp.when_else(
            is_large,
            |_| cells(s).for_each(|(_, x)| x.set(self.by_exponential(x.get()))),
            |_| cells(s).for_each(|(_, x)| x.set(self.by_polynomial(x.get()))),
        );
    }

    /// Whether, of some of the thread's products, squares add up to as much as one that is not small would.
    fn some_may_be_large(&self, s: &Acc<'k>) -> Val<'k, Pred> {
        let mut sums: Vec<Val<'k, F32>> = vec![];
        for ([group, _], x) in cells(s) {
            let x = x.get();
            match sums.get_mut(group / GROUPS) {
                Some(sum) => *sum = x.mul_add(x, *sum),
                None => sums.push(x * x),
            }
        }
        // A NaN is not less.
        let large = sums.into_iter().map(|sum| !sum.lt(self.small_squares));
        large.reduce(|a, b| a | b).expect("an accumulator has columns")
    }

    fn by_polynomial(&self, x: Val<'k, F32>) -> Val<'k, F32> {
        let square = x * x;
        let powers = [self.seventh, self.fifth, self.third, self.first];
        x * powers.into_iter().fold(self.ninth, |sum, coefficient| sum.mul_add(square, coefficient))
    }

    /// 1 - 2 / (exp(2 x) + 1).
    fn by_exponential(&self, x: Val<'k, F32>) -> Val<'k, F32> {
        let exponential = (x * self.rate_log2).ex2();
        (exponential + 1.0).rcp().mul_add(-2.0, 1.0)
    }
}
