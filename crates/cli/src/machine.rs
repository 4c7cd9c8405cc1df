//! The device, instruction set and threads that a command runs with, and what the machine is called.

use crate::args::EngineArgs;
use crate::engine::Engine;
use crate::errors::Error;
use signflash_cpu::{CpuEngine, Isa};
use signflash_cuda::{CudaEngine, Device, EngineError};
use std::fs;

/// The devices that `--device` understands.
pub const DEVICES: [&str; 3] = ["cpu", "cuda", "cuda:N"];

/// More threads than cores gain nothing, and so many more cost: they wait for each other.
const THREADS_PER_CORE: usize = 4;
/// On any machine so many threads may be asked for, to try what they do.
const FEW_THREADS: usize = 64;
/// What rayon reads where nothing else is said.
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// The engine that the arguments ask for. Sets the size of the process's thread pool, so call it once.
///
/// # Errors
/// [`Error::Argument`], [`Error::Isa`] or [`Error::Engine`].
pub fn engine(args: &EngineArgs) -> Result<Engine, Error> {
    if args.device == "cpu" {
        let isa =
            args.isa.as_deref().map_or_else(|| Ok(Isa::best()), |name| name.parse::<Isa>()?.require())?;
        set_threads(args.threads)?;
        if args.portable_kernels {
            let expected = "left out with --device cpu: it is a GPU's".to_string();
            return Err(Error::Argument { argument: "--portable-kernels", expected, got: "it".into() });
        }
        return Ok(Engine::Cpu(CpuEngine::new().with_isa(isa)?));
    }
    let ordinal = ordinal(&args.device).ok_or_else(|| Error::Argument {
        argument: "--device",
        expected: DEVICES.join(", "),
        got: format!("{:?}", args.device),
    })?;
    let of_the_cpu = [("--isa", args.isa.clone()), ("--threads", args.threads.map(|n| n.to_string()))];
    if let Some((argument, got)) = of_the_cpu.into_iter().find_map(|(name, value)| Some((name, value?))) {
        let expected = format!("left out with --device {}: it is the CPU's", args.device);
        return Err(Error::Argument { argument, expected, got });
    }
    set_threads(None)?; // for the f64 formulas of --verify
    let gpu = Device::open(ordinal).and_then(|device| CudaEngine::new(&device)).map_err(EngineError::from)?;
    Ok(Engine::Cuda(Box::new(
        gpu.with_deterministic(args.deterministic).with_portable_kernels(args.portable_kernels),
    )))
}

/// The number of the GPU in `cuda` or `cuda:N`.
fn ordinal(device: &str) -> Option<u32> {
    match device.strip_prefix("cuda")? {
        "" => Some(0),
        number => number.strip_prefix(':')?.parse().ok(),
    }
}

/// Starts the process's thread pool: `None` leaves it at what the environment says, else one thread a core.
///
/// # Errors
/// [`Error::Argument`] for a number that cannot help; [`Error::Threads`] if the system starts none.
pub fn set_threads(threads: Option<usize>) -> Result<(), Error> {
    // What is no number, and 0, are nothing to rayon either.
    let from_environment =
        || std::env::var(THREADS_VARIABLE).ok()?.parse().ok().filter(|&threads| threads > 0);
    let (argument, threads) = match threads {
        Some(threads) => ("--threads", threads),
        None => (THREADS_VARIABLE, from_environment().unwrap_or_else(cores)),
    };
    let most = FEW_THREADS.max(THREADS_PER_CORE * cores());
    if !(1..=most).contains(&threads) {
        let expected = format!("from 1 to {most} on a machine of {} cores", cores());
        return Err(Error::Argument { argument, expected, got: threads.to_string() });
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::Threads { threads, why: error.to_string() })
}

/// The CPU's name, or its architecture where the system does not tell.
pub fn cpu_model() -> String {
    let named = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    });
    named.unwrap_or_else(|| format!("{} ({})", std::env::consts::ARCH, std::env::consts::OS))
}

/// Hardware threads that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
