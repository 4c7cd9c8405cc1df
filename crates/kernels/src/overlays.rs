//! The bias and the mask of a call: how its kernels read them, and what they are told of them.
use crate::call::CallError;
use crate::config::{Numbers, OverlayKind, Overlays};
use crate::geometry::column_shift;
use crate::padding::has_padding;
use crate::parts::overlays::{BiasArgs, MaskArgs, OverlayArgs, PaddingArgs};
use crate::scores::{DeviceScoreTensor, DeviceScores};
use crate::tensor::{DeviceTensor, ScoreTensor};
use signflash_core::{Dtype, Problem, contiguous_strides};

impl Overlays {
    /// Of a problem, and of tensors that lie as a call says; dense ones, where it does not say.
    pub(crate) fn of(problem: &Problem, scores: &DeviceScores) -> Self {
        let shift = column_shift(problem);
        let kind = |numbers, shape, tensor: Option<DeviceScoreTensor>| {
            let tensor = tensor.unwrap_or_else(|| DeviceScoreTensor::of(0, contiguous_strides(shape)));
            OverlayKind::of(numbers, shape, tensor, shift)
        };
        Overlays {
            bias: problem.bias().map(|bias| kind(numbers_of(bias.dtype), bias.shape, scores.bias)),
            mask: problem.mask().map(|shape| kind(Numbers::Bytes, shape, scores.mask)),
            padding: has_padding(problem),
        }
    }
}

/// Whether a problem's bias or mask has other numbers for each query.
pub(crate) fn are_by_query(problem: &Problem) -> bool {
    let shapes = [problem.bias().map(|bias| bias.shape), problem.mask()];
    shapes.into_iter().flatten().any(|shape| shape[2] != 1)
}

/// The bias as a tensor for the copy engine, and its sizes in the order of such, if it can bring it.
pub(crate) fn boxed_bias(problem: &Problem, scores: &DeviceScores) -> Option<(DeviceTensor, [usize; 4])> {
    let bias = problem.bias().filter(|bias| numbers_of(bias.dtype) != Numbers::F32)?;
    let [batches, heads, rows, columns] = bias.shape;
    let DeviceScoreTensor { ptr, strides } =
        scores.bias.unwrap_or_else(|| DeviceScoreTensor::of(0, contiguous_strides(bias.shape)));
    let [batch_stride, head_stride, row_stride, _] = strides;
    let is_even = |i: usize| {
        bias.shape[i] == 1 || (strides[i] > 0 && strides[i].is_multiple_of(8) && strides[i] < 1 << 38)
    };
    let is_whole = !problem.is_packed() && !bias.shape.contains(&0) && rows > 1;
    let is_brought = strides[3] == 1 && ptr.is_multiple_of(16) && (0..3).all(is_even);
    // A mask that is read comes with the bias.
    let is_alone = problem.mask().is_none() || has_padding(problem);
    let tensor = DeviceTensor { ptr, batch_stride, row_stride, head_stride };
    (is_whole && is_brought && is_alone).then_some((tensor, [batches, rows, heads, columns]))
}

impl OverlayKind {
    /// Of a tensor of this shape, in tiles that start so many columns before its first.
    pub(crate) fn of(numbers: Numbers, shape: [usize; 4], tensor: DeviceScoreTensor, shift: u32) -> Self {
        let DeviceScoreTensor { ptr, strides } = tensor;
        let rows_are_even = (0..3).all(|i| shape[i] == 1 || strides[i].is_multiple_of(2));
        let pairs = strides[3] == 1
            && shape[3] > 0
            && shape[3].is_multiple_of(2)
            && ptr.is_multiple_of(2 * u64::from(numbers.bytes()))
            && rows_are_even
            && shift.is_multiple_of(2);
        OverlayKind { numbers, per_key: shape[2] == 1, pairs, boxes: false }
    }
}

impl OverlayArgs {
    /// Of a call, whose masks' ranges of keys are at this address.
    ///
    /// # Errors
    /// [`CallError::NoScores`].
    pub(crate) fn of(problem: &Problem, scores: &DeviceScores, ranges: u64) -> Result<Self, CallError> {
        let tensor = |name, numbers: Numbers, shape, tensor: Option<DeviceScoreTensor>| {
            let tensor = tensor.ok_or(CallError::NoScores { tensor: name })?;
            Ok::<_, CallError>(ScoreTensor::of(numbers, shape, tensor))
        };
        let bias = problem.bias().map(|bias| tensor("bias", numbers_of(bias.dtype), bias.shape, scores.bias));
        let mask = problem.mask().map(|shape| tensor("mask", Numbers::Bytes, shape, scores.mask));
        let step = |shape: [usize; 4]| if shape[0] == 1 { 0 } else { RANGE_BYTES };
        let padding = problem.mask().filter(|_| has_padding(problem));
        Ok(OverlayArgs {
            bias: bias.transpose()?.map(|bias| BiasArgs { bias }),
            mask: mask.transpose()?.map(|mask| MaskArgs { mask }),
            padding: padding.map(|shape| PaddingArgs { ranges, ranges_step: step(shape) }),
        })
    }
}

/// Bytes of a range of keys: the first, behind the last, whether some between them are hidden, and nothing.
pub(crate) const RANGE_BYTES: u64 = 16;

impl ScoreTensor {
    /// Of these sizes.
    pub(crate) fn of(numbers: Numbers, shape: [usize; 4], tensor: DeviceScoreTensor) -> Self {
        let bytes = u64::from(numbers.bytes());
        // What there is one of is everybody's.
        let stride = |i: usize| if shape[i] == 1 { 0 } else { bytes * tensor.strides[i] };
        let [_, _, rows, columns] = shape.map(|size| size as u32);
        ScoreTensor { ptr: tensor.ptr, strides_bytes: [0, 1, 2, 3].map(stride), rows, columns }
    }
}

/// The format of a bias.
pub(crate) fn numbers_of(dtype: Dtype) -> Numbers {
    match dtype {
        Dtype::F16 => Numbers::F16,
        Dtype::Bf16 => Numbers::Bf16,
        _ => Numbers::F32,
    }
}
