//! How the tensors of a case lie in memory.

use super::inputs::Values;
use crate::{Shape, contiguous_strides};

/// Elements between the rows of [`Layout::PaddedRows`].
const ROW_PADDING: usize = 5;

/// The order of storage, of the inputs and of what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// (batch, seqlen, heads, head_dim), dense.
    #[default]
    Bshd,
    /// (batch, heads, seqlen, head_dim), dense.
    Bhsd,
    /// (seqlen, batch, heads, head_dim), dense; probs are stored as (batch, seqlen_q, heads, seqlen_k).
    Sbhd,
    /// As `Bshd`, with elements between the rows that belong to nobody.
    PaddedRows,
    /// q, k and v (and dq, dk, dv) of a position side by side: (batch, seqlen, 3, heads, head_dim).
    PackedQkv,
    /// As `Bshd`, but k and v are one head's, seen by all through a stride of 0; dk and dv are not shared.
    BroadcastHeads,
    /// As `Bshd`, but k and v are one sequence's, seen by all through a stride of 0; dk and dv are not shared.
    BroadcastBatch,
}

impl Layout {
    /// Strides of q, out and dout, and of all gradients.
    pub(super) fn strides(self, shape: [usize; 4]) -> [usize; 4] {
        let [batch, seqlen, heads, dim] = shape;
        match self {
            Self::Bshd | Self::BroadcastHeads | Self::BroadcastBatch => contiguous_strides(shape),
            Self::Bhsd => [heads * seqlen * dim, dim, seqlen * dim, 1],
            Self::Sbhd => [heads * dim, batch * heads * dim, dim, 1],
            Self::PaddedRows => {
                let row = dim + ROW_PADDING;
                [seqlen * heads * row, heads * row, row, 1]
            }
            Self::PackedQkv => [seqlen * 3 * heads * dim, 3 * heads * dim, dim, 1],
        }
    }

    /// Strides of k and v as inputs.
    pub(super) fn key_strides(self, shape: [usize; 4]) -> [usize; 4] {
        let [_, seqlen, heads, dim] = shape;
        match self {
            Self::BroadcastHeads => [seqlen * dim, dim, 0, 1],
            Self::BroadcastBatch => [0, heads * dim, dim, 1],
            _ => self.strides(shape),
        }
    }

    /// Strides of probs, (batch, heads, seqlen_q, seqlen_k).
    pub(super) fn probs_strides(self, shape: [usize; 4]) -> [usize; 4] {
        let [_, heads, rows, columns] = shape;
        match self {
            Self::Sbhd => [rows * heads * columns, columns, heads * columns, 1],
            Self::PaddedRows => contiguous_strides([shape[0], heads, rows, columns + ROW_PADDING]),
            _ => contiguous_strides(shape),
        }
    }

    /// Makes elements equal that share storage.
    pub(super) fn tie(self, shape: &Shape, values: &mut Values) {
        let row = shape.num_heads_k * shape.head_dim;
        for x in [&mut values.k, &mut values.v] {
            for n in 0..x.len() {
                let first = match self {
                    Self::BroadcastHeads => n / row * row + n % shape.head_dim,
                    Self::BroadcastBatch => n % (shape.seqlen_k * row),
                    _ => n,
                };
                x[n] = x[first];
            }
        }
    }
}
