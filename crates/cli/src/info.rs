//! `signflash info`.

use crate::cli::{EngineArgs, InfoArgs, VERSION};
use crate::engine::Engine;
use crate::errors::Error;
use crate::table::table;
use crate::{machine, memory};
use signflash_core::{Dropout, Problem, Shape};
use signflash_cpu::Isa;
use signflash_cuda::{Device, ModuleCache};
use signflash_kernels::{Half, Select};
use std::io::Write;

/// Prints what this machine offers.
///
/// # Errors
/// [`Error::Stdout`]; with a device also those of opening it.
pub fn run(args: &InfoArgs, stdout: &mut dyn Write) -> Result<(), Error> {
    let chosen = args.device.as_deref().map(chosen).transpose()?;
    let names = |all: &[Isa]| all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    let memory = memory::available().map_or_else(|| "unknown".to_string(), memory::readable);
    let lines = [
        ("version", VERSION.to_string()),
        ("cpu", machine::cpu_model()),
        ("threads", machine::cores().to_string()),
        ("memory", format!("{memory} available")),
        ("isa", format!("{} (chosen; --isa picks another)", Isa::best())),
        ("available", names(&Isa::available())),
        ("built in", names(&Isa::ALL)),
        ("devices", machine::DEVICES.join(", ")),
    ];
    for (name, value) in lines.into_iter().chain(gpus()) {
        writeln!(stdout, "{name:<10} {value}").map_err(Error::Stdout)?;
    }
    chosen.map_or(Ok(()), |text| write!(stdout, "\n{text}").map_err(Error::Stdout))
}

/// Which kernels forwards and backwards get on a device, and why.
fn chosen(device: &str) -> Result<String, Error> {
    let args = EngineArgs { device: device.into(), ..EngineArgs::default() };
    let Engine::Cuda(engine) = machine::engine(&args)? else {
        return Ok("On the CPU one engine computes everything, with the instruction set above.\n".into());
    };
    let gpu = engine.gpu();
    let mut rows = vec![];
    for (head_dim, dropout_p) in [64, 96, 128, 192, 256].into_iter().flat_map(|d| [(d, 0.0), (d, 0.1)]) {
        let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(head_dim);
        let problem = Problem::builder(shape).dropout(Dropout::new(dropout_p, 0, 0)?).build()?;
        let select = Select { gpu, aligned: true };
        let common = select.common(&problem, Half::Bf16);
        let forward = select.forward(common, problem.shape().seqlen_k);
        let portable = || select.backward(common, false).keys;
        let backward = select.hopper_backward(common, false).first().copied().unwrap_or_else(portable);
        rows.push(vec![
            head_dim.to_string(),
            dropout_p.to_string(),
            forward.to_string(),
            backward.to_string(),
        ]);
    }
    let why = if gpu.is_hopper() {
        "Hopper's own kernels (sf_fwd90, sf_bwd90) compute forwards and backwards. The portable ones \
         (sf_fwd, sf_bwd) take over, and the log says so once for each reason, if head_dim is no multiple of 8, if \
         tensors are empty, if rows do not all start at multiples of 16 bytes, or if a shard starts inside a block of \
         16 rows (backwards and probs: 32 columns) of the dropout mask; of probs also if seqlen_k is no multiple of 8."
            .to_string()
    } else {
        let (major, minor) = gpu.compute_capability;
        format!(
            "The portable kernels compute everything: this is compute capability {major}.{minor}, and Hopper's own need 9.0."
        )
    };
    let header = ["head_dim", "dropout_p", "forward, bf16", "backward's pass over keys, bf16"];
    Ok(format!("{gpu}\n{}\n{why}\n", table(&header, rows, 3)))
}

/// A line for each GPU, and where its kernels are kept; or why there is none.
fn gpus() -> Vec<(&'static str, String)> {
    let all = Device::count().and_then(|count| (0..count).map(Device::open).collect::<Result<Vec<_>, _>>());
    let devices = match all {
        Ok(devices) => devices,
        Err(reason) => return vec![("cuda", reason.to_string())],
    };
    let line = |device: &Device| {
        let info = device.info();
        let ((major, minor), (cuda, update)) = (info.compute_capability, info.driver_version);
        let (memory, sms) = (memory::readable(info.memory_bytes), info.sm_count);
        let text =
            format!("{}, {major}.{minor}, {sms} SMs, {memory}, driver for CUDA {cuda}.{update}", info.name);
        ("cuda", format!("{}: {text}", device.ordinal()))
    };
    let status = ModuleCache::new().status();
    let kept = match (status.directory, status.problem) {
        (Some(directory), None) => directory.display().to_string(),
        (_, problem) => problem.unwrap_or_else(|| "nowhere".into()),
    };
    devices.iter().map(line).chain([("kernels", format!("kept in {kept}"))]).collect()
}
