//! A training step of a model of 6 layers, 512 wide, with attention dropout 0.1: ours beside candle's own operators.
//!
//!     cargo run --release --example step -- [TOKENS..] [--cuda]
//!
//! Prints a table of seconds a step (the middle one of five, both taking turns in one process) and of the memory that a
//! process of each had at its peak; on a GPU, that its memory pool had. `-- ours 8192` measures one by itself. Run in
//! crates/candle; `--cuda` needs `--features cuda`.

mod model;
#[path = "../../../examples/rust/table.rs"]
mod table;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use model::{Kind, Model, Sizes};
use signflash_candle::Generator;
use table::Step;

fn main() -> Result<()> {
    let (options, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let tokens = |arguments: &[String]| -> Vec<usize> {
        arguments.iter().map(|argument| argument.parse().expect("a number of tokens")).collect()
    };
    let device = match options.iter().any(|option| option == "--cuda") {
        true => Device::new_cuda(0)?,
        false => Device::Cpu,
    };
    match arguments.first().map(String::as_str) {
        Some(kind @ ("ours" | "candle")) => {
            let seqlen = tokens(&arguments[1..])[0];
            let seconds = table::alone(step(kind, seqlen, &device)?);
            table::say_alone(kind, seqlen, seconds, peak_mib(&device)?);
        }
        Some("turns") => {
            let seqlen = tokens(&arguments[1..])[0];
            table::say(table::turns([step("ours", seqlen, &device)?, step("candle", seqlen, &device)?]));
        }
        Some(_) => table::table(["ours", "candle"], &tokens(&arguments), &options),
        None => table::table(["ours", "candle"], &[512, 2048, 8192], &options),
    }
    Ok(())
}

/// A training step of a model of this kind.
fn step(kind: &str, seqlen: usize, device: &Device) -> Result<Step> {
    let dtype = if device.is_cuda() { DType::BF16 } else { DType::F32 };
    let sizes = Sizes { symbols: 256, seqlen, width: 512, heads: 8, layers: 6, dropout_p: 0.1 };
    let kind = if kind == "ours" { Kind::Ours(Generator::new(42)) } else { Kind::Candles };
    let weights = VarMap::new();
    let model = Model::new(&sizes, &kind, VarBuilder::from_varmap(&weights, dtype, device))?;
    let mut optimizer = AdamW::new_lr(weights.all_vars(), 1e-4)?;
    let symbols: Vec<u32> = (0..=seqlen as u32).map(|n| n * 7919 % 256).collect();
    let (rows, device) = (Tensor::from_vec(symbols, (1, seqlen + 1), device)?, device.clone());
    let mut step = move || {
        let loss = model.loss(&rows, true)?;
        optimizer.backward_step(&loss)?;
        loss.to_scalar::<f32>()?;
        device.synchronize()
    };
    Ok(Box::new(move || step().expect("a step is computed")))
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
