//! Attention on a GPU: plans of `signflash-kernels`, run by the driver.

use crate::cache::ModuleCache;
use crate::device::Device;
use crate::doing::Doing;
use crate::error::{CudaError, check};
use crate::function::Function;
use crate::known::KnownKernels;
use crate::program::Program;
use crate::said::Said;
use crate::stream::Stream;
use crate::sys;
use crate::workspace::Workspace;
use signflash_core::{Dtype, Problem, ProblemError};
use signflash_kernels::{
    BackwardCall, BackwardChoice, CallError, Config, ForwardCall, ForwardChoice, Gpu, Kernels, NotHopper,
    Task,
};
use std::sync::Arc;

/// Why attention was not computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// An argument does not fit the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The kernels are of 16-bit formats.
    #[error("the GPU's kernels take f16 and bf16, not {0}; convert the tensors, or use the CPU engine")]
    Dtype(Dtype),
    /// The call cannot be run as it is.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The engine was asked for the same bits in every run, the call was not.
    #[error(
        "the engine is deterministic and the call is not; set BackwardCall::deterministic and give it a workspace for that, or use an engine without with_deterministic"
    )]
    NotDeterministic,
    /// The GPU or its driver.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Exact attention with sign-bit dropout on one GPU. Clones share the stream and the compiled kernels.
///
/// [`forward`](Self::forward) and [`backward`](Self::backward) take host tensors; [`forward_on`](Self::forward_on) and
/// [`backward_on`](Self::backward_on) take addresses on the GPU and do not wait. dtypes, accuracy and dropout are those
/// of the contract (`docs/method.md`): f16 and bf16, sums in f32.
///
/// The first call of a configuration compiles its kernel (a fraction of a second), later processes load it from disk.
///
/// ```no_run
/// use signflash_core::{Inputs, Outputs, Problem, Shape, TensorMut, TensorRef, bf16};
/// use signflash_cuda::{CudaEngine, Device};
/// let shape = Shape::new(1, 3, 5).heads(2, 1).head_dim(8);
/// let problem = Problem::builder(shape).build()?;
/// let (q, k) = ([bf16::ONE; 48], [bf16::ONE; 40]);
/// let (mut out, mut lse) = ([bf16::ZERO; 48], [0.0; 6]);
/// let k = TensorRef::bshd(&k, shape.k());
/// let inputs = Inputs::new(TensorRef::bshd(&q, shape.q()), k, k);
/// let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
/// CudaEngine::new(&Device::open(0)?)?.forward(&problem, &inputs, &mut outputs)?;
/// assert_eq!(out, [bf16::ONE; 48]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CudaEngine {
    stream: Arc<Stream>,
    cache: Arc<ModuleCache>,
    known: Arc<KnownKernels>,
    deterministic: bool,
    kernels: Kernels,
}

impl CudaEngine {
    /// On a stream of its own. The backward adds to dq in any order.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Arc::new(Stream::new(device)?),
            cache: Arc::new(ModuleCache::new()),
            known: Arc::default(),
            deterministic: false,
            kernels: Kernels::Best,
        })
    }

    /// Whether [`backward`](Self::backward) gives the same bits in every run, which takes longer: see
    /// [`BackwardCall::deterministic`]. [`backward_on`](Self::backward_on) then refuses calls that do not ask for it.
    pub fn with_deterministic(self, deterministic: bool) -> Self {
        Self { deterministic, ..self }
    }

    /// With the kernels that every GPU since Ampere runs, also where there are faster ones for this GPU alone.
    pub fn with_portable_kernels(self, portable: bool) -> Self {
        Self { kernels: if portable { Kernels::Portable } else { Kernels::Best }, ..self }
    }

    /// With kernels from this cache.
    pub fn with_cache(self, cache: ModuleCache) -> Self {
        Self { cache: Arc::new(cache), known: Arc::default(), ..self }
    }

    /// Whether backwards are the same to the bit in every run.
    pub fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// Where host tensors are worked on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The compiled kernels.
    pub fn cache(&self) -> &ModuleCache {
        &self.cache
    }

    /// What the kernels' tables are asked with.
    pub fn gpu(&self) -> Gpu {
        let info = self.device().info();
        Gpu {
            compute_capability: info.compute_capability,
            smem_per_block_bytes: info.smem_per_block_optin_bytes,
            sm_count: info.sm_count,
        }
    }

    /// Bytes of [`ForwardCall::workspace`]: none, unless sequences are packed.
    pub fn forward_workspace_bytes(&self, problem: &Problem) -> u64 {
        signflash_kernels::forward_workspace_bytes(problem)
    }

    /// Bytes of [`BackwardCall::workspace`].
    pub fn backward_workspace_bytes(&self, problem: &Problem, deterministic: bool) -> u64 {
        signflash_kernels::backward_workspace_bytes(problem, self.gpu(), deterministic)
    }

    /// Puts a forward into a stream; does not wait for it.
    ///
    /// # Errors
    /// [`EngineError::Call`], or the driver's.
    ///
    /// # Safety
    /// The tensors of the call must be valid on this GPU for shape and strides, those written must not overlap others,
    /// and nobody else may write what is read until the stream is done. Of packed sequences, cu_seqlens and a workspace of
    /// [`forward_workspace_bytes`](Self::forward_workspace_bytes) must be valid, too. If the stream is being captured,
    /// that holds for each replay; lengths may change between replays.
    pub unsafe fn forward_on(&self, stream: &Stream, call: &ForwardCall<'_>) -> Result<(), EngineError> {
        let choice = ForwardChoice::of(call, self.gpu(), self.kernels);
        say_portable("forwards", choice.not_hopper());
        // Where the forward is portable, probs are so for the same reason.
        say_portable("probs", choice.probs_not_hopper().filter(|_| choice.not_hopper().is_none()));
        let tasks = choice.tasks()?;
        // SAFETY: the plan reads and writes the call's tensors, for which the caller answers.
        Ok(unsafe { self.run(stream, &tasks) }?)
    }

    /// Puts a backward into a stream; does not wait for it.
    ///
    /// # Errors
    /// As [`forward_on`](Self::forward_on), and [`EngineError::NotDeterministic`].
    ///
    /// # Safety
    /// As [`forward_on`](Self::forward_on); the workspace is written.
    pub unsafe fn backward_on(&self, stream: &Stream, call: &BackwardCall<'_>) -> Result<(), EngineError> {
        require_order(self.deterministic, call.deterministic)?;
        let choice = BackwardChoice::of(call, self.gpu(), self.kernels);
        say_portable("backwards", choice.not_hopper());
        let tasks = choice.tasks()?;
        // SAFETY: the plan reads and writes the call's tensors and workspace, for which the caller answers.
        Ok(unsafe { self.run(stream, &tasks) }?)
    }

    /// Puts the tasks of a plan into a stream; does not wait for them.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// What the tasks' addresses point to is valid, as [`forward_on`](Self::forward_on) says.
    pub unsafe fn run(&self, stream: &Stream, tasks: &[Task]) -> Result<(), CudaError> {
        // Once for all: a thread that has no context yet, such as PyTorch's for the backward, would change it with each
        // launch and each tensor map otherwise.
        let _bound = self.device().bind()?;
        for task in tasks {
            match task {
                Task::Launch { config, grid, args } => {
                    let function = self.function(config)?;
                    // SAFETY: the plan's arguments are those that the kernel declares, and the addresses among them
                    // are the caller's promise. The cache, which lives as long as the engine, keeps the function.
                    unsafe { function.launch(stream, *grid, args)? };
                }
                // SAFETY: the caller's promise about the plan's addresses.
                Task::Zero { ptr, bytes } => unsafe { zero(stream, *ptr, *bytes as usize)? },
            }
        }
        Ok(())
    }

    /// A kernel, compiled if it is used for the first time.
    fn function(&self, config: &Config) -> Result<Arc<Function>, CudaError> {
        self.known.get_or_find(config, || {
            log::info!("{config}: {}", config.words());
            self.cache.get_or_compile(self.device(), &config.to_string(), || Program::from(&config.kernel()))
        })
    }

    /// A workspace for one call on the engine's stream.
    pub(crate) fn workspace(&self, bytes: u64) -> Result<Workspace<'_>, CudaError> {
        Workspace::new(&self.stream, bytes as usize)
    }
}

/// Tells the log that portable kernels compute what Hopper's own could be expected to.
fn say_portable(what: &str, reason: Option<&NotHopper>) {
    static SAID: Said = Said::new();
    if let Some(reason) = reason.filter(|reason| reason.is_of_call()) {
        let line = format!("{reason}: the portable kernels compute such {what}, which is slower");
        SAID.once(line, |line| log::warn!("{line}"));
    }
}

/// That a call asks for one order of additions if the engine promises it.
fn require_order(engine: bool, call: bool) -> Result<(), EngineError> {
    if engine && !call { Err(EngineError::NotDeterministic) } else { Ok(()) }
}

/// # Safety
/// So many bytes from `ptr` on are valid on the stream's GPU.
unsafe fn zero(stream: &Stream, ptr: u64, bytes: usize) -> Result<(), CudaError> {
    let _bound = stream.device().bind()?;
    // SAFETY: the stream is live and its context current; the address is the caller's promise.
    check(unsafe { sys::cuMemsetD8Async(ptr, 0, bytes, stream.handle()) }, || Doing::Fill { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deterministic_engine_refuses_a_call_that_is_not() {
        assert_eq!(require_order(true, false), Err(EngineError::NotDeterministic));
        for (engine, call) in [(true, true), (false, true), (false, false)] {
            assert_eq!(require_order(engine, call), Ok(()));
        }
    }
}
