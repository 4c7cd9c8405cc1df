//! The GPU's kernels on the CPU: for tests, and for looking.
use crate::call::{CallError, Task, half_of};
use crate::choose::{BackwardChoice, ForwardChoice, Kernels};
use crate::config::Config;
use crate::gpu::Gpu;
use crate::hosted::{HostBackward, HostForward, Memory};
use crate::workspace::{backward_workspace_bytes, forward_workspace_bytes};
use signflash_core::{
    Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, ResultOf,
};
use signflash_ptx::{Global, Half, Kernel, Launch, Pointer, Trap};
use std::convert::Infallible;

/// Runs the plan of a GPU in the interpreter, which reports races, missing waits and reads of what nobody wrote.
///
/// Slow: about a million times slower than a GPU.
///
/// ```
/// use signflash_core::{Inputs, Outputs, Problem, Shape, TensorMut, TensorRef, f16};
/// use signflash_kernels::{Gpu, Interpreted};
/// let shape = Shape::new(1, 3, 5).heads(2, 1).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (q, k) = ([f16::ONE; 48], [f16::ONE; 40]);
/// let (mut out, mut lse) = ([f16::ZERO; 48], [0.0; 6]);
/// let inputs = Inputs::new(
///     TensorRef::bshd(&q, shape.q()),
///     TensorRef::bshd(&k, shape.k()),
///     TensorRef::bshd(&k, shape.v()),
/// );
/// let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
/// Interpreted::new(Gpu::SMALL).forward(&problem, &inputs, &mut outputs)?;
/// assert_eq!(out, [f16::ONE; 48]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Interpreted {
    /// The GPU whose configurations are taken.
    pub gpu: Gpu,
    /// Draws the schedules.
    pub seed: u64,
    /// Whether the backward has one order of additions.
    pub deterministic: bool,
}

/// Why a call was not run to its end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InterpretError {
    /// An argument does not fit the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The kernels are of 16-bit formats.
    #[error("the GPU's kernels take f16 and bf16, not {0}; convert the tensors, or use the CPU")]
    Dtype(Dtype),
    /// The call cannot be run as it is.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A kernel broke a rule.
    #[error(transparent)]
    Trap(#[from] Box<Trap>),
}

impl Interpreted {
    /// One schedule on a GPU's configurations; the backward as it is by default, adding to dq.
    pub fn new(gpu: Gpu) -> Self {
        Interpreted { gpu, seed: 0, deterministic: false }
    }

    /// out, lse and, if asked for, probs: as in [`Outputs`]. Results may be f32, but not with probs.
    ///
    /// # Errors
    /// An [`InterpretError`]; nothing is written then.
    pub fn forward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, R>,
    ) -> Result<(), InterpretError> {
        self.forward_by(&Config::kernel, problem, inputs, outputs)
    }

    /// The same by other kernels than those of the configurations.
    ///
    /// # Errors
    /// As of [`forward`](Self::forward).
    pub fn forward_by<T: Element, R: Element + ResultOf<T>>(
        &self,
        kernel: &dyn Fn(&Config) -> Kernel,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, R>,
    ) -> Result<(), InterpretError> {
        self.forward_as(kernel, problem, inputs, outputs, false)
    }

    /// The same that adds: outputs hold out and lse of other keys, and then those of all of them.
    ///
    /// # Errors
    /// As of [`forward`](Self::forward).
    pub fn forward_added<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, f32>,
    ) -> Result<(), InterpretError>
    where
        f32: ResultOf<T>,
    {
        self.forward_as(&Config::kernel, problem, inputs, outputs, true)
    }

    fn forward_as<T: Element, R: Element + ResultOf<T>>(
        &self,
        kernel: &dyn Fn(&Config) -> Kernel,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, R>,
        adds: bool,
    ) -> Result<(), InterpretError> {
        let half = Self::half::<T>()?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let mut memory = Global::default();
        let Ok(held) = HostForward::upload(&mut memory, (problem, half, adds), inputs, outputs);
        let space = forward_workspace_bytes(problem);
        let workspace = memory.reserve("workspace", space as usize).0;
        let tasks = ForwardChoice::of(&held.call(workspace), self.gpu, Kernels::Best).tasks()?;
        self.run(kernel, &mut memory, &tasks)?;
        let Ok(()) = held.download(&memory, outputs);
        Ok(())
    }

    /// dq, dk and dv: as in [`Gradients`]. They may be f32.
    ///
    /// # Errors
    /// An [`InterpretError`]; nothing is written then.
    pub fn backward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
    ) -> Result<(), InterpretError> {
        self.backward_by(&Config::kernel, problem, inputs, gradients)
    }

    /// The same by other kernels than those of the configurations.
    ///
    /// # Errors
    /// As of [`backward`](Self::backward).
    pub fn backward_by<T: Element, R: Element + ResultOf<T>>(
        &self,
        kernel: &dyn Fn(&Config) -> Kernel,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
    ) -> Result<(), InterpretError> {
        self.backward_as(kernel, problem, inputs, gradients, false)
    }

    /// The same that adds to what gradients hold.
    ///
    /// # Errors
    /// As of [`backward`](Self::backward).
    pub fn backward_added<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, f32>,
    ) -> Result<(), InterpretError>
    where
        f32: ResultOf<T>,
    {
        self.backward_as(&Config::kernel, problem, inputs, gradients, true)
    }

    fn backward_as<T: Element, R: Element + ResultOf<T>>(
        &self,
        kernel: &dyn Fn(&Config) -> Kernel,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
        adds: bool,
    ) -> Result<(), InterpretError> {
        let half = Self::half::<T>()?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        let mut memory = Global::default();
        let Ok(held) = HostBackward::upload(&mut memory, (problem, half, adds), inputs, gradients);
        let space = backward_workspace_bytes(problem, self.gpu, self.deterministic);
        let workspace = memory.reserve("workspace", space as usize).0;
        let call = held.call(workspace, self.deterministic);
        let tasks = BackwardChoice::of(&call, self.gpu, Kernels::Best).tasks()?;
        self.run(kernel, &mut memory, &tasks)?;
        let Ok(()) = held.download(&memory, gradients);
        Ok(())
    }

    fn half<T: Element>() -> Result<Half, InterpretError> {
        half_of(T::DTYPE).ok_or(InterpretError::Dtype(T::DTYPE))
    }

    fn run(
        &self,
        kernel: &dyn Fn(&Config) -> Kernel,
        memory: &mut Global,
        tasks: &[Task],
    ) -> Result<(), InterpretError> {
        for task in tasks {
            match task {
                Task::Zero { ptr, bytes } => memory.zero(*ptr, *bytes as usize),
                Task::Launch { config, grid, args } => {
                    kernel(config).interpret(&Launch { grid: *grid, args, seed: self.seed }, memory)?;
                }
            }
        }
        Ok(())
    }
}

/// The interpreter finds room for everything.
impl Memory for Global {
    type Buffer = Pointer;
    type Error = Infallible;

    fn upload(&mut self, name: &'static str, bytes: &[u8]) -> Result<Pointer, Infallible> {
        Ok(Global::upload(self, name, bytes))
    }

    fn reserve(&mut self, name: &'static str, bytes: usize) -> Result<Pointer, Infallible> {
        Ok(Global::reserve(self, name, bytes))
    }

    fn address(&self, buffer: &Pointer) -> u64 {
        buffer.0
    }

    fn download(&self, buffer: &Pointer, to: &mut [u8]) -> Result<(), Infallible> {
        to.copy_from_slice(self.bytes(*buffer));
        Ok(())
    }
}
