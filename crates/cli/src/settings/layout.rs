//! The order of dimensions in a file.

use clap::ValueEnum;
use signflash_core::{Problem, TensorMut, TensorName, TensorRef};

/// The order of dimensions in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// (batch, heads, seqlen, head_dim).
    #[default]
    Bhsd,
    /// (batch, seqlen, heads, head_dim).
    Bshd,
    /// (tokens, heads, head_dim), of packed sequences.
    Thd,
}

impl Layout {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bhsd => "bhsd",
            Self::Bshd => "bshd",
            Self::Thd => "thd",
        }
    }

    /// A shape of (batch, seqlen, heads, head_dim) as a file has it.
    pub fn in_file(self, [b, s, h, d]: [usize; 4]) -> Vec<usize> {
        match self {
            Self::Bhsd => vec![b, h, s, d],
            Self::Bshd => vec![b, s, h, d],
            Self::Thd => vec![s, h, d],
        }
    }

    /// A file's shape as (batch, seqlen, heads, head_dim); `None` if it has another number of dimensions.
    pub const fn of_file(self, sizes: &[usize]) -> Option<[usize; 4]> {
        match (self, sizes) {
            (Self::Bhsd, &[b, h, s, d]) | (Self::Bshd, &[b, s, h, d]) => Some([b, s, h, d]),
            (Self::Thd, &[s, h, d]) => Some([1, s, h, d]),
            _ => None,
        }
    }

    /// The shape that a tensor of a problem has in a file.
    pub fn shape_of(self, problem: &Problem, tensor: TensorName) -> Vec<usize> {
        let [b, h, s, _] = problem.shape().of(TensorName::Lse);
        match (tensor, self) {
            (TensorName::Lse | TensorName::Dlse, Self::Thd) => vec![h, s],
            (TensorName::Lse | TensorName::Dlse, Self::Bhsd | Self::Bshd) => vec![b, h, s],
            (TensorName::Probs, _) => problem.probs().to_vec(),
            // Of what the problem does not have it is nobody's shape.
            (TensorName::Dbias, _) => problem.bias().map_or(vec![0], |bias| bias.shape.to_vec()),
            (TensorName::Dsinks, _) => vec![h],
            _ => self.in_file(problem.shape().of(tensor)),
        }
    }

    /// What the dimensions of [`shape_of`](Self::shape_of) are.
    pub const fn meaning(self, tensor: TensorName) -> &'static str {
        match (tensor, self) {
            (TensorName::Lse | TensorName::Dlse, Self::Thd) => "(heads, tokens)",
            (TensorName::Lse | TensorName::Dlse, _) => "(batch, heads, seqlen_q), whatever the layout",
            (TensorName::Probs, Self::Thd) => {
                "(sequences, heads, seqlen_q, seqlen_k), of the longest sequences"
            }
            (TensorName::Probs, _) => "(batch, heads, seqlen_q, seqlen_k), whatever the layout",
            (TensorName::Dbias, _) => "that of bias",
            (TensorName::Dsinks, _) => "(heads)",
            (_, Self::Bhsd) => {
                "(batch, heads, seqlen, head_dim); if seqlen comes before heads, pass --layout bshd"
            }
            (_, Self::Bshd) => {
                "(batch, seqlen, heads, head_dim); if heads come before seqlen, pass --layout bhsd"
            }
            (_, Self::Thd) => {
                "(tokens, heads, head_dim) of packed sequences; without cu_seqlens_q and cu_seqlens_k there are four \
                 dimensions"
            }
        }
    }

    /// The tensor of this shape, (batch, seqlen, heads, head_dim), that is stored densely in the file's order.
    pub const fn view<T>(self, data: &[T], shape: [usize; 4]) -> TensorRef<'_, T> {
        match self {
            Self::Bhsd => TensorRef::bhsd(data, shape),
            Self::Bshd | Self::Thd => TensorRef::bshd(data, shape),
        }
    }

    /// The same, to write.
    pub const fn view_mut<T>(self, data: &mut [T], shape: [usize; 4]) -> TensorMut<'_, T> {
        match self {
            Self::Bhsd => TensorMut::bhsd(data, shape),
            Self::Bshd | Self::Thd => TensorMut::bshd(data, shape),
        }
    }
}
