//! The CPU or a GPU, behind one set of calls.

use crate::args::EngineArgs;
use crate::errors::Error;
use crate::machine;
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_cpu::{CpuEngine, Isa, peak};
use signflash_cuda::{CudaEngine, Device, EngineError};
use std::time::Duration;

/// The devices that `--device` understands.
pub const DEVICES: [&str; 3] = ["cpu", "cuda", "cuda:N"];

/// How long the multiply-add rate is measured.
const PEAK_TIME: Duration = Duration::from_millis(300);

/// What computes.
#[derive(Clone, Debug)]
pub enum Engine {
    /// This machine's processor.
    Cpu(CpuEngine),
    /// A GPU.
    Cuda(Box<CudaEngine>),
}

impl Engine {
    /// The engine that the arguments ask for. Sets the size of the process's thread pool, so call it once.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Isa`] or [`Error::Engine`].
    pub fn of(args: &EngineArgs) -> Result<Self, Error> {
        if args.device == "cpu" {
            let isa =
                args.isa.as_deref().map_or_else(|| Ok(Isa::best()), |name| name.parse::<Isa>()?.require())?;
            machine::set_threads(args.threads)?;
            if args.portable_kernels {
                let expected = "left out with --device cpu: it is a GPU's".to_string();
                return Err(Error::Argument { argument: "--portable-kernels", expected, got: "it".into() });
            }
            return Ok(Self::Cpu(CpuEngine::new().with_isa(isa)?));
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
        machine::set_threads(None)?; // for the f64 formulas of --verify
        let gpu =
            Device::open(ordinal).and_then(|device| CudaEngine::new(&device)).map_err(EngineError::from)?;
        Ok(Self::Cuda(Box::new(
            gpu.with_deterministic(args.deterministic).with_portable_kernels(args.portable_kernels),
        )))
    }

    /// See the engines' own.
    ///
    /// # Errors
    /// [`Error::Problem`] or [`Error::Engine`].
    pub fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), Error> {
        match self {
            Self::Cpu(engine) => Ok(engine.forward(problem, inputs, outputs)?),
            Self::Cuda(engine) => Ok(engine.forward(problem, inputs, outputs)?),
        }
    }

    /// See the engines' own.
    ///
    /// # Errors
    /// [`Error::Problem`] or [`Error::Engine`].
    pub fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), Error> {
        match self {
            Self::Cpu(engine) => Ok(engine.backward(problem, inputs, gradients)?),
            Self::Cuda(engine) => Ok(engine.backward(problem, inputs, gradients)?),
        }
    }

    /// `cpu` or `cuda:0`.
    pub fn device(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".into(),
            Self::Cuda(engine) => format!("cuda:{}", engine.device().ordinal()),
        }
    }

    /// What the device is called.
    pub fn machine(&self) -> String {
        match self {
            Self::Cpu(_) => machine::cpu_model(),
            Self::Cuda(engine) => engine.device().info().name.clone(),
        }
    }

    /// Instruction set and threads, or compute capability and driver: what a result's speed depends on.
    pub fn variant(&self) -> String {
        match self {
            Self::Cpu(engine) => format!("{}, {} threads", engine.isa(), engine.threads()),
            Self::Cuda(engine) => {
                let info = engine.device().info();
                let ((major, minor), (cuda, update)) = (info.compute_capability, info.driver_version);
                format!("compute capability {major}.{minor}, driver for CUDA {cuda}.{update}")
            }
        }
    }

    /// Multiply-adds in registers a second, times two: known of the CPU only, where it is measured.
    pub fn peak_gflops(&self, dtype: Dtype) -> Option<f64> {
        match self {
            Self::Cpu(engine) => Some(peak::fma_gflops(engine.isa(), dtype, engine.threads(), PEAK_TIME)),
            Self::Cuda(_) => None,
        }
    }
}

/// The number of the GPU in `cuda` or `cuda:N`.
fn ordinal(device: &str) -> Option<u32> {
    match device.strip_prefix("cuda")? {
        "" => Some(0),
        number => number.strip_prefix(':')?.parse().ok(),
    }
}
