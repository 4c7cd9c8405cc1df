//! Whether a result is right: one rule for the suite, the command and the benchmarks.
//!
//! [`Truth`] is what the f64 [oracle](crate::oracle) says of a problem, with what is needed to judge others by it. Its
//! [`Expected`] tensors measure the [`Distance`] of a result, which knows what it may be:
//!
//! ```text
//! ||x - oracle||  <=  bound * max(||oracle||, ||terms|| / 2)      or, if that is more,      1.25 * ||rounding||
//! ```
//! - `bound` is the contract's ([`Bounds`]): of f32 times max|s| / 8 where scores are larger than 8. Beyond 1024 a
//!   score counts only in rows in which another key is so near the largest that rounding may decide between them, and
//!   beyond 6e6 it counts as that, or zeros would be right.
//! - `terms` is what the result would be if its terms did not cancel: the root of the sum of their squares, each
//!   taken as large as what it is itself computed from. With one key dq is exactly 0, but the difference of two
//!   rounded numbers is not.
//! - `rounding` is what the exact formulas lose by rounding p, ds, delta's out and the results to the dtype, numbers
//!   below 1.2e-38 to 0, and the sums of dp and delta in f32. Where thousands of roundings average it is far below
//!   the bound; it counts where they do not: equal elements, subnormal ones.
//! - Few numbers average badly: the bound of fewer than 512 is a quarter larger, that of fewer than 128 twice as large.
//!
//! NaNs and infinities must be where the oracle has them, and a number without any term must be exactly 0.

mod bounds;
mod distance;
mod sizes;
mod truth;

pub use bounds::Bounds;
pub use distance::Distance;
pub use truth::{Backward, Expected, Truth};
