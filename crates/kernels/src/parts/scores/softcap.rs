//! tanh of scores that a softcap bends.
//!
//! The hardware's own tanh is too coarse: 2^-11 of a tanh is 0.02 of a score at a softcap of 50. `ex2` and `rcp` make one
//! that is exact to 1.2e-7, for two operations of the unit that makes exponentials, too, and is what limits a softmax.
//! But scores are seldom near their cap. Up to 0.65 of it tanh is an odd polynomial of five terms, for six multiplications
//! a score. So a warp looks whether all scores of a tile are so small, and takes the other way only if not.
//!
//! Up to 0.22 three terms do. Where they are part of a weight's exponent (`folded.rs`), they are powers of what a square lacks
//! of the largest that they are good for: its sign says whether they are.
use super::cells;
use crate::parts::args::kernel_args;
use signflash_core::Problem;
use signflash_ptx::{Acc, B32, F32, Pred, U32, Val, Warp};
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
        /// Minus the square up to which a product may be weighed as it is; and a number that with no square of a tanh gets a sign
        /// of plus. Where weighing so is never good both are 1.
        near_square: f32,
        near_tanh: f32,
        /// Coefficients of a weight's exponent by a product, by powers of its square less that one.
        near_first: f32,
        near_third: f32,
        near_fifth: f32,
        /// The product up to which that is so, or less than 0; and the slope of the score there: coefficients by powers of the same.
        near_most: f32,
        slope: f32,
        slope_third: f32,
        /// What stands for a hidden tanh: so far below -1 that its weight is 0.
        hidden: f32,
    }
}

/// tanh(x) / x by powers of x^2: of all such polynomials the one whose largest relative error up to a bound is least. The
/// first is good for 1.6e-7, the others, of fewer terms, for 1.9e-7 and 2.7e-7; they also serve where cap is so large that
/// higher powers leave the numbers of 32 bits.
const POLYNOMIALS: [(f64, [f64; 5]); 3] = [
    (
        0.65,
        [
            0.9999998464552131,
            -0.33331500190999785,
            0.13297873742564958,
            -0.051517916402889045,
            0.014625085510706326,
        ],
    ),
    (0.22, [0.9999998146083878, -0.33326424431851006, 0.12950108451575013, 0.0, 0.0]),
    (9e-4, [1.0, 0.0, 0.0, 0.0, 0.0]),
];

/// 1 - tanh(x)^2 is 1 less this times x^2, up to the second of the bounds above, but for 2.7e-4 of it: a slope is a factor of what is
/// rounded to 16 bits. Small scores have the least error.
const SLOPE: f64 = 0.97327;

/// The largest number that stands for a hidden tanh; its square is one, too.
const MOST_HIDDEN: f64 = 1e18;

/// Groups of eight columns whose squares are added up together.
const GROUPS: usize = 4;

impl SoftcapArgs {
    /// Of a problem, if it has a softcap.
    pub(crate) fn of(problem: &Problem) -> Option<Self> {
        let adds = problem.alibi().is_some() || problem.bias().is_some();
        let cap = problem.softcap()?;
        let rate = problem.softmax_scale() / cap;
        let (largest, cap_log2) = (f64::from(f32::MAX), cap * LOG2_E);
        let (small, [first, third, fifth, seventh, ninth]) = of_powers(rate, POLYNOMIALS);
        let (near, near_coefficients) = near_polynomial(rate, cap_log2);
        let least_hidden = (1024.0 / cap_log2).max(4.0);
        let can_hide = least_hidden <= MOST_HIDDEN;
        let squares = |most: f64| (most / rate).powi(2).min(1e36) as f32;
        let [near_first, near_third, near_fifth] = near_coefficients;
        let slope_third = (-SLOPE * rate * rate) as f32;
        Some(SoftcapArgs {
            near_most: if near > 0.0 { (near / rate).abs().min(1e18) as f32 } else { -1.0 },
            slope: (1.0 - SLOPE * near * near) as f32,
            slope_third: if slope_third.is_normal() { slope_third } else { 0.0 },
            near_square: if can_hide && near > 0.0 { -squares(near) } else { 1.0 },
            near_tanh: if can_hide { -f32::MAX } else { 1.0 },
            near_first,
            near_third,
            near_fifth,
            hidden: -least_hidden.min(MOST_HIDDEN) as f32,
            small_squares: if small > 0.0 { squares(small) } else { 0.0 },
            cap: if adds { cap } else { cap_log2 }.min(largest) as f32,
            rate_log2: (2.0 * LOG2_E * rate).clamp(-largest, largest) as f32,
            first,
            third,
            fifth,
            seventh,
            ninth,
        })
    }
}

/// The first polynomial whose coefficients, those of a product's first, third, and so on power, are numbers of 32 bits; and up
/// to where it is good, which is nowhere if there is none.
fn of_powers<const N: usize>(
    rate: f64,
    polynomials: impl IntoIterator<Item = (f64, [f64; N])>,
) -> (f64, [f32; N]) {
    let of_rate = |(most, coefficients): (f64, [f64; N])| {
        let mut power = 1.0 / rate;
        let by_rate = coefficients.map(|coefficient| {
            power *= rate * rate;
            coefficient * power
        });
        (most, by_rate)
    };
    let is_number = |x: f64| x == 0.0 || ((x as f32).is_normal() && x.abs() < 1e30);
    let mut all = polynomials.into_iter().map(of_rate);
    let found = all.find(|(_, coefficients)| coefficients.iter().all(|x| is_number(*x)));
    found.map_or((0.0, [0.0; N]), |(most, coefficients)| (most, coefficients.map(|x| x as f32)))
}

/// The same of a weight's exponent, once squares are counted from the largest.
fn near_polynomial(rate: f64, cap_log2: f64) -> (f64, [f32; 3]) {
    let [_, near, linear] = POLYNOMIALS;
    let counted = |(most, [a, b, c, ..]): (f64, [f64; 5])| {
        let z = most * most;
        (most, [a + z * (b + z * c), b + 2.0 * z * c, c].map(|x| cap_log2 * x))
    };
    of_powers(rate, [near, linear].map(counted))
}

/// How a step's numbers are weighed: products, or what has become a tanh already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near<'k> {
    square: Val<'k, F32>,
    first: Val<'k, F32>,
    third: Val<'k, F32>,
    fifth: Val<'k, F32>,
}

impl<'k> Near<'k> {
    /// What a number is multiplied by, and bits whose first is a sign unless it is too large.
    pub(super) fn rate(&self, x: Val<'k, F32>) -> (Val<'k, F32>, Val<'k, B32>) {
        let less = x.mul_add(x, self.square);
        (less.mul_add(less.mul_add(self.fifth, self.third), self.first), less.cast())
    }

    /// What stands for a hidden tanh becomes -inf.
    pub(super) fn unmark_hidden(s: &Acc<'k>) {
        for (_, x) in cells(s) {
            let x_now = x.get();
            x.set(x_now.lt(-2.0).select::<F32>(f32::NEG_INFINITY, x_now));
        }
    }
}

/// How products of a step become weights, and what slope their scores have, if all are near enough to 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct NearGradients<'k> {
    near: Near<'k>,
    slope: Val<'k, F32>,
    slope_third: Val<'k, F32>,
}

impl<'k> NearGradients<'k> {
    /// An exponent of 2.
    pub(super) fn exponent(&self, x: Val<'k, F32>, shift: Val<'k, F32>) -> Val<'k, F32> {
        x.mul_add(self.near.rate(x).0, shift)
    }

    /// How fast a score grows with its product, but for softmax_scale.
    pub(super) fn slope(&self, x: Val<'k, F32>) -> Val<'k, F32> {
        x.mul_add(x, self.near.square).mul_add(self.slope_third, self.slope)
    }
}

impl<'k> SoftcapVals<'k> {
    /// Whether all of a warp's products are near enough to 0.
    pub(super) fn are_near(&self, warp: Warp<'k>, s: &Acc<'k>) -> Val<'k, Pred> {
        let larger = |a: Val<'k, F32>, b: Val<'k, F32>| a.max(b);
        let mut most: Vec<Val<'k, F32>> = vec![];
        for ([group, _], x) in cells(s) {
            let x = x.get().abs();
            match most.get_mut(group / GROUPS) {
                Some(most) => *most = larger(*most, x),
                None => most.push(x),
            }
        }
        // A NaN counts as near: it stays one.
        let most = most.into_iter().reduce(larger).expect("an accumulator has columns");
        !warp.any(self.near_most.lt(most))
    }

    /// Of products that are.
    pub(super) fn near_gradients(&self, warp: Warp<'k>) -> NearGradients<'k> {
        let apart = self.apart(warp);
        let (square, first, fifth) = (self.near_square, self.near_first, self.near_fifth);
        let near = Near { square, first, third: apart(self.near_third), fifth };
        NearGradients { near, slope: apart(self.slope), slope_third: self.slope_third }
    }

    /// An instruction takes one number that all lanes share: a second, if ptxas knows it as such, is moved once a score. So
    /// lanes choose it, each for itself: none adds up to this with a negative float.
    fn apart(&self, warp: Warp<'k>) -> impl Fn(Val<'k, F32>) -> Val<'k, F32> + use<'k> {
        let lane = warp.threads().lane();
        let always = (lane + self.hidden.cast::<U32>()).ne(u32::MAX);
        move |number| always.select::<F32>(number, 0.0)
    }

    /// Of a step whose numbers are a tanh, or not.
    pub(super) fn near(&self, warp: Warp<'k>, are_tanh: Val<'k, Pred>) -> Near<'k> {
        let apart = self.apart(warp);
        Near {
            square: are_tanh.select(self.near_tanh, self.near_square),
            first: are_tanh.select(self.cap, self.near_first),
            third: apart(are_tanh.select(0.0, self.near_third)),
            fifth: are_tanh.select(0.0, self.near_fifth),
        }
    }

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
