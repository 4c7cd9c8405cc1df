//! What scores are made of besides q and k: as a case says it, and as an implementation is handed it.

use super::inputs::{Values, as_f32};
use super::layout::Layout;
use super::report::Finding;
use super::storage::{Storage, index_of};
use crate::tensor::extent;
use crate::{
    BiasMut, BiasRef, Dtype, Problem, ProblemBuilder, ScoreInputs, Slopes, TensorName, TensorRef, bf16,
    contiguous_strides, f16,
};

/// What a case's scores are made of besides q and k.
#[derive(Clone, Debug, Default)]
pub(super) struct CaseScores {
    pub(super) softcap: Option<f64>,
    pub(super) alibi: Option<Slopes>,
    pub(super) bias: Option<(Dtype, [Extent; 3])>,
    pub(super) mask: Option<[Extent; 3]>,
    pub(super) sinks: bool,
}

/// How many entries a bias or a mask has along batch, heads or queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One, which is everybody's.
    One,
    /// One for each.
    Each,
}

impl CaseScores {
    /// The same problem of such scores.
    pub(super) fn declare(&self, problem: ProblemBuilder) -> ProblemBuilder {
        let largest = problem.clone().build().expect("a case is a valid problem").probs();
        let shape = |extents: [Extent; 3]| {
            let size = |n: usize| if n < 3 && extents[n] == Extent::One { 1 } else { largest[n] };
            [size(0), size(1), size(2), size(3)]
        };
        let problem = problem.softcap(self.softcap).alibi(self.alibi).sinks(self.sinks);
        let problem = match self.bias {
            Some((dtype, extents)) => problem.bias(dtype, shape(extents)),
            None => problem,
        };
        match self.mask {
            Some(extents) => problem.mask(shape(extents)),
            None => problem,
        }
    }
}

/// The operands of one call's scores.
pub(super) struct ScoreStorage {
    alibi_slopes: Option<Storage<f32>>,
    bias: Option<BiasStorage>,
    mask: Option<Mask>,
    sinks: Option<Vec<f32>>,
}

/// A mask of 0 and 1.
struct Mask {
    data: Vec<u8>,
    shape: [usize; 4],
    strides: [usize; 4],
}

/// A bias, or its gradient.
pub(super) enum BiasStorage {
    F32(Storage<f32>),
    F16(Storage<f16>),
    Bf16(Storage<bf16>),
}

impl ScoreStorage {
    /// What the problem declares, of these dense values.
    pub(super) fn of(problem: &Problem, layout: Layout, values: &Values) -> Self {
        let slopes = problem.shape_of(TensorName::AlibiSlopes);
        Self {
            alibi_slopes: problem
                .alibi()
                .map(|_| Storage::holding(slopes, contiguous_strides(slopes), &values.alibi_slopes)),
            bias: problem.bias().map(|bias| {
                let strides = layout.probs_strides(bias.shape);
                BiasStorage::holding(bias.dtype, bias.shape, strides, &values.bias)
            }),
            mask: problem.mask().map(|shape| Mask::of(shape, layout.probs_strides(shape), &values.mask)),
            sinks: problem.sinks().then(|| as_f32(&values.sinks)),
        }
    }

    pub(super) fn inputs(&self) -> ScoreInputs<'_> {
        ScoreInputs::default()
            .alibi_slopes(self.alibi_slopes.as_ref().map(Storage::tensor))
            .bias(self.bias.as_ref().map(BiasStorage::tensor))
            .mask(self.mask.as_ref().map(Mask::tensor))
            .sinks(self.sinks.as_deref())
    }
}

impl Mask {
    fn of(shape: [usize; 4], strides: [usize; 4], dense: &[f64]) -> Self {
        let len = extent(shape, strides).expect("the suite's tensors are small");
        let mut data = vec![1; len];
        for (n, &x) in dense.iter().enumerate() {
            let at: usize = index_of(n, shape).into_iter().zip(strides).map(|(at, stride)| at * stride).sum();
            data[at] = x as u8;
        }
        Self { data, shape, strides }
    }

    fn tensor(&self) -> TensorRef<'_, u8> {
        TensorRef::strided(&self.data, self.shape, self.strides)
    }
}

/// Does the same with a storage of any dtype.
macro_rules! of_storage {
    ($bias:expr, $x:ident => $do:expr) => {
        match $bias {
            BiasStorage::F32($x) => $do,
            BiasStorage::F16($x) => $do,
            BiasStorage::Bf16($x) => $do,
        }
    };
}

impl BiasStorage {
    fn holding(dtype: Dtype, shape: [usize; 4], strides: [usize; 4], dense: &[f64]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(Storage::holding(shape, strides, dense)),
            Dtype::F16 => Self::F16(Storage::holding(shape, strides, dense)),
            Dtype::Bf16 => Self::Bf16(Storage::holding(shape, strides, dense)),
        }
    }

    /// For a gradient.
    pub(super) fn poisoned(dtype: Dtype, shape: [usize; 4], strides: [usize; 4]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(Storage::poisoned(shape, strides)),
            Dtype::F16 => Self::F16(Storage::poisoned(shape, strides)),
            Dtype::Bf16 => Self::Bf16(Storage::poisoned(shape, strides)),
        }
    }

    fn tensor(&self) -> BiasRef<'_> {
        match self {
            Self::F32(x) => BiasRef::F32(x.tensor()),
            Self::F16(x) => BiasRef::F16(x.tensor()),
            Self::Bf16(x) => BiasRef::Bf16(x.tensor()),
        }
    }

    pub(super) fn tensor_mut(&mut self) -> BiasMut<'_> {
        match self {
            Self::F32(x) => BiasMut::F32(x.tensor_mut()),
            Self::F16(x) => BiasMut::F16(x.tensor_mut()),
            Self::Bf16(x) => BiasMut::Bf16(x.tensor_mut()),
        }
    }

    pub(super) fn to_dense(&self) -> Vec<f64> {
        of_storage!(self, x => x.to_dense())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        of_storage!(self, x => x.bytes())
    }

    pub(super) fn check_written(&self) -> Result<(), Finding> {
        of_storage!(self, x => x.check_written())
    }
}
