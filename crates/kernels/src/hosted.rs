//! Attention of tensors in the host's memory: what is uploaded, what is called with it, what is downloaded. Once for
//! the interpreter and the driver.
use crate::call::{BackwardCall, ForwardCall};
use crate::config::Stored;
use crate::scores::{DeviceScoreTensor, DeviceScores};
use crate::tensor::{DeviceTensor, Order};
use signflash_core::{
    BiasMut, BiasRef, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ResultOf, ScoreInputs,
    TensorMut, TensorRef,
};
use signflash_ptx::Half;

/// A GPU's memory, or what stands for it.
pub trait Memory {
    /// Some bytes there, which are the holder's alone.
    type Buffer;
    /// Why there are none, or why they could not be copied.
    type Error;

    /// A buffer with these bytes.
    ///
    /// # Errors
    /// The memory's.
    fn upload(&mut self, name: &'static str, bytes: &[u8]) -> Result<Self::Buffer, Self::Error>;

    /// A buffer of so many bytes, which nobody has written.
    ///
    /// # Errors
    /// The memory's.
    fn reserve(&mut self, name: &'static str, bytes: usize) -> Result<Self::Buffer, Self::Error>;

    /// Where a buffer begins.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Copies a whole buffer, as kernels have left it.
    ///
    /// # Errors
    /// The memory's.
    fn download(&self, buffer: &Self::Buffer, to: &mut [u8]) -> Result<(), Self::Error>;
}

/// A host tensor's storage on the GPU, gaps included.
#[derive(Debug)]
struct Held<B> {
    buffer: B,
    tensor: DeviceTensor,
}

impl<B> Held<B> {
    fn upload<T: Element, M: Memory<Buffer = B>>(
        memory: &mut M,
        name: &'static str,
        tensor: &TensorRef<'_, T>,
        order: Order,
    ) -> Result<Self, M::Error> {
        let buffer = memory.upload(name, bytemuck::cast_slice(tensor.data))?;
        let tensor = DeviceTensor::of(memory.address(&buffer), tensor.strides, order);
        Ok(Held { buffer, tensor })
    }

    fn download<T: Element, M: Memory<Buffer = B>>(
        &self,
        memory: &M,
        to: &mut TensorMut<'_, T>,
    ) -> Result<(), M::Error> {
        memory.download(&self.buffer, bytemuck::cast_slice_mut(to.data))
    }
}

/// Where packed sequences begin, uploaded.
#[derive(Debug)]
struct Begins<B> {
    /// Of queries and of keys; held, since kernels read them.
    _buffers: [B; 2],
    addresses: [u64; 2],
}

impl<B> Begins<B> {
    /// Of a problem, if its sequences are packed.
    fn upload<M: Memory<Buffer = B>>(memory: &mut M, problem: &Problem) -> Result<Option<Self>, M::Error> {
        let Some([q, k]) = problem.cu_seqlens() else { return Ok(None) };
        let mut up = |name, numbers: &[u32]| memory.upload(name, bytemuck::cast_slice(numbers));
        let buffers = [up("cu_seqlens_q", q)?, up("cu_seqlens_k", k)?];
        let addresses = buffers.each_ref().map(|buffer| memory.address(buffer));
        Ok(Some(Begins { _buffers: buffers, addresses }))
    }
}

/// What scores are made of besides q and k, uploaded.
#[derive(Debug)]
pub struct HeldScores<B> {
    /// Held, since kernels read them.
    _buffers: Vec<B>,
    scores: DeviceScores,
}

impl<B> HeldScores<B> {
    /// Uploads those that there are; they must have been checked.
    ///
    /// # Errors
    /// The memory's.
    pub fn upload<M: Memory<Buffer = B>>(memory: &mut M, inputs: &ScoreInputs<'_>) -> Result<Self, M::Error> {
        let (mut buffers, mut scores) = (vec![], DeviceScores::default());
        let mut up = |name, bytes: &[u8]| {
            let buffer = memory.upload(name, bytes)?;
            let address = memory.address(&buffer);
            buffers.push(buffer);
            Ok(address)
        };
        if let Some(slopes) = inputs.alibi_slopes {
            let [_, _, sequences, heads] = slopes.shape;
            let places =
                (0..sequences).flat_map(|sequence| (0..heads).map(move |head| [0, 0, sequence, head]));
            let dense: Vec<f32> = places.map(|place| slopes.at(place)).collect();
            scores.alibi_slopes = up("alibi_slopes", bytemuck::cast_slice(&dense))?;
        }
        if let Some(bias) = &inputs.bias {
            let bytes: &[u8] = match bias {
                BiasRef::F32(bias) => bytemuck::cast_slice(bias.data),
                BiasRef::F16(bias) => bytemuck::cast_slice(bias.data),
                BiasRef::Bf16(bias) => bytemuck::cast_slice(bias.data),
            };
            let [_, strides] = bias.layout();
            scores.bias = Some(DeviceScoreTensor::of(up("bias", bytes)?, strides));
        }
        if let Some(mask) = &inputs.mask {
            scores.mask = Some(DeviceScoreTensor::of(up("mask", mask.data)?, mask.strides));
        }
        if let Some(sinks) = inputs.sinks {
            scores.sinks = up("sinks", bytemuck::cast_slice(sinks))?;
        }
        Ok(HeldScores { _buffers: buffers, scores })
    }

    /// Where they are.
    pub fn scores(&self) -> DeviceScores {
        self.scores
    }
}

/// The gradients of operands of scores that are asked for.
#[derive(Debug)]
struct HeldGradients<B> {
    dbias: Option<(B, DeviceScoreTensor)>,
    dsinks: Option<(B, u64)>,
}

impl<B> HeldGradients<B> {
    /// dbias with its gaps.
    fn upload<T, M: Memory<Buffer = B>>(memory: &mut M, to: &mut Gradients<'_, T>) -> Result<Self, M::Error> {
        let dbias = match &mut to.dbias {
            Some(dbias) => {
                let [_, strides] = dbias.layout();
                let buffer = memory.upload("dbias", bias_bytes(dbias))?;
                let tensor = DeviceScoreTensor::of(memory.address(&buffer), strides);
                Some((buffer, tensor))
            }
            None => None,
        };
        let dsinks = match &to.dsinks {
            Some(dsinks) => {
                let buffer = memory.reserve("dsinks", size_of_val(*dsinks))?;
                let address = memory.address(&buffer);
                Some((buffer, address))
            }
            None => None,
        };
        Ok(HeldGradients { dbias, dsinks })
    }

    fn download<T, M: Memory<Buffer = B>>(
        &self,
        memory: &M,
        to: &mut Gradients<'_, T>,
    ) -> Result<(), M::Error> {
        if let (Some((from, _)), Some(dbias)) = (&self.dbias, &mut to.dbias) {
            memory.download(from, bias_bytes(dbias))?;
        }
        if let (Some((from, _)), Some(dsinks)) = (&self.dsinks, &mut to.dsinks) {
            memory.download(from, bytemuck::cast_slice_mut(dsinks))?;
        }
        Ok(())
    }
}

fn bias_bytes<'a>(bias: &'a mut BiasMut<'_>) -> &'a mut [u8] {
    match bias {
        BiasMut::F32(bias) => bytemuck::cast_slice_mut(bias.data),
        BiasMut::F16(bias) => bytemuck::cast_slice_mut(bias.data),
        BiasMut::Bf16(bias) => bytemuck::cast_slice_mut(bias.data),
    }
}

/// How results of type `R` are stored, of operands of type `T`; those that add are f32.
fn stored_as<T: Element, R: Element>(adds: bool) -> Stored {
    match (R::DTYPE == T::DTYPE, adds) {
        (true, _) => Stored::Rounded,
        (false, true) => Stored::Added,
        (false, false) => Stored::Wide,
    }
}

/// The tensors of a forward, uploaded: as large as the host's, which were checked, and each on its own.
#[derive(Debug)]
pub struct HostForward<'p, B> {
    problem: &'p Problem,
    half: Half,
    stored: Stored,
    inputs: [Held<B>; 3],
    out: Held<B>,
    lse: (B, u64),
    probs: Option<Held<B>>,
    begins: Option<Begins<B>>,
    scores: HeldScores<B>,
}

impl<'p, B> HostForward<'p, B> {
    /// Uploads the operands, and the results: for their gaps, and because something is added to them, if anything `adds`. Both
    /// must have been checked.
    ///
    /// # Errors
    /// The memory's.
    pub fn upload<T: Element, R: Element + ResultOf<T>, M: Memory<Buffer = B>>(
        memory: &mut M,
        (problem, half, adds): (&'p Problem, Half, bool),
        inputs: &Inputs<'_, T>,
        outputs: &Outputs<'_, R>,
    ) -> Result<Self, M::Error> {
        let mut up = |name, tensor: &_| Held::upload(memory, name, tensor, Order::RowsFirst);
        let operands = [up("q", &inputs.q)?, up("k", &inputs.k)?, up("v", &inputs.v)?];
        let out = Held::upload(memory, "out", &outputs.out.as_ref(), Order::RowsFirst)?;
        let lse = match adds {
            true => memory.upload("lse", bytemuck::cast_slice(outputs.lse))?,
            false => memory.reserve("lse", size_of_val(outputs.lse))?,
        };
        let probs = outputs.probs.as_ref();
        let probs = probs.map(|probs| Held::upload(memory, "probs", &probs.as_ref(), Order::HeadsFirst));
        let (probs, lse_ptr) = (probs.transpose()?, memory.address(&lse));
        let begins = Begins::upload(memory, problem)?;
        let scores = HeldScores::upload(memory, &inputs.scores)?;
        let stored = stored_as::<T, R>(adds);
        Ok(HostForward {
            problem,
            half,
            stored,
            inputs: operands,
            out,
            lse: (lse, lse_ptr),
            probs,
            begins,
            scores,
        })
    }

    /// The call with them, and with a workspace for it.
    pub fn call(&self, workspace: u64) -> ForwardCall<'p> {
        let inputs = self.inputs.each_ref().map(|held| held.tensor);
        let call = ForwardCall::new(self.problem, self.half, inputs, self.out.tensor, self.lse.1);
        let call = call
            .with_stored(self.stored)
            .with_probs(self.probs.as_ref().map(|held| held.tensor))
            .with_workspace(workspace);
        let call = call.with_scores(self.scores.scores);
        match &self.begins {
            Some(begins) => call.with_cu_seqlens(begins.addresses),
            None => call,
        }
    }

    /// Copies the results, when the call is done.
    ///
    /// # Errors
    /// The memory's.
    pub fn download<R: Element, M: Memory<Buffer = B>>(
        &self,
        memory: &M,
        outputs: &mut Outputs<'_, R>,
    ) -> Result<(), M::Error> {
        self.out.download(memory, &mut outputs.out)?;
        memory.download(&self.lse.0, bytemuck::cast_slice_mut(outputs.lse))?;
        match (&self.probs, &mut outputs.probs) {
            (Some(from), Some(to)) => from.download(memory, to),
            _ => Ok(()),
        }
    }
}

/// The tensors of a backward, uploaded, likewise.
#[derive(Debug)]
pub struct HostBackward<'p, B> {
    problem: &'p Problem,
    half: Half,
    stored: Stored,
    inputs: [Held<B>; 3],
    out: Held<B>,
    dout: Held<B>,
    lse: (B, u64),
    dlse: Option<(B, u64)>,
    gradients: [Held<B>; 3],
    begins: Option<Begins<B>>,
    scores: HeldScores<B>,
    score_gradients: HeldGradients<B>,
}

impl<'p, B> HostBackward<'p, B> {
    /// Uploads the operands, and the gradients, as [`HostForward`] does. Both must have been checked.
    ///
    /// # Errors
    /// The memory's.
    pub fn upload<T: Element, R: Element + ResultOf<T>, M: Memory<Buffer = B>>(
        memory: &mut M,
        (problem, half, adds): (&'p Problem, Half, bool),
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
    ) -> Result<Self, M::Error> {
        let mut up = |name, tensor: &_| Held::upload(memory, name, tensor, Order::RowsFirst);
        let operands = [up("q", &inputs.inputs.q)?, up("k", &inputs.inputs.k)?, up("v", &inputs.inputs.v)?];
        let (out, dout) = (up("out", &inputs.out)?, up("dout", &inputs.dout)?);
        let score_gradients = HeldGradients::upload(memory, gradients)?;
        let mut up = |name, tensor: &_| Held::upload(memory, name, tensor, Order::RowsFirst);
        let (dq, dk, dv) = (gradients.dq.as_ref(), gradients.dk.as_ref(), gradients.dv.as_ref());
        let gradients = [up("dq", &dq)?, up("dk", &dk)?, up("dv", &dv)?];
        let mut up_rows = |name, rows: &[f32]| {
            let buffer = memory.upload(name, bytemuck::cast_slice(rows))?;
            let address = memory.address(&buffer);
            Ok((buffer, address))
        };
        let lse = up_rows("lse", inputs.lse)?;
        let dlse = inputs.dlse.map(|dlse| up_rows("dlse", dlse)).transpose()?;
        let begins = Begins::upload(memory, problem)?;
        let scores = HeldScores::upload(memory, &inputs.inputs.scores)?;
        Ok(HostBackward {
            problem,
            half,
            stored: stored_as::<T, R>(adds),
            inputs: operands,
            out,
            dout,
            lse,
            dlse,
            gradients,
            begins,
            scores,
            score_gradients,
        })
    }

    /// The call with them, and with a workspace for it.
    pub fn call(&self, workspace: u64, deterministic: bool) -> BackwardCall<'p> {
        let inputs = self.inputs.each_ref().map(|held| held.tensor);
        let mut forward = ForwardCall::new(self.problem, self.half, inputs, self.out.tensor, self.lse.1)
            .with_scores(self.scores.scores);
        if let Some(begins) = &self.begins {
            forward = forward.with_cu_seqlens(begins.addresses);
        }
        let gradients = self.gradients.each_ref().map(|held| held.tensor);
        let call = BackwardCall::of(&forward, self.dout.tensor, gradients, workspace);
        let HeldGradients { dbias, dsinks } = &self.score_gradients;
        call.with_stored([self.stored; 2])
            .with_dlse(self.dlse.as_ref().map(|dlse| dlse.1))
            .with_dbias(dbias.as_ref().map(|dbias| dbias.1))
            .with_dsinks(dsinks.as_ref().map(|dsinks| dsinks.1))
            .with_deterministic(deterministic)
    }

    /// Copies the gradients, when the call is done.
    ///
    /// # Errors
    /// The memory's.
    pub fn download<R: Element, M: Memory<Buffer = B>>(
        &self,
        memory: &M,
        to: &mut Gradients<'_, R>,
    ) -> Result<(), M::Error> {
        let [dq, dk, dv] = &self.gradients;
        dq.download(memory, &mut to.dq)?;
        dk.download(memory, &mut to.dk)?;
        dv.download(memory, &mut to.dv)?;
        self.score_gradients.download(memory, to)
    }
}
