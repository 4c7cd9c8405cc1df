//! The operands of scores on a GPU, and room for a bias's gradient.

use super::{on_gpu, room, tensor_of, view};
use crate::scores::{Held, HeldOperands};
use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr as _, DevicePtrMut as _, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};
use signflash_core::{Bias, Dtype};
use signflash_kernels::{DeviceScoreTensor, DeviceScores};

/// candle's memory of what a call's scores are made of, of whatever dtype.
pub(super) struct Views<'a> {
    alibi_slopes: Option<AnyView<'a>>,
    bias: Option<AnyView<'a>>,
    mask: Option<AnyView<'a>>,
    sinks: Option<AnyView<'a>>,
}

/// Where it lies, while work of the stream needs it.
pub(super) struct At<'a> {
    alibi_slopes: Option<(u64, SyncOnDrop<'a>)>,
    bias: Option<(u64, SyncOnDrop<'a>)>,
    mask: Option<(u64, SyncOnDrop<'a>)>,
    sinks: Option<(u64, SyncOnDrop<'a>)>,
}

enum AnyView<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    Bf16(CudaView<'a, bf16>),
    Bytes(CudaView<'a, u8>),
}

impl<'a> AnyView<'a> {
    fn of(held: &'a Held<'_>) -> Result<Self> {
        let (storage, lies) = (on_gpu(held.storage())?, held.lies);
        Ok(match storage.dtype() {
            DType::F32 => Self::F32(view(storage, lies)?),
            DType::F16 => Self::F16(view(storage, lies)?),
            DType::BF16 => Self::Bf16(view(storage, lies)?),
            DType::U8 => Self::Bytes(view(storage, lies)?),
            other => bail!("signflash: no operand of scores is {other:?}"), // their dtypes were judged
        })
    }

    fn at<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
        match self {
            Self::F32(view) => view.device_ptr(stream),
            Self::F16(view) => view.device_ptr(stream),
            Self::Bf16(view) => view.device_ptr(stream),
            Self::Bytes(view) => view.device_ptr(stream),
        }
    }
}

impl<'a> Views<'a> {
    pub(super) fn of(held: &'a HeldOperands<'_>) -> Result<Self> {
        let view = |held: &'a Option<Held<'_>>| held.as_ref().map(AnyView::of).transpose();
        Ok(Self {
            alibi_slopes: view(&held.alibi_slopes)?,
            bias: view(&held.bias)?,
            mask: view(&held.mask)?,
            sinks: view(&held.sinks)?,
        })
    }

    pub(super) fn at<'b>(&'b self, stream: &'b CudaStream) -> At<'b> {
        let at = |view: &'b Option<AnyView<'a>>| view.as_ref().map(|view| view.at(stream));
        At {
            alibi_slopes: at(&self.alibi_slopes),
            bias: at(&self.bias),
            mask: at(&self.mask),
            sinks: at(&self.sinks),
        }
    }
}

impl At<'_> {
    /// As kernels are told of it, with the strides of the tensors.
    pub(super) fn on_device(&self, held: &HeldOperands<'_>) -> DeviceScores {
        let strided = |at: &Option<(u64, SyncOnDrop<'_>)>, held: &Option<Held<'_>>| {
            let (at, lies) = (at.as_ref()?.0, held.as_ref()?.lies);
            let strides = lies.stride().try_into().expect("operands of entries were given four dimensions");
            Some(DeviceScoreTensor::of(at, strides))
        };
        DeviceScores {
            alibi_slopes: self.alibi_slopes.as_ref().map_or(0, |at| at.0),
            bias: strided(&self.bias, &held.bias),
            mask: strided(&self.mask, &held.mask),
            sinks: self.sinks.as_ref().map_or(0, |at| at.0),
        }
    }
}

/// Room for the gradient of a bias, dense.
pub(super) enum BiasRoom {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
}

impl BiasRoom {
    pub(super) fn of(device: &CudaDevice, bias: &Bias) -> Result<Self> {
        let len = bias.shape.iter().product();
        Ok(match bias.dtype {
            Dtype::F16 => Self::F16(room(device, len)?),
            Dtype::Bf16 => Self::Bf16(room(device, len)?),
            _ => Self::F32(room(device, len)?),
        })
    }

    pub(super) fn at<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
        match self {
            Self::F32(slice) => slice.device_ptr_mut(stream),
            Self::F16(slice) => slice.device_ptr_mut(stream),
            Self::Bf16(slice) => slice.device_ptr_mut(stream),
        }
    }

    pub(super) fn tensor(self, device: &CudaDevice, dims: &[usize]) -> Tensor {
        fn of<T: CudaDType>(slice: CudaSlice<T>, device: &CudaDevice, dims: &[usize]) -> Tensor {
            tensor_of(slice, device, dims)
        }
        match self {
            Self::F32(slice) => of(slice, device, dims),
            Self::F16(slice) => of(slice, device, dims),
            Self::Bf16(slice) => of(slice, device, dims),
        }
    }
}
