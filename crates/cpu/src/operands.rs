//! The tensors of a backward, of any dtype.

use crate::score_stage::{ScoreOperands, TableMut};
use crate::view::{FloatsMut, View, ViewMut};

/// What a backward reads.
#[derive(Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) q: View<'a>,
    pub(crate) k: View<'a>,
    pub(crate) v: View<'a>,
    pub(crate) out: View<'a>,
    pub(crate) dout: View<'a>,
    pub(crate) operands: ScoreOperands<'a>,
    pub(crate) lse: &'a [f32],
    pub(crate) dlse: Option<&'a [f32]>,
}

/// What a backward writes.
pub(crate) struct Written<'a> {
    pub(crate) dq: ViewMut<'a>,
    pub(crate) dk: ViewMut<'a>,
    pub(crate) dv: ViewMut<'a>,
    pub(crate) dbias: Option<TableMut<'a>>,
    pub(crate) dsinks: Option<FloatsMut<'a>>,
}
