//! Buffers, workspaces and time.

use crate::support::{gpu, say};
use signflash_cuda::{CudaError, DeviceBuffer, Event, Stream, Workspace};

#[test]
fn bytes_come_back_as_they_went() {
    let Some(device) = gpu() else { return };
    for stream in [Stream::new(&device).unwrap(), Stream::default_of(&device)] {
        let bytes: Vec<u8> = (0..100_003u32).map(|i| (i * 7) as u8).collect();
        let mut buffer = DeviceBuffer::from_host(&stream, &bytes).unwrap();
        assert_eq!(buffer.to_host(&stream).unwrap(), bytes);
        buffer.fill(&stream, 0xa5).unwrap();
        assert_eq!(buffer.to_host(&stream).unwrap(), vec![0xa5; bytes.len()]);
        assert_eq!(DeviceBuffer::zeroed(&stream, 5).unwrap().to_host(&stream).unwrap(), [0; 5]);
        assert_eq!(buffer.ptr() % 256, 0);
    }
}

#[test]
fn a_buffer_may_be_empty() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut empty = DeviceBuffer::from_host(&stream, &[]).unwrap();
    empty.fill(&stream, 1).unwrap();
    assert_eq!((empty.ptr(), empty.len_bytes(), empty.to_host(&stream).unwrap()), (0, 0, vec![]));
    assert_eq!(Workspace::new(&stream, 0).unwrap().ptr(), 0);
}

#[test]
fn lengths_that_differ_are_refused() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut buffer = DeviceBuffer::alloc(&device, 8).unwrap();
    assert!(matches!(
        buffer.copy_from_host(&stream, &[0; 9]),
        Err(CudaError::Length { device: 8, host: 9, .. })
    ));
    assert!(matches!(buffer.copy_to_host(&stream, &mut [0; 7]), Err(CudaError::Length { .. })));
}

#[test]
fn too_much_memory_is_a_sentence() {
    let Some(device) = gpu() else { return };
    let error = DeviceBuffer::alloc(&device, 1 << 50).unwrap_err().to_string();
    say(&error);
    assert!(
        error.starts_with("allocating 1125899906842624 bytes on the GPU failed: CUDA_ERROR_OUT_OF_MEMORY")
    );
}

#[test]
fn a_workspace_is_there_for_the_streams_work() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    for _ in 0..100 {
        let mut scratch = Workspace::new(&stream, 1 << 20).unwrap();
        scratch.fill(3).unwrap();
        assert_ne!(scratch.ptr(), 0);
    }
    stream.synchronize().unwrap();
}

#[test]
fn events_measure_time() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut buffer = DeviceBuffer::alloc(&device, 256 << 20).unwrap();
    buffer.fill(&stream, 0).unwrap();
    let start = Event::record(&stream).unwrap();
    buffer.fill(&stream, 1).unwrap();
    let ms = Event::record(&stream).unwrap().ms_since(&start).unwrap();
    say(&format!("256 MiB filled in {ms:.3} ms"));
    assert!(ms > 0.0 && ms < 1000.0);
}
