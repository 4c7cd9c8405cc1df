//! The operands of scores besides q and k, judged by name against the problem that declares them.

use crate::description::Description;
use crate::error::{ProblemError, TensorName};
use crate::operands::check_read;
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

    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let [shape, strides] = self.layout();
        let description = Description { tensor: TensorName::Dbias, shape, strides };
        let expected = declared(problem.bias(), TensorName::Dbias)?;
        check_dtype(TensorName::Dbias, expected.dtype, self.dtype())?;
        description.check_any_strides(expected.shape, of_bias!(BiasMut, self, x => x.data.len()))?;
        description.check_no_overlap()
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

    /// Judges that these are what the problem declares.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
        let given = |tensor, declared: bool, given: bool| match (declared, given) {
            (true, false) => Err(ProblemError::ScoreMissing { tensor }),
            (false, true) => Err(ProblemError::ScoreUndeclared { tensor }),
            _ => Ok(()),
        };
        given(TensorName::AlibiSlopes, problem.alibi().is_some(), self.alibi_slopes.is_some())?;
        given(TensorName::Bias, problem.bias().is_some(), self.bias.is_some())?;
        given(TensorName::Mask, problem.mask().is_some(), self.mask.is_some())?;
        given(TensorName::Sinks, problem.sinks(), self.sinks.is_some())?;
        if let Some(slopes) = &self.alibi_slopes {
            check_read(TensorName::AlibiSlopes, slopes, problem.shape_of(TensorName::AlibiSlopes))?;
        }
        if let Some(sinks) = self.sinks {
            check_sinks(TensorName::Sinks, problem, sinks.len())?;
        }
        if let (Some(bias), Some(declared)) = (&self.bias, problem.bias()) {
            check_dtype(TensorName::Bias, declared.dtype, bias.dtype())?;
            let (description, storage) = bias.description();
            description.check_any_strides(declared.shape, storage)?;
        }
        if let (Some(mask), Some(declared)) = (&self.mask, problem.mask()) {
            let description =
                Description { tensor: TensorName::Mask, shape: mask.shape, strides: mask.strides };
            description.check_any_strides(declared, mask.data.len())?;
        }
        Ok(())
    }
}

/// Judges dsinks, if it is asked for.
pub(crate) fn check_dsinks(problem: &Problem, dsinks: Option<&[f32]>) -> Result<(), ProblemError> {
    let Some(dsinks) = dsinks else { return Ok(()) };
    if !problem.sinks() {
        return Err(ProblemError::ScoreUndeclared { tensor: TensorName::Dsinks });
    }
    check_sinks(TensorName::Dsinks, problem, dsinks.len())
}

fn declared<T>(declared: Option<T>, tensor: TensorName) -> Result<T, ProblemError> {
    declared.ok_or(ProblemError::ScoreUndeclared { tensor })
}

fn check_dtype(tensor: TensorName, expected: Dtype, got: Dtype) -> Result<(), ProblemError> {
    if got == expected { Ok(()) } else { Err(ProblemError::ScoreDtype { tensor, expected, got }) }
}

fn check_sinks(tensor: TensorName, problem: &Problem, len: usize) -> Result<(), ProblemError> {
    let expected = problem.shape().num_heads;
    if len == expected {
        return Ok(());
    }
    Err(ProblemError::Shape {
        tensor,
        expected: vec![expected],
        got: vec![len],
        meaning: "(num_heads), dense",
    })
}
