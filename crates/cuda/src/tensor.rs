//! Tensors for Hopper's copy engine: what a kernel's parameter of 128 bytes holds.

use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::sys::{self, CUtensorMap};
use signflash_kernels::TensorMap;

/// A tensor, encoded by the driver for a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EncodedTensor(CUtensorMap);

impl EncodedTensor {
    /// Encodes a tensor of 16-bit numbers for a GPU. Its memory is not looked at.
    ///
    /// # Errors
    /// The driver's, if [`TensorMap::is_valid`] is false or the driver is older than Hopper's (12.0).
    pub(crate) fn new(device: &Device, map: &TensorMap) -> Result<Self, CudaError> {
        let _bound = device.bind()?;
        use sys::{
            CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill,
            CUtensorMapInterleave as Interleave, CUtensorMapL2promotion as Promotion,
            CUtensorMapSwizzle as Swizzle,
        };
        let mut encoded = CUtensorMap { opaque: [0; 16] };
        let (dims, strides_bytes) = (map.sizes(), map.all_strides_bytes());
        let boxes = [TensorMap::BOX_COLUMNS, map.box_rows, 1, 1, 1];
        let steps = [1u32; 5];
        // SAFETY: `encoded` is valid for a write and aligned by its type; the arrays have as many numbers as the largest
        // rank, 5, asks for (4 strides); the address is only written down.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded,
                Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                map.rank() as u32,
                map.base as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides_bytes.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, || Doing::EncodeTensor { map: format!("{map:?}") })?;
        Ok(Self(encoded))
    }
}
