//! The CPU or a GPU, behind one set of calls.

use crate::errors::Error;
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem};
use signflash_cpu::{CpuEngine, peak};
use signflash_cuda::CudaEngine;
use std::time::Duration;

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
            Self::Cpu(_) => crate::machine::cpu_model(),
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
