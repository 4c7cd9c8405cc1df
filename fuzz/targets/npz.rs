//! Any bytes as a .npz archive.
#![no_main]

#[path = "../../crates/cli/tests/all/common/survive.rs"]
mod survive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| survive::npz(bytes));
