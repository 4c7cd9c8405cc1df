//! Opening a GPU, and what it does to the thread.

use crate::support::{gpu, say};
use signflash_cuda::{CudaError, Device, DeviceBuffer, Stream};
use std::ffi::c_void;

#[test]
fn without_a_driver_opening_is_a_sentence() {
    match Device::open(0) {
        Err(error @ CudaError::NoDriver) => {
            assert!(error.to_string().starts_with("this machine has no CUDA driver: "), "{error}");
        }
        _ => say("skipped: this machine has a CUDA driver"),
    }
}

#[test]
fn a_gpu_says_what_it_is() {
    let Some(device) = gpu() else { return };
    let info = device.info();
    say(&format!("{info:?}"));
    assert!(!info.name.is_empty());
    assert!(info.compute_capability >= (8, 0));
    assert!(info.driver_version >= (11, 4));
    assert!(info.sm_count > 0 && info.memory_bytes > 1 << 30);
    assert!(info.smem_per_block_optin_bytes >= 99 << 10);
    assert!(info.smem_per_sm_bytes >= info.smem_per_block_optin_bytes);
}

#[test]
fn a_gpu_that_is_not_there_is_a_sentence() {
    if gpu().is_none() {
        return;
    }
    let error = Device::open(1000).unwrap_err().to_string();
    assert!(error.starts_with("there is no GPU 1000: this process sees "), "{error}");
}

#[test]
fn a_gpu_opened_twice_is_one_context() {
    let Some(first) = gpu() else { return };
    let second = Device::open(0).unwrap();
    let stream = Stream::new(&first).unwrap();
    let buffer = DeviceBuffer::from_host(&stream, b"shared").unwrap();
    // SAFETY: the stream is of the same GPU and outlives this use.
    let same_stream = unsafe { Stream::from_raw(&second, stream.raw()) };
    drop(first);
    assert_eq!(buffer.to_host(&same_stream).unwrap(), b"shared");
}

#[test]
fn calls_from_any_thread_work_and_leave_its_context_alone() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let buffer = DeviceBuffer::from_host(&stream, b"bytes").unwrap();
    std::thread::spawn(move || {
        assert_eq!(buffer.to_host(&stream).unwrap(), b"bytes");
        assert!(current_context().is_null(), "a new thread has no context, and keeps none");
    })
    .join()
    .unwrap();
}

/// The calling thread's context, as the driver says.
fn current_context() -> *mut c_void {
    type GetCurrent = unsafe extern "system" fn(*mut *mut c_void) -> u32;
    let mut context: *mut c_void = std::ptr::dangling_mut();
    // SAFETY: a GPU was opened, so the library is loaded and initialised; `GetCurrent` is what the driver's manual
    // declares, and `context` is valid for a write.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let get_current = library.get::<GetCurrent>("cuCtxGetCurrent").unwrap();
        assert_eq!(get_current(&mut context), 0);
    }
    context
}
