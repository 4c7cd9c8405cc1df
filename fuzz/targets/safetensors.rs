//! Any bytes as a .safetensors file.
#![no_main]

#[path = "../../crates/cli/tests/all/common/survive.rs"]
mod survive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| survive::safetensors(bytes));
