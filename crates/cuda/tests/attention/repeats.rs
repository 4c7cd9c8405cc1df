//! The same call again and again: the same bits, and little of the host's time. And what probs cost.

use crate::gpu::{gpu, say};
use crate::tensors::Both;
use signflash_core::{Dropout, Problem, Shape};
use signflash_cuda::{CudaEngine, DeviceBuffer, Event, Stream};
use signflash_kernels::{BackwardCall, DeviceTensor, ForwardCall, Half, Order};
use std::time::Instant;

const HEADS: usize = 4;
const DIM: usize = 128;

/// A problem's tensors on the GPU.
struct Tensors {
    problem: Problem,
    qkv: [DeviceBuffer; 3],
    out: DeviceBuffer,
    lse: DeviceBuffer,
    dout: DeviceBuffer,
    gradients: [DeviceBuffer; 3],
}

impl Tensors {
    fn new(stream: &Stream, batch: usize, seqlen: usize, causal: bool) -> Self {
        let shape = Shape::new(batch, seqlen, seqlen).heads(HEADS, HEADS).head_dim(DIM);
        let dropout = Dropout::new(0.17, 1, 0).unwrap();
        let problem = Problem::builder(shape).causal(causal).dropout(dropout).build().unwrap();
        let rows = batch * seqlen * HEADS;
        let qkv = [1, 2, 3].map(|seed| Both::normal(stream, rows * DIM, seed).buffer);
        let [out, lse] = [2 * DIM, 4].map(|bytes| DeviceBuffer::zeroed(stream, rows * bytes).unwrap());
        let dout = Both::normal(stream, rows * DIM, 4).buffer;
        let gradients = [(); 3].map(|()| DeviceBuffer::zeroed(stream, rows * 2 * DIM).unwrap());
        Tensors { problem, qkv, out, lse, dout, gradients }
    }

    fn dense(&self, buffer: &DeviceBuffer) -> DeviceTensor {
        DeviceTensor::dense(buffer.ptr(), self.problem.shape().q(), Order::RowsFirst)
    }

    /// The backward of one order of additions.
    fn backward(&self, workspace: &DeviceBuffer) -> BackwardCall<'_> {
        let gradients = self.gradients.each_ref().map(|buffer| self.dense(buffer));
        let call = BackwardCall::of(&self.call(), self.dense(&self.dout), gradients, workspace.ptr());
        call.with_deterministic(true)
    }

    fn call(&self) -> ForwardCall<'_> {
        let inputs = self.qkv.each_ref().map(|buffer| self.dense(buffer));
        ForwardCall::new(&self.problem, Half::Bf16, inputs, self.dense(&self.out), self.lse.ptr())
    }
}

#[test]
fn a_thousand_forwards_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let (stream, engine) = (Stream::new(&device).unwrap(), CudaEngine::new(&device).unwrap());
    for causal in [false, true] {
        let tensors = Tensors::new(&stream, 2, 1000, causal);
        let once = || {
            // SAFETY: the tensors have the sizes of the problem, and live until they have been read.
            unsafe { engine.forward_on(&stream, &tensors.call()) }.unwrap();
            (tensors.out.to_host(&stream).unwrap(), tensors.lse.to_host(&stream).unwrap())
        };
        let first = once();
        assert!((1..1000).all(|_| once() == first), "causal {causal}");
    }
    say("1000 forwards, causal and not: equal bits");
}

#[test]
fn fifty_deterministic_backwards_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let (stream, engine) = (Stream::new(&device).unwrap(), CudaEngine::new(&device).unwrap());
    for causal in [false, true] {
        let tensors = Tensors::new(&stream, 6, 3000, causal);
        let bytes = engine.backward_workspace_bytes(&tensors.problem, true) as usize;
        let workspace = DeviceBuffer::alloc(&device, bytes).unwrap();
        // SAFETY: the tensors have the sizes of the problem, and live until they have been read.
        unsafe { engine.forward_on(&stream, &tensors.call()) }.unwrap();
        let once = || {
            // SAFETY: as above; the workspace has the size that was asked for.
            unsafe { engine.backward_on(&stream, &tensors.backward(&workspace)) }.unwrap();
            tensors.gradients.each_ref().map(|buffer| buffer.to_host(&stream).unwrap())
        };
        let first = once();
        assert!(first.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
        assert!((1..50).all(|_| once() == first), "causal {causal}");
    }
    say("50 deterministic backwards with dropout, causal and not: equal bits");
}

#[test]
fn a_call_takes_less_than_10_us_of_the_host() {
    let Some(device) = gpu() else { return };
    let (stream, engine) = (Stream::new(&device).unwrap(), CudaEngine::new(&device).unwrap());
    let tensors = Tensors::new(&stream, 1, 128, false);
    // Few enough that the driver's queue never fills.
    let mut times_us: Vec<f64> = (0..50)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..50 {
                // SAFETY: as above.
                unsafe { engine.forward_on(&stream, &tensors.call()) }.unwrap();
            }
            let time = start.elapsed();
            stream.synchronize().unwrap();
            time.as_secs_f64() * 1e6 / 50.0
        })
        .collect();
    times_us.sort_by(f64::total_cmp);
    say(&format!("a forward takes {:.1} us of the host (median)", times_us[25]));
    if !cfg!(debug_assertions) {
        assert!(times_us[25] < 10.0, "{times_us:.1?}");
    }
}

/// Median of nine, ms.
fn timed(stream: &Stream, mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f32> = (0..10)
        .map(|_| {
            let start = Event::record(stream).unwrap();
            run();
            let end = Event::record(stream).unwrap();
            end.synchronize().unwrap();
            end.ms_since(&start).unwrap()
        })
        .skip(1) // compiles
        .collect();
    times.sort_by(f32::total_cmp);
    times[4].into()
}

#[test]
fn probs_take_little_more_than_writing_them() {
    let Some(device) = gpu() else { return };
    let (stream, engine) = (Stream::new(&device).unwrap(), CudaEngine::new(&device).unwrap());
    let seqlen = 8192;
    let tensors = Tensors::new(&stream, 2, seqlen, false);
    let bytes = 2 * 2 * HEADS * seqlen * seqlen;
    let mut probs = DeviceBuffer::alloc(&device, bytes).unwrap();
    let tensor = DeviceTensor::dense(probs.ptr(), tensors.problem.shape().probs(), Order::HeadsFirst);
    let forward = |probs| {
        let call = tensors.call().with_probs(probs);
        // SAFETY: as above; probs are as large as the problem says.
        timed(&stream, || unsafe { engine.forward_on(&stream, &call) }.unwrap())
    };
    let (without, with) = (forward(None), forward(Some(tensor)));
    let fill = timed(&stream, || probs.fill(&stream, 1).unwrap());
    let ratio = (with - without) / fill;
    say(&format!(
        "probs of {bytes} bytes: {:.2} ms, filling as many takes {fill:.2}: {ratio:.2} times",
        with - without
    ));
    // 1.3 is what is aimed at, about 2 what was measured (docs/hopper.md).
    assert!(ratio < 3.0, "{ratio}");
}
