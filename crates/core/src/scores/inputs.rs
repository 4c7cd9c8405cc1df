//! The operands of scores besides q and k, judged by name against the problem that declares them.

use super::ScoreDescription;
use crate::description::Description;
use crate::error::{ProblemError, TensorName};
use crate::problem::Problem;
use crate::tensor::{TensorMut, TensorRef};
use crate::{Dtype, Element};
use half::{bf16, f16};

/// What scores are made of besides q and k. The default has none.
///
/// A [`Problem`] declares which there are, so that its cost and its kernels are known without them; what is declared
/// must be given, and nothing else.
///
/// ```
/// use signflash_core::{BiasRef, Dtype, Inputs, Problem, ScoreInputs, Shape, TensorRef, oracle};
/// let shape = Shape::new(1, 1, 2).heads(1, 1).head_dim(1);
/// let problem = Problem::builder(shape).bias(Dtype::F32, [1, 1, 1, 2]).build()?;
/// let (q, k, v) = ([1.0f32], [0.0f32, 0.0], [4.0f32, 8.0]);
/// let [q, k, v] = [TensorRef::bshd(&q, shape.q()), TensorRef::bshd(&k, shape.k()), TensorRef::bshd(&v, shape.v())];
/// let bias = [0.0f32, f32::ln(3.0)]; // weights 1/4 and 3/4
/// let bias = BiasRef::F32(TensorRef::bshd(&bias, [1, 1, 1, 2]));
/// let inputs = Inputs::new(q, k, v).scores(ScoreInputs::default().bias(bias));
/// assert!((oracle::forward(&problem, &inputs)?.out[0] - 7.0).abs() < 1e-6);
///
/// let refused = Inputs::new(q, k, v).check(&problem).unwrap_err().to_string();
/// assert!(refused.starts_with("the problem has a bias, and the inputs have none"), "{refused}");
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ScoreInputs<'a> {
    /// (1, 1, 1, num_heads) or (1, 1, batch, num_heads), as [`Slopes`](crate::Slopes) say, dense in the last dimension.
    pub alibi_slopes: Option<TensorRef<'a, f32>>,
    /// Added to the scores: (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k), with any strides.
    pub bias: Option<BiasRef<'a>>,
    /// 0 where a query does not see a key, of a bias's shapes and strides.
    pub mask: Option<TensorRef<'a, u8>>,
    /// (num_heads): one more score of every row, without a value.
    pub sinks: Option<&'a [f32]>,
}

/// A bias, in a dtype of its own.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum BiasRef<'a> {
    F32(TensorRef<'a, f32>),
    F16(TensorRef<'a, f16>),
    Bf16(TensorRef<'a, bf16>),
}

/// The gradient of a bias, of its shape and dtype, to write.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum BiasMut<'a> {
    F32(TensorMut<'a, f32>),
    F16(TensorMut<'a, f16>),
    Bf16(TensorMut<'a, bf16>),
}

/// Does the same with a bias of any dtype.
macro_rules! of_bias {
    ($enum:ident, $bias:expr, $x:ident => $do:expr) => {
        match $bias {
            $enum::F32($x) => $do,
            $enum::F16($x) => $do,
            $enum::Bf16($x) => $do,
        }
    };
}

impl<'a> BiasRef<'a> {
    /// Of its numbers.
    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Shape, and strides in elements.
    pub fn layout(&self) -> [[usize; 4]; 2] {
        of_bias!(BiasRef, self, x => [x.shape, x.strides])
    }

    /// The element `[a, b, c, d]`.
    ///
    /// # Panics
    /// If the index lies outside its storage.
    pub fn at(&self, index: [usize; 4]) -> f64 {
        of_bias!(BiasRef, self, x => x.at(index).to_f64())
    }

    /// The elements in these ranges of its indices, which are not copied.
    pub(crate) fn part(&self, place: [std::ops::Range<usize>; 4]) -> Self {
        match self {
            Self::F32(x) => Self::F32(x.part(place)),
            Self::F16(x) => Self::F16(x.part(place)),
            Self::Bf16(x) => Self::Bf16(x.part(place)),
        }
    }

    fn description(&self) -> (Description, usize) {
        let [shape, strides] = self.layout();
        let storage = of_bias!(BiasRef, self, x => x.data.len());
        (Description { tensor: TensorName::Bias, shape, strides }, storage)
    }
}

impl BiasMut<'_> {
    /// Of its numbers.
    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Shape, and strides in elements.
    pub fn layout(&self) -> [[usize; 4]; 2] {
        of_bias!(BiasMut, self, x => [x.shape, x.strides])
    }

    /// Writes the element `[a, b, c, d]`, rounded.
    ///
    /// # Panics
    /// If the index lies outside its storage.
    pub fn set(&mut self, index: [usize; 4], number: f32) {
        of_bias!(BiasMut, self, x => *x.at_mut(index) = Element::from_f32(number));
    }

    fn description(&self) -> (Description, usize) {
        let [shape, strides] = self.layout();
        let storage = of_bias!(BiasMut, self, x => x.data.len());
        (Description { tensor: TensorName::Dbias, shape, strides }, storage)
    }
}

impl<'a> ScoreInputs<'a> {
    /// With slopes of ALiBi.
    pub fn alibi_slopes(self, slopes: impl Into<Option<TensorRef<'a, f32>>>) -> Self {
        Self { alibi_slopes: slopes.into(), ..self }
    }

    /// With a bias.
    pub fn bias(self, bias: impl Into<Option<BiasRef<'a>>>) -> Self {
        Self { bias: bias.into(), ..self }
    }

    /// With a mask.
    pub fn mask(self, mask: impl Into<Option<TensorRef<'a, u8>>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// With sinks.
    pub fn sinks(self, sinks: impl Into<Option<&'a [f32]>>) -> Self {
        Self { sinks: sinks.into(), ..self }
    }

    /// Judges that these are what the problem declares, and that their storage holds them.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let of = |tensor, shape, strides| Description { tensor, shape, strides };
        let slopes =
            self.alibi_slopes.map(|x| (of(TensorName::AlibiSlopes, x.shape, x.strides), x.data.len()));
        let mask = self.mask.map(|x| (of(TensorName::Mask, x.shape, x.strides), x.data.len()));
        let bias = self.bias.as_ref().map(BiasRef::description);
        let given = ScoreDescription {
            alibi_slopes: slopes.map(|(slopes, _)| slopes),
            bias: self.bias.map(|bias| (bias.dtype(), bias.description().0)),
            mask: mask.map(|(mask, _)| mask),
            sinks: self.sinks.map(<[f32]>::len),
        };
        given.check(problem)?;
        [slopes, bias, mask]
            .into_iter()
            .flatten()
            .try_for_each(|(tensor, storage)| tensor.check_storage(storage))
    }
}

/// Judges dbias and dsinks, if they are asked for.
pub(crate) fn check_gradients(
    problem: &Problem,
    dbias: Option<&BiasMut<'_>>,
    dsinks: Option<&[f32]>,
) -> Result<(), ProblemError> {
    let described = dbias.map(|dbias| (dbias.dtype(), dbias.description()));
    let dsinks = dsinks.map(<[f32]>::len);
    ScoreDescription::check_gradients(problem, described.map(|(dtype, (dbias, _))| (dtype, dbias)), dsinks)?;
    described.map_or(Ok(()), |(_, (dbias, storage))| dbias.check_storage(storage))
}
