//! Tensors on the GPU.

use signflash_core::bf16;
use signflash_cuda::{DeviceBuffer, Stream};
use signflash_kernels::{DeviceTensor, Order};

/// Reproducible numbers, roughly normal.
pub(crate) fn normal(n: usize, mut state: u64) -> Vec<bf16> {
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| bf16::from_f32((uniform() + uniform() + uniform() + uniform() - 2.0) * 1.732)).collect()
}

/// Numbers on the GPU, and here.
pub(crate) struct Both {
    pub(crate) host: Vec<bf16>,
    pub(crate) buffer: DeviceBuffer,
}

impl Both {
    pub(crate) fn normal(stream: &Stream, n: usize, seed: u64) -> Self {
        let host = normal(n, seed);
        let buffer = DeviceBuffer::from_host(stream, bytemuck::cast_slice(&host)).unwrap();
        Both { host, buffer }
    }
}

/// (1, rows, 1, columns), dense.
pub(crate) fn matrix(buffer: &DeviceBuffer, columns: usize) -> DeviceTensor {
    DeviceTensor::of(buffer.ptr(), [0, columns, 0, 1], Order::RowsFirst)
}

/// What a buffer holds, as bf16.
pub(crate) fn read(buffer: &DeviceBuffer, stream: &Stream) -> Vec<bf16> {
    let bytes = buffer.to_host(stream).unwrap();
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()
}

/// What a buffer holds, as f32.
pub(crate) fn read_f32(buffer: &DeviceBuffer, stream: &Stream) -> Vec<f32> {
    let bytes = buffer.to_host(stream).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
