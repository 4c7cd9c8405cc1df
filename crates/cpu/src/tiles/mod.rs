//! Tiles: products of whole blocks of bf16 pairs, by the instructions of AMX or by their emulation in plain Rust.
//!
//! A product is of any rows by [`SIDE`] columns, with operands and sums in memory: nothing that [`Tiles`] does leaves
//! anything in a tile, so that no two of its calls depend on each other, and both implementations can be compared by
//! what they write. They write the same bits.
//!
//! # What `tdpbf16ps` computes
//! For each row m and column n of a tile of sums, and 16 words k of pairs (even, odd):
//!
//! ```text
//! even = 0; odd = 0                                                       in f32
//! for k in 0..16     even = fma(a[m][k].even, b[k][n].even, even)
//!                    odd  = fma(a[m][k].odd,  b[k][n].odd,  odd)
//! sum[m][n] = sum[m][n] + (even + odd)
//! ```
//!
//! Every operation rounds to nearest even, takes operands below 2^-126 for 0 and gives 0 for results below (the sign stays),
//! whatever MXCSR says, and raises nothing. A NaN is a NaN; which one is not promised.

mod emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware;
#[cfg(test)]
mod tests;

use crate::gemm::{Left, Right};

/// Columns of a product; and the step in which keys are counted.
pub(crate) const SIDE: usize = 32;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// Words of pairs that one step of a product sums over.
pub(crate) const STEP_WORDS: usize = 16;

/// Words of the right operand that tiles hold while rows go by.
pub(crate) const HELD_WORDS: usize = 2 * STEP_WORDS;

/// The sums of a product: row m begins at `p[m * row]`.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) p: *mut f32,
    pub(crate) row: usize,
}

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {
    /// This machine's; there only if [`Tiles::of_this_machine`] said so.
    Hardware,
    /// Plain Rust, a hundred times slower.
    Emulated,
}

impl Tiles {
    /// Those of this machine, if it has any and the system lets this process use them; else why not, as half a sentence.
    /// The system is asked once a process, and only where the processor has them.
    pub(crate) fn of_this_machine() -> Result<Self, &'static str> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            static ANSWER: std::sync::OnceLock<Result<(), &'static str>> = std::sync::OnceLock::new();
            ANSWER.get_or_init(hardware::ask).map(|()| Self::Hardware)
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        Err("only Linux on x86-64 is asked for AMX")
    }

    /// Those of this machine, or else their emulation.
    pub(crate) fn here() -> Self {
        Self::of_this_machine().unwrap_or(Self::Emulated)
    }

    /// Configures the tiles of this thread, until what is returned is dropped.
    pub(crate) fn hold(self) -> Held {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Self::Hardware {
            // SAFETY: there is a `Hardware` only where `of_this_machine` was given permission.
            unsafe { hardware::configure() };
        }
        Held(self)
    }

    /// `to = a b` of `rows` rows and `depth` words; with `ADD`, `to += a b`.
    ///
    /// # Safety
    /// This thread must [hold](Self::hold) tiles. `a` must have `rows` rows, a multiple of [`ROWS`], of `depth` words side by
    /// side (`step` is 1), `b` `depth` rows of [`SIDE`] words, `depth` a multiple of [`STEP_WORDS`]; and nobody else uses the
    /// sums, `rows` rows of [`SIDE`].
    #[inline(always)]
    pub(crate) unsafe fn product<const ADD: bool>(
        self,
        rows: usize,
        depth: usize,
        a: Left,
        b: Right,
        to: Sums,
    ) {
        debug_assert!(rows.is_multiple_of(ROWS) && depth.is_multiple_of(STEP_WORDS) && a.step == 1);
        for first in (0..depth).step_by(HELD_WORDS) {
            let a = Left { p: a.p.wrapping_add(first), ..a };
            let b = Right { p: b.p.wrapping_add(first * b.step), ..b };
            let held = HELD_WORDS.min(depth - first);
            // SAFETY: the caller's promise for a part of the depth.
            unsafe {
                if ADD || first > 0 {
                    self.product_of_held::<true>(rows, held, a, b, to);
                } else {
                    self.product_of_held::<false>(rows, held, a, b, to);
                }
            }
        }
    }

    /// The same of at most [`HELD_WORDS`] words.
    ///
    /// # Safety
    /// As [`product`](Self::product).
    #[inline(always)]
    unsafe fn product_of_held<const ADD: bool>(self, rows: usize, depth: usize, a: Left, b: Right, to: Sums) {
        match self {
            // SAFETY: the caller's promise, and tiles are configured.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Hardware => unsafe { hardware::product::<ADD>(rows, depth, a, b, to) },
            // SAFETY: the caller's promise.
            _ => unsafe { emulated::product::<ADD>(rows, depth, a, b, to) },
        }
    }
}

/// Multiplies tiles with each other, nothing else, as fast as this machine can. Returns how many operations that were.
///
/// # Panics
/// If this machine has no tiles, or keeps them from this process.
pub(crate) fn multiply_in_tiles() -> f64 {
    let tiles = Tiles::of_this_machine().expect("an AMX that is available");
    let _held = tiles.hold();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    // SAFETY: tiles are configured.
    unsafe {
        hardware::multiply(PRODUCTS);
    }
    (PRODUCTS * 4 * 2 * 16 * 16 * 2 * STEP_WORDS) as f64
}

/// Of four tiles each, between two looks at the clock.
const PRODUCTS: usize = 20_000;

/// While it lives, the tiles of its thread are configured; afterwards they are as if they had never been used.
pub(crate) struct Held(Tiles);

impl Drop for Held {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.0 == Tiles::Hardware {
            // SAFETY: the machine has tiles, or they would not have been configured.
            unsafe { hardware::release() };
        }
    }
}
