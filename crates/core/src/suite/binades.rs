//! Scores of every size that f32 has.
//!
//! Products `<q, k>` of these operands are `2^b (1 + n 2^-20)` with small whole n, their partial sums too: every
//! order of additions gives them exactly, so nothing but the implementation's way from products to weights is left to
//! round. Where scores are small a row's weights are nearly the same, between 2^16 and 2^26 they are soft, beyond
//! only the keys of the largest n count, which are several. In one head scores are positive, in the other negative,
//! and in one row all are the same. Or only one query has such scores, and what the others give is not touched by
//! what becomes of it.

use super::case::Case;
use super::erased::Erased;
use super::implementation::Implementation;
use super::inputs::Values;
use super::report::Report;
use super::run::run_anew;
use crate::{Dtype, Problem, Shape};

/// The smallest and the largest power of two that cases take.
pub(super) const BINADES: std::ops::RangeInclusive<i32> = 0..=127;

/// In which of the two factors the size lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargeBy {
    /// Products near 2^10, and a softmax_scale that makes them as large as asked for.
    Scale,
    /// A softmax_scale of 1.
    Operands,
    /// Likewise, but only the second query is large. It does not see the last keys.
    OneQuery,
}

/// The binade of the products that softmax_scale multiplies.
const OF_PRODUCTS: i32 = 10;

/// Beyond these gradients leave f16.
const LARGEST_OF_F16: [i32; 3] = [18, 26, 26];

/// How large dout is: dq and dk, which grow with k and q, must fit.
const DOUT: [f64; 2] = [1.0, 1.0 / 64.0];

/// The only large query, if there is one.
const LARGE_QUERY: usize = 1;

/// The binade of products of the others.
const OF_OTHERS: i32 = 3;

impl Case {
    /// Its scores have magnitudes near 2^binade and are exact whatever the order of additions.
    ///
    /// ```
    /// use signflash_core::suite::{Case, LargeBy, Reference, run_case};
    /// let case = Case::scores_near(100, LargeBy::Scale);
    /// let report = run_case("near 2^100", &case, &Reference);
    /// assert!(report.failures.is_empty(), "{report}");
    /// ```
    pub fn scores_near(binade: i32, by: LargeBy) -> Self {
        let case = Self::new(5, 15).heads(2, 1).head_dim(32).dropout(0.3);
        let mut case = match by {
            LargeBy::Scale => case.softmax_scale(2f64.powi(binade - OF_PRODUCTS)),
            LargeBy::Operands | LargeBy::OneQuery => case.softmax_scale(1.0).causal(),
        };
        let products = if by == LargeBy::Scale { OF_PRODUCTS } else { binade };
        case.products_near = Some(Products { binade: products, of_one_query: by == LargeBy::OneQuery });
        let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        let fits = |dtype: &Dtype| *dtype != Dtype::F16 || binade <= LARGEST_OF_F16[by as usize];
        case.dtypes(&dtypes.into_iter().filter(fits).collect::<Vec<_>>())
    }
}

/// Products `<q, k>` near a power of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Products {
    binade: i32,
    of_one_query: bool,
}

/// Makes operands with such products.
pub(super) fn place(problem: &Problem, values: &mut Values, products: Products) {
    let Shape { seqlen_q, num_heads, head_dim, .. } = *problem.shape();
    let Products { binade, of_one_query } = products;
    let of_q = (binade + 1) / 2;
    let k_unit = 2f64.powi(binade - of_q);
    for (n, row) in values.q.chunks_exact_mut(head_dim).enumerate() {
        let small = of_one_query && n / num_heads % seqlen_q != LARGE_QUERY;
        let q_unit = if small { 2f64.powi(OF_OTHERS) / k_unit } else { 2f64.powi(of_q) };
        let sign = if n % num_heads == 0 { 1.0 } else { -1.0 };
        row.fill(0.0);
        row[0] = sign * q_unit;
        row[1] = [3.0, 0.0, 1.0, -1.0, -2.0][n / num_heads % 5] * q_unit / 1024.0;
    }
    for (j, row) in values.k.chunks_exact_mut(head_dim).enumerate() {
        // The others meet zeros of q. They keep dq, to which the first gives nothing, from being all rounding.
        row.iter_mut().for_each(|x| *x *= k_unit / 2.0);
        row[0] = k_unit;
        row[1] = [0.0, -1.0, 2.0, 1.0, 0.0, -3.0, 2.0][j % 7] * k_unit / 1024.0;
    }
    let dout = DOUT[(problem.softmax_scale() == 1.0) as usize];
    values.dout.iter_mut().for_each(|x| *x *= dout);
}

/// Fails unless an implementation is right with scores of every binade of f32, or of every fourth where one query has
/// them; of fewer where [it says so](Implementation::binades_apart). The largest is among them.
///
/// # Panics
/// With everything that is wrong.
pub fn check_binades(by: LargeBy, implementation: &impl Implementation) {
    check_erased(by, implementation);
}

fn check_erased(by: LargeBy, implementation: &dyn Erased) {
    let mut all = Report::default();
    let step = implementation.binades_apart().max(if by == LargeBy::OneQuery { 4 } else { 1 });
    for binade in BINADES.rev().step_by(step) {
        let case = Case::scores_near(binade, by);
        let Report { ran, skipped, failures } =
            run_anew(&format!("2^{binade} by {by:?}"), &case, implementation);
        all.ran += ran;
        all.skipped.extend(skipped);
        all.failures.extend(failures);
    }
    assert!(all.failures.is_empty(), "{}: {all}", implementation.name());
    if all.ran == 0 {
        println!("skipped: {:?}", all.skipped.first());
    }
}
