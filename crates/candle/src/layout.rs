//! The order of a tensor's dimensions.

use candle_core::{Result, bail};

/// The order of the dimensions of q, k, v and out. Any strides will do: of a tensor whose last stride is not 1 a copy is
/// made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// (batch, seqlen, num_heads, head_dim), as projections give it and `candle-flash-attn` takes it.
    #[default]
    Bshd,
    /// (batch, num_heads, seqlen, head_dim), as most models of candle-transformers hold it.
    Bhsd,
}

impl Layout {
    /// Sizes or strides in this order as (batch, seqlen, num_heads, head_dim), and the other way round.
    pub(crate) fn swap(self, [a, b, c, d]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Bshd => [a, b, c, d],
            Self::Bhsd => [a, c, b, d],
        }
    }

    /// Sizes and strides of a tensor as (batch, seqlen, num_heads, head_dim).
    pub(crate) fn read(self, layout: &candle_core::Layout) -> Result<[[usize; 4]; 2]> {
        Ok([self.swap(four(layout.dims())?), self.swap(four(layout.stride())?)])
    }

    /// What the dimensions are called, for messages.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Bshd => "(batch, seqlen, num_heads, head_dim)",
            Self::Bhsd => "(batch, num_heads, seqlen, head_dim)",
        }
    }
}

/// The four sizes or strides of a tensor.
fn four(numbers: &[usize]) -> Result<[usize; 4]> {
    match numbers.try_into() {
        Ok(numbers) => Ok(numbers),
        Err(_) => bail!("signflash: q, k and v must have 4 dimensions, got {}", numbers.len()),
    }
}
