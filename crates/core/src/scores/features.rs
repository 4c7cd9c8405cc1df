//! What a problem may ask for beyond scaled products, and which engine computes it.

use crate::error::ProblemError;
use crate::problem::Problem;

/// What not every engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Feature {
    HeadDimV,
    Softcap,
    Alibi,
    Bias,
    Mask,
    Sinks,
}

impl Feature {
    /// As one speaks of it.
    const fn words(self) -> &'static str {
        match self {
            Self::HeadDimV => "a head_dim of v that is not q's",
            Self::Softcap => "a softcap",
            Self::Alibi => "alibi_slopes",
            Self::Bias => "a bias",
            Self::Mask => "a mask",
            Self::Sinks => "sinks",
        }
    }
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.words())
    }
}

impl Problem {
    /// What it asks for.
    ///
    /// ```
    /// use signflash_core::{Feature, Problem, Shape};
    /// let shape = Shape::new(1, 3, 8).heads(1, 1).head_dim(16);
    /// let problem = Problem::builder(shape.head_dim_v(8)).sinks(true).build()?;
    /// assert!(problem.features().eq([Feature::HeadDimV, Feature::Sinks]));
    /// let refused = problem.check_features("this engine", &[Feature::Sinks]).unwrap_err().to_string();
    /// assert!(refused.starts_with("this engine does not compute a head_dim of v that is not q's"), "{refused}");
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn features(&self) -> impl Iterator<Item = Feature> + use<> {
        let asked = [
            (Feature::HeadDimV, self.shape().head_dim != self.shape().head_dim_v),
            (Feature::Softcap, self.softcap().is_some()),
            (Feature::Alibi, self.alibi().is_some()),
            (Feature::Bias, self.bias().is_some()),
            (Feature::Mask, self.mask().is_some()),
            (Feature::Sinks, self.sinks()),
        ];
        asked.into_iter().filter(|(_, asked)| *asked).map(|(feature, _)| feature)
    }

    /// Refuses what an engine does not compute.
    ///
    /// # Errors
    /// [`ProblemError::NotComputed`], naming the first feature that it lacks.
    pub fn check_features(&self, engine: &'static str, computed: &[Feature]) -> Result<(), ProblemError> {
        match self.features().find(|feature| !computed.contains(feature)) {
            Some(feature) => Err(ProblemError::NotComputed { engine, feature }),
            None => Ok(()),
        }
    }
}
