//! The order of dimensions in a file.

use clap::ValueEnum;
use signflash_core::{TensorMut, TensorRef};

/// The order of dimensions in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// (batch, heads, seqlen, head_dim).
    #[default]
    Bhsd,
    /// (batch, seqlen, heads, head_dim).
    Bshd,
}

impl Layout {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bhsd => "bhsd",
            Self::Bshd => "bshd",
        }
    }

    /// A shape of (batch, seqlen, heads, head_dim) in the file's order, or back: the exchange is its own inverse.
    pub const fn reorder(self, [b, s, h, d]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Bhsd => [b, h, s, d],
            Self::Bshd => [b, s, h, d],
        }
    }

    /// The tensor of this shape, (batch, seqlen, heads, head_dim), that is stored densely in the file's order.
    pub const fn view<T>(self, data: &[T], shape: [usize; 4]) -> TensorRef<'_, T> {
        match self {
            Self::Bhsd => TensorRef::bhsd(data, shape),
            Self::Bshd => TensorRef::bshd(data, shape),
        }
    }

    /// The same, to write.
    pub const fn view_mut<T>(self, data: &mut [T], shape: [usize; 4]) -> TensorMut<'_, T> {
        match self {
            Self::Bhsd => TensorMut::bhsd(data, shape),
            Self::Bshd => TensorMut::bshd(data, shape),
        }
    }
}
