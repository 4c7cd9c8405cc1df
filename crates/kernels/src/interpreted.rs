//! The GPU's kernels on the CPU: for tests, and for looking.
use crate::parts::args::DeviceTensor;
use crate::plan::{self, BackwardCall, ForwardCall, Step, TooManyBlocks};
use crate::select::{Gpu, half_of};
use signflash_core::{
    Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, TensorMut, TensorRef,
};
use signflash_ptx::{Global, Half, Launch, Pointer, Trap};

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
    /// The call is too large for one launch.
    #[error(transparent)]
    TooManyBlocks(#[from] TooManyBlocks),
    /// A kernel broke a rule.
    #[error(transparent)]
    Trap(#[from] Box<Trap>),
}

impl Interpreted {
    /// One schedule on a GPU's configurations; the backward as it is by default, adding to dq.
    pub fn new(gpu: Gpu) -> Self {
        Interpreted { gpu, seed: 0, deterministic: false }
    }

    /// out, lse and, if asked for, probs: as in [`Outputs`].
    ///
    /// # Errors
    /// An [`InterpretError`]; nothing is written then.
    pub fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), InterpretError> {
        let half = Self::half::<T>()?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let mut memory = Global::default();
        let out = upload_mut(&mut memory, "out", &outputs.out);
        let lse = memory.reserve("lse", 4 * outputs.lse.len());
        let probs = outputs.probs.as_ref().map(|probs| {
            let tensor = upload_mut(&mut memory, "probs", probs);
            // Its dimensions are batch, head, row, column.
            DeviceTensor { head_stride: tensor.row_stride, row_stride: tensor.head_stride, ..tensor }
        });
        let call = ForwardCall {
            problem,
            half,
            q: upload(&mut memory, "q", &inputs.q),
            k: upload(&mut memory, "k", &inputs.k),
            v: upload(&mut memory, "v", &inputs.v),
            out,
            lse: lse.0,
            probs,
            seed_and_offset_ptr: 0,
        };
        self.run(&mut memory, &plan::forward(&call, self.gpu)?)?;
        download(&memory, out, &mut outputs.out);
        let values = memory.bytes(lse).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        outputs.lse.iter_mut().zip(values).for_each(|(to, from)| *to = from);
        if let (Some(to), Some(from)) = (&mut outputs.probs, probs) {
            download(&memory, from, to);
        }
        Ok(())
    }

    /// dq, dk and dv: as in [`Gradients`].
    ///
    /// # Errors
    /// An [`InterpretError`]; nothing is written then.
    pub fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), InterpretError> {
        let half = Self::half::<T>()?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        let mut memory = Global::default();
        let bytes = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_le_bytes()).collect() };
        let space = plan::backward_workspace_bytes(problem, self.gpu, self.deterministic);
        let call = BackwardCall {
            problem,
            half,
            q: upload(&mut memory, "q", &inputs.inputs.q),
            k: upload(&mut memory, "k", &inputs.inputs.k),
            v: upload(&mut memory, "v", &inputs.inputs.v),
            out: upload(&mut memory, "out", &inputs.out),
            lse: memory.upload("lse", &bytes(inputs.lse)).0,
            dout: upload(&mut memory, "dout", &inputs.dout),
            dlse: inputs.dlse.map(|dlse| memory.upload("dlse", &bytes(dlse)).0),
            dq: upload_mut(&mut memory, "dq", &gradients.dq),
            dk: upload_mut(&mut memory, "dk", &gradients.dk),
            dv: upload_mut(&mut memory, "dv", &gradients.dv),
            workspace: memory.reserve("workspace", space as usize).0,
            deterministic: self.deterministic,
            seed_and_offset_ptr: 0,
        };
        self.run(&mut memory, &plan::backward(&call, self.gpu)?)?;
        download(&memory, call.dq, &mut gradients.dq);
        download(&memory, call.dk, &mut gradients.dk);
        download(&memory, call.dv, &mut gradients.dv);
        Ok(())
    }

    fn half<T: Element>() -> Result<Half, InterpretError> {
        half_of(T::DTYPE).ok_or(InterpretError::Dtype(T::DTYPE))
    }

    fn run(&self, memory: &mut Global, steps: &[Step]) -> Result<(), InterpretError> {
        for step in steps {
            match step {
                Step::Zero { ptr, bytes } => memory.zero(*ptr, *bytes as usize),
                Step::Launch { config, grid, args } => {
                    config.kernel().interpret(&Launch { grid: *grid, args, seed: self.seed }, memory)?;
                }
            }
        }
        Ok(())
    }
}

fn upload<T: Element>(memory: &mut Global, name: &str, tensor: &TensorRef<'_, T>) -> DeviceTensor {
    describe(memory.upload(name, bytemuck::cast_slice(tensor.data)), tensor.strides)
}

fn upload_mut<T: Element>(memory: &mut Global, name: &str, tensor: &TensorMut<'_, T>) -> DeviceTensor {
    upload(memory, name, &tensor.as_ref())
}

fn describe(pointer: Pointer, [batch, row, head, _]: [usize; 4]) -> DeviceTensor {
    let [batch_stride, row_stride, head_stride] = [batch, row, head].map(|stride| stride as u64);
    DeviceTensor { ptr: pointer.0, batch_stride, row_stride, head_stride }
}

fn download<T: Element>(memory: &Global, from: DeviceTensor, to: &mut TensorMut<'_, T>) {
    bytemuck::cast_slice_mut::<T, u8>(to.data).copy_from_slice(memory.bytes(Pointer(from.ptr)));
}
