//! The suite of named cases that every implementation runs (feature `suite`).
//!
//! Implement [`Implementation`], then add one line to a test:
//! [`signflash_core::test_implementation!(Mine)`](crate::test_implementation) makes a `#[test]` of every case. Or call
//! [`run`] for a [`Report`] of all, [`check`] for one.
//!
//! Each case runs with each of its dtypes: the forward without and with probs, and the backward. Required are
//! - results within the contract's [bounds](crate::judge) of the f64 [oracle](crate::oracle) on the same rounded
//!   operands, with NaNs and infinities at its very places, and exact zeros where nothing contributes;
//! - the sign bit of every visible probability equal to the dropout mask, +0.0 where a query does not see a key;
//! - every element written: results start as poison;
//! - nothing else written, and nothing read beside a row: guards and gaps between rows hold NaNs;
//! - of packed sequences the same results where the neighbours hold NaNs;
//! - the same bits from a second run.
//!
//! The backward [drops what the forward drops](check_backward_drops), and scores may be [of any size](check_binades).

mod adjust;
mod backward_drops;
mod binades;
mod call;
mod case;
mod cases;
mod compare;
mod erased;
mod implementation;
mod inputs;
mod layout;
mod named;
mod neighbours;
mod part;
mod reach;
mod report;
mod run;
mod scores;
mod storage;
mod truth;
pub mod vectors;

pub use backward_drops::check_backward_drops;
pub use binades::{LargeBy, check_binades};
pub use case::{Adjust, Case, Cuts};
pub use cases::{NAMES, case};
pub use implementation::{Implementation, Reference, RunError};
pub use inputs::Values;
pub use layout::Layout;
pub use report::{Entry, Failure, Finding, Report};
pub use run::{check, run, run_case, run_names};
pub use scores::Extent;
