//! A GPU if there is one.

use signflash_cuda::{CudaError, Device};
use std::env;
use std::io::{Write, stderr};

/// GPU 0; none, said aloud, if there is no driver or no GPU.
pub(crate) fn gpu() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(reason @ (CudaError::NoDriver | CudaError::NoGpu { .. })) => {
            assert_ne!(env::var("SIGNFLASH_REQUIRE_GPU").as_deref(), Ok("1"), "a GPU is required: {reason}");
            say(&format!("skipped: {reason}"));
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// Prints past the test harness, which hides what passing tests print.
pub(crate) fn say(line: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(stderr(), "{test}: {line}");
}
