//! A training step of a model of 6 layers, 512 wide, with attention dropout 0.1: ours beside candle's own operators.
//!
//!     cargo run --release --example step -- [TOKENS..] [--cuda]
//!
//! Prints a table of seconds a step (the median of five, after two) and of the memory that the process had at its peak; on
//! a GPU, that its memory pool had. Run in crates/candle; `--cuda` needs `--features cuda`.

mod model;
#[path = "../../../examples/rust/table.rs"]
mod table;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use model::{Kind, Model, Sizes};
use signflash_candle::Generator;
use std::time::Instant;
use table::{Measured, median};

fn main() -> Result<()> {
    let (options, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let tokens = |arguments: &[String]| -> Vec<usize> {
        arguments.iter().map(|argument| argument.parse().expect("a number of tokens")).collect()
    };
    match arguments.first().map(String::as_str) {
        Some(kind @ ("ours" | "candle")) => return measure(kind, tokens(&arguments[1..])[0], &options),
        Some(_) => table::table(["ours", "candle"], &tokens(&arguments), &options),
        None => table::table(["ours", "candle"], &[512, 2048, 8192], &options),
    }
    Ok(())
}

fn measure(kind: &str, seqlen: usize, options: &[String]) -> Result<()> {
    let cuda = options.iter().any(|option| option == "--cuda");
    let (device, dtype) = if cuda { (Device::new_cuda(0)?, DType::BF16) } else { (Device::Cpu, DType::F32) };
    let sizes = Sizes { symbols: 256, seqlen, width: 512, heads: 8, layers: 6, dropout_p: 0.1 };
    let kind = if kind == "ours" { Kind::Ours(Generator::new(42)) } else { Kind::Candles };
    let weights = VarMap::new();
    let model = Model::new(&sizes, &kind, VarBuilder::from_varmap(&weights, dtype, &device))?;
    let mut optimizer = AdamW::new_lr(weights.all_vars(), 1e-4)?;
    let symbols: Vec<u32> = (0..=seqlen as u32).map(|n| n * 7919 % 256).collect();
    let rows = Tensor::from_vec(symbols, (1, seqlen + 1), &device)?;
    let mut seconds = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        let loss = model.loss(&rows, true)?;
        optimizer.backward_step(&loss)?;
        loss.to_scalar::<f32>()?;
        device.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    table::say(Measured { seconds: median(seconds.split_off(2)), mib: peak_mib(&device)? });
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn peak_mib(_: &Device) -> Result<f64> {
    Ok(table::peak_mib())
}

/// Of the pool that candle allocates from, since the process began.
#[cfg(feature = "cuda")]
fn peak_mib(device: &Device) -> Result<f64> {
    use candle_core::cuda_backend::cudarc::driver::sys;
    let Device::Cuda(device) = device else { return Ok(table::peak_mib()) };
    let (mut pool, mut bytes) = (std::ptr::null_mut(), 0u64);
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the device is open; both are valid for a write, and the attribute is a number of 64 bits.
    unsafe {
        let found = sys::cuDeviceGetDefaultMemPool(&mut pool, device.cuda_stream().context().cu_device());
        assert_eq!(found, sys::CUresult::CUDA_SUCCESS);
        let read = sys::cuMemPoolGetAttribute(pool, high, (&raw mut bytes).cast());
        assert_eq!(read, sys::CUresult::CUDA_SUCCESS);
    }
    Ok(bytes as f64 / (1 << 20) as f64)
}
