//! `signflash info`.

use crate::cli::VERSION;
use crate::errors::Error;
use crate::{machine, memory};
use signflash_cpu::Isa;
use signflash_cuda::{Device, ModuleCache};
use std::io::Write;

/// Prints what this machine offers.
///
/// # Errors
/// [`Error::Stdout`].
pub fn run(stdout: &mut dyn Write) -> Result<(), Error> {
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
    Ok(())
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
