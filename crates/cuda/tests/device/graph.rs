//! Recording and replaying.

use crate::support::{DRAW, drawn, gpu, program, say};
use signflash_cuda::{Arg, DeviceBuffer, Function, Graph, Stream, Workspace};

#[test]
fn a_seed_in_memory_draws_anew_at_each_replay() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let program = program("draw", DRAW, &[8, 8], 256);
    let kernel = Function::compile(&device, &program).unwrap();
    let seed = DeviceBuffer::from_host(&stream, &41u32.to_le_bytes()).unwrap();
    let out = DeviceBuffer::zeroed(&stream, 256).unwrap();
    let args = [Arg::from(&seed), Arg::from(&out)];
    // SAFETY: `seed` holds one word, `out` 256 bytes, and both live until the last replay has been read.
    let graph = Graph::capture(&stream, || unsafe { kernel.launch(&stream, 1, &args) }).unwrap();
    assert_eq!(out.to_host(&stream).unwrap(), [0; 256], "recording runs nothing");
    for replay in 0..4 {
        // SAFETY: kernel and buffers are still there, and nobody else uses them.
        unsafe { graph.launch(&stream) }.unwrap();
        assert_eq!(out.to_host(&stream).unwrap(), drawn(41 + replay), "replay {replay}");
    }
    assert_ne!(drawn(41), drawn(42));
    assert_eq!(seed.to_host(&stream).unwrap(), 45u32.to_le_bytes());
}

#[test]
fn a_workspace_within_a_recording_is_made_at_each_replay() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut after = DeviceBuffer::zeroed(&stream, 16).unwrap();
    let graph = Graph::capture(&stream, || {
        let mut scratch = Workspace::new(&stream, 1 << 20)?;
        scratch.fill(1)?;
        after.fill(&stream, 2)
    })
    .unwrap();
    for _ in 0..3 {
        // SAFETY: `after` is still there, and nobody else uses it.
        unsafe { graph.launch(&stream) }.unwrap();
    }
    assert_eq!(after.to_host(&stream).unwrap(), [2; 16]);
}

#[test]
fn a_recording_that_fails_leaves_the_stream_usable() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut buffer = DeviceBuffer::zeroed(&stream, 16).unwrap();
    let error = Graph::capture(&stream, || stream.synchronize()).unwrap_err().to_string();
    say(&error);
    assert!(error.contains("while a stream is captured"), "{error}");
    buffer.fill(&stream, 9).unwrap();
    assert_eq!(buffer.to_host(&stream).unwrap(), [9; 16]);
}

#[test]
fn the_default_stream_cannot_be_recorded() {
    let Some(device) = gpu() else { return };
    let error = Graph::capture(&Stream::default_of(&device), || Ok(())).unwrap_err().to_string();
    assert!(error.starts_with("capturing a stream failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), "{error}");
}
