//! The operands of scores as they describe themselves, judged by name against the problem that declares them.

use crate::description::Description;
use crate::dtype::Dtype;
use crate::error::{ProblemError, TensorName};
use crate::problem::Problem;

/// What operands of scores say of themselves, wherever their elements lie: to judge ones that are not borrowed, as
/// [`Inputs::check`](crate::Inputs::check) judges those that are. The default has none.
///
/// ```
/// use signflash_core::{Description, Problem, ScoreDescription, Shape, TensorName};
/// let problem = Problem::builder(Shape::new(2, 3, 8).heads(4, 4).head_dim(16)).mask([2, 1, 1, 8]).build()?;
/// let mask = Description { tensor: TensorName::Mask, shape: [2, 1, 1, 8], strides: [8, 0, 0, 1] };
/// let given = ScoreDescription { mask: Some(mask), ..ScoreDescription::default() };
/// assert!(given.check(&problem).is_ok() && ScoreDescription::default().check(&problem).is_err());
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreDescription {
    /// Dense in its last dimension.
    pub alibi_slopes: Option<Description>,
    /// With its dtype, and any strides.
    pub bias: Option<(Dtype, Description)>,
    /// Any strides.
    pub mask: Option<Description>,
    /// How many, dense.
    pub sinks: Option<usize>,
}

impl ScoreDescription {
    /// Judges that these are what the problem declares.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check(&self, problem: &Problem) -> Result<(), ProblemError> {
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
            slopes.check(problem.shape_of(TensorName::AlibiSlopes))?;
        }
        if let Some(sinks) = self.sinks {
            check_sinks(TensorName::Sinks, problem, sinks)?;
        }
        if let (Some((dtype, bias)), Some(declared)) = (&self.bias, problem.bias()) {
            check_dtype(TensorName::Bias, declared.dtype, *dtype)?;
            bias.check_shape(declared.shape)?;
        }
        match (&self.mask, problem.mask()) {
            (Some(mask), Some(declared)) => mask.check_shape(declared),
            _ => Ok(()),
        }
    }

    /// Judges the gradients of a bias and of sinks, where they are asked for: that the problem has these, and that no two
    /// indices of dbias name the same element.
    ///
    /// # Errors
    /// The first [`ProblemError`], naming the tensor.
    pub fn check_gradients(
        problem: &Problem,
        dbias: Option<(Dtype, Description)>,
        dsinks: Option<usize>,
    ) -> Result<(), ProblemError> {
        if let Some((dtype, dbias)) = dbias {
            let tensor = TensorName::Dbias;
            let declared = problem.bias().ok_or(ProblemError::ScoreUndeclared { tensor })?;
            check_dtype(tensor, declared.dtype, dtype)?;
            dbias.check_shape(declared.shape)?;
            dbias.check_no_overlap()?;
        }
        let Some(dsinks) = dsinks else { return Ok(()) };
        if !problem.sinks() {
            return Err(ProblemError::ScoreUndeclared { tensor: TensorName::Dsinks });
        }
        check_sinks(TensorName::Dsinks, problem, dsinks)
    }
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
