//! What the weights of rows with large scores are relative to, for the backward.
//!
//! The backward recomputes `p = exp(s - lse)` from an lse that was rounded to f32: at 1000 that moves p by 6e-5, at
//! 10^8 by e^4 or more, in either direction. So where lse is large, maximum and sum are found again, from the very
//! scores that the backward will compute, and `p = 2^((q k - max) scale - log2 sum)`, which no rounding of lse
//! enters. This is one more product, of the tiles that have such a row.

use crate::row_end::RowEnd;
use crate::view::FloatsMut;
use std::f64::consts::LOG2_E;

/// From this magnitude of lse on.
const LARGE_LSE: f32 = 1024.0;

/// How far an lse may be from what its row's scores give, relative to itself, and still be theirs: the contract's
/// bound.
const LSE_BOUND: f64 = 1e-6;

/// Whether p must not be recomputed from this lse.
pub(crate) fn is_large(lse: f32) -> bool {
    lse.is_finite() && lse.abs() >= LARGE_LSE
}

/// Of each row, in the order of lse: what is taken from `q k` before it is scaled, and what is added after that, in
/// base 2. Only of rows whose lse [is large](is_large); else 0.
#[derive(Clone, Debug)]
pub(crate) struct References {
    pub(crate) base: Vec<f32>,
    pub(crate) shift: Vec<f32>,
}

impl References {
    pub(crate) fn new(rows: usize) -> Self {
        Self { base: vec![0.0; rows], shift: vec![0.0; rows] }
    }

    /// To be written by several threads, each its own rows.
    pub(crate) fn writer<'a>(&'a mut self, lse: &'a [f32]) -> Writer<'a> {
        Writer { base: FloatsMut::new(&mut self.base), shift: FloatsMut::new(&mut self.shift), lse }
    }
}

/// See [`References::writer`].
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a> {
    base: FloatsMut<'a>,
    shift: FloatsMut<'a>,
    pub(crate) lse: &'a [f32],
}

impl Writer<'_> {
    /// Of the row whose largest score this is, and which came to `end` relative to it.
    ///
    /// # Safety
    /// `row` must be one of lse's, and no other thread may be writing it.
    pub(crate) unsafe fn write(&self, row: usize, max: f32, end: RowEnd) {
        let lse = f64::from(self.lse[row]);
        // A shard of keys may see none that this row does, or none beside which a sink leaves anything; weights are 0 in
        // any case.
        let (base, shift) = if end.total == 0.0 || end.total == f64::INFINITY {
            (0.0, -lse * LOG2_E)
        } else {
            // The lse of more keys than these, of which they have a part. Closer than its rounding it says nothing.
            let part = if (end.lse - lse).abs() <= LSE_BOUND * lse.abs() { 0.0 } else { end.lse - lse };
            (max, part * LOG2_E - end.total.log2())
        };
        // SAFETY: the caller's promise; both have lse's length.
        unsafe {
            *self.base.at(row) = base;
            *self.shift.at(row) = shift as f32;
        }
    }
}
