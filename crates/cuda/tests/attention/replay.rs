//! A captured graph whose seed and offset are in device memory.

use crate::gpu::gpu;
use crate::tensors::{Both, matrix, read};
use signflash_core::{Dropout, Problem, Shape};
use signflash_cuda::{CudaEngine, DeviceBuffer, Graph, Stream};
use signflash_kernels::{ForwardCall, Half};

const LEN: usize = 200;
const DIM: usize = 64;

fn problem(seed: u64, offset: u64) -> Problem {
    let shape = Shape::new(1, LEN, LEN).heads(1, 1).head_dim(DIM);
    Problem::builder(shape).dropout(Dropout::new(0.3, seed, offset).unwrap()).build().unwrap()
}

#[test]
fn each_replay_drops_what_the_seed_in_memory_says() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let engine = CudaEngine::new(&device).unwrap();
    let [q, k, v] = [1, 2, 3].map(|seed| Both::normal(&stream, LEN * DIM, seed).buffer);
    let out = DeviceBuffer::alloc(&device, 2 * LEN * DIM).unwrap();
    let lse = DeviceBuffer::alloc(&device, 4 * LEN).unwrap();
    let probs = DeviceBuffer::alloc(&device, 2 * LEN * LEN).unwrap();
    let mut generator = DeviceBuffer::zeroed(&stream, 16).unwrap();
    let problem_now = problem(99, 99); // its seed and offset are not to be used
    let inputs = [&q, &k, &v].map(|buffer| matrix(buffer, DIM));
    let call = ForwardCall::new(&problem_now, Half::Bf16, inputs, matrix(&out, DIM), lse.ptr());
    let call = call.with_probs(Some(matrix(&probs, LEN))).with_seed_and_offset_ptr(generator.ptr());
    // SAFETY: all buffers are as large as the problem says and live until the last replay has been read. The first
    // call compiles the kernels, which cannot be done while a stream is captured.
    unsafe { engine.forward_on(&stream, &call) }.unwrap();
    stream.synchronize().unwrap();
    // SAFETY: as above.
    let graph =
        Graph::capture(&stream, || unsafe { engine.forward_on(&stream, &call) }.map_err(cuda)).unwrap();
    for (seed, offset) in [(7u64, 0u64), (7, 32), (0xDEAD_BEEF_0BAD_CAFE, u64::MAX - 3)] {
        generator.copy_from_host(&stream, bytemuck::cast_slice(&[seed, offset])).unwrap();
        // SAFETY: as above.
        unsafe { graph.launch(&stream) }.unwrap();
        let probs = read(&probs, &stream);
        let block = problem(seed, offset).keep_rule().unwrap().keep_block(0, 0, 0..LEN, 0..LEN);
        let wrong =
            (0..LEN * LEN).filter(|&n| probs[n].is_sign_negative() == block.keep(n / LEN, n % LEN)).count();
        assert_eq!(wrong, 0, "seed {seed:#x}, offset {offset}");
    }
}

fn cuda(error: signflash_cuda::EngineError) -> signflash_cuda::CudaError {
    match error {
        signflash_cuda::EngineError::Cuda(error) => error,
        other => panic!("{other}"),
    }
}
