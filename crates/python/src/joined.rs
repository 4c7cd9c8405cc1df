//! What scores are made of besides q and k, as tensors that somebody else owns.

use crate::foreign::ForeignTensor;
use signflash_core::{Description, Dtype, Problem, ProblemBuilder, ProblemError, Slopes, TensorName};

/// A bias, or its gradient: (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k), with any strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ForeignBias {
    pub dtype: Dtype,
    pub tensor: ForeignTensor,
}

/// The tensors that join a call; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// (1, 1, 1, num_heads) or (1, 1, batch, num_heads) f32, dense.
    pub alibi_slopes: Option<ForeignTensor>,
    /// Added to the scores.
    pub bias: Option<ForeignBias>,
    /// A byte an entry, not 0 where a query sees a key, of a bias's shapes and strides.
    pub mask: Option<ForeignTensor>,
    /// (1, 1, 1, num_heads) f32, dense.
    pub sinks: Option<ForeignTensor>,
}

/// Which of them a problem has: all that a plan depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// How many slopes.
    pub alibi: Option<Slopes>,
    /// Of which dtype and shape.
    pub bias: Option<(Dtype, [usize; 4])>,
    /// Of which shape.
    pub mask: Option<[usize; 4]>,
    /// Whether there are some.
    pub sinks: bool,
}

impl Joined {
    /// Which there are. Slopes of one sequence are those of every one.
    pub fn declared(&self) -> Declared {
        Declared {
            alibi: self.alibi_slopes.map(|slopes| match slopes.shape[2] {
                1 => Slopes::PerHead,
                _ => Slopes::PerSequence,
            }),
            bias: self.bias.map(|bias| (bias.dtype, bias.tensor.shape)),
            mask: self.mask.map(|mask| mask.shape),
            sinks: self.sinks.is_some(),
        }
    }

    /// That they have the shapes that the problem asks for, and memory for their elements, as
    /// [`ForeignTensor::check`] says of q.
    ///
    /// # Errors
    /// A [`ProblemError`] with the tensor's name.
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        for (name, tensor) in [(TensorName::AlibiSlopes, self.alibi_slopes), (TensorName::Sinks, self.sinks)]
        {
            tensor.map_or(Ok(()), |tensor| tensor.check(name, problem.shape_of(name), Dtype::F32))?;
        }
        // Their shapes are the problem's, which has judged them.
        let address = |tensor, x: &ForeignTensor, bytes| {
            Description { tensor, shape: x.shape, strides: x.strides }
                .check_address(x.address as usize, bytes)
        };
        self.bias.map_or(Ok(()), |bias| address(TensorName::Bias, &bias.tensor, bias.dtype.size_bytes()))?;
        self.mask.map_or(Ok(()), |mask| address(TensorName::Mask, &mask, 1))
    }
}

impl Declared {
    /// The same of a problem.
    pub(crate) fn of(&self, builder: ProblemBuilder) -> ProblemBuilder {
        let builder = builder.alibi(self.alibi).sinks(self.sinks);
        let builder = match self.bias {
            Some((dtype, shape)) => builder.bias(dtype, shape),
            None => builder,
        };
        match self.mask {
            Some(shape) => builder.mask(shape),
            None => builder,
        }
    }
}
