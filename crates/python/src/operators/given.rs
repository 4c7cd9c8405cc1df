//! A call of one of PyTorch's operators for attention: whether it is ours, and its forward and backward.

use super::operand::{Operand, Readable, Room};
use super::python;
use super::stable::{Failure, Handle, Outcome, Tensor, Torch, signed};
use crate::call::{self, Backward, Forward, Place};
use crate::dims::Dims;
use crate::foreign::ForeignTensor;
use crate::joined::{ForeignBias, Joined};
use crate::lengths::Lengths;
use crate::lent::Layout;
use crate::settings::{RandomState, Settings};
use signflash_core::Dtype;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

/// On a GPU calls that weigh fewer pairs of a query and a key stay with PyTorch's efficient kernel and cuDNN's.
pub(crate) static LEAST_PAIRS: AtomicU64 = AtomicU64::new(0);
const MOST_HEAD_DIM: usize = 256;

/// query, key, value and bias (batch, num_heads, seqlen, head_dim), and what is asked for.
pub(crate) struct Given {
    pub(crate) q: Operand,
    pub(crate) k: Operand,
    pub(crate) v: Operand,
    pub(crate) bias: Option<Operand>,
    pub(crate) dropout_p: f64,
    pub(crate) is_causal: bool,
    pub(crate) scale: Option<f64>,
}

/// Why a call stays with PyTorch: names of `signflash._sdpa.takes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    NoDropout,
    Certain,
    Dtype,
    Wide,
    Empty,
    OldGpu,
    FewPairs,
    Refused,
}

impl Left {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoDropout => "NO_DROPOUT",
            Self::Certain => "CERTAIN",
            Self::Dtype => "dtype",
            Self::Wide => "wide",
            Self::Empty => "EMPTY",
            Self::OldGpu => "OLD_GPU",
            Self::FewPairs => "FEW_PAIRS",
            Self::Refused => "REFUSED",
        }
    }

    /// Whether nobody has to be told.
    pub(crate) fn is_silent(self) -> bool {
        !matches!(self, Self::Dtype | Self::Wide | Self::OldGpu)
    }
}

impl Given {
    pub(crate) fn new([q, k, v]: [Tensor; 3], bias: Option<Tensor>) -> Outcome<Self> {
        let [q, k, v] = [Operand::new(q)?, Operand::new(k)?, Operand::new(v)?];
        let bias = bias.map(Operand::new).transpose()?;
        Ok(Self { q, k, v, bias, dropout_p: 0.0, is_causal: false, scale: None })
    }

    pub(crate) fn torch(&self) -> &'static Torch {
        self.q.tensor.torch()
    }

    pub(crate) fn dtype(&self) -> Option<Dtype> {
        self.torch().float_of(self.q.dtype)
    }

    /// Why it is not ours: of its arguments alone, so that a backward knows by its own whose forward it belongs to.
    pub(crate) fn why_left(&self) -> Option<Left> {
        let Self { q, k, v, dropout_p, .. } = self;
        if *dropout_p == 0.0 {
            return Some(Left::NoDropout);
        }
        if !(*dropout_p > 0.0 && *dropout_p < 1.0) {
            return Some(Left::Certain);
        }
        if !q.is_of(Dtype::F16) && !q.is_of(Dtype::Bf16) {
            return Some(Left::Dtype);
        }
        if [q, k, v].iter().any(|x| x.dims.count != 4) {
            return Some(Left::Refused);
        }
        let ([.., seqlen_k, _], [.., head_dim_v]) = (k.shape(), v.shape());
        let [batch, num_heads, seqlen_q, head_dim] = q.shape();
        if head_dim > MOST_HEAD_DIM || head_dim_v > MOST_HEAD_DIM {
            return Some(Left::Wide);
        }
        if q.shape().contains(&0) || k.shape().contains(&0) || head_dim_v == 0 {
            return Some(Left::Empty);
        }
        if let Some(ordinal) = q.gpu {
            let pairs = [num_heads, seqlen_q, seqlen_k]
                .iter()
                .fold(batch as u64, |all, &of| all.saturating_mul(of as u64));
            let pairs = if self.is_causal { pairs / 2 } else { pairs };
            if pairs < LEAST_PAIRS.load(Ordering::Relaxed) {
                return Some(Left::FewPairs);
            }
            if crate::cuda::is_too_old(ordinal) {
                return Some(Left::OldGpu);
            }
        }
        None
    }

    /// query, key and value for PyTorch's own kernels, which are there for CUDA.
    pub(crate) fn handles(&self) -> Outcome<[Handle; 3]> {
        if self.q.gpu.is_none() {
            return Err(Failure("PyTorch has no kernel of its own for this operator on the CPU".to_owned()));
        }
        Ok([&self.q, &self.k, &self.v].map(|x| x.tensor.handle()))
    }

    pub(crate) fn bias_handle(&self) -> Option<Handle> {
        self.bias.as_ref().map(|bias| bias.tensor.handle())
    }

    fn settings(&self) -> Settings {
        // PyTorch's causal begins in the top left corner, where a square begins anyway.
        let is_off = self.is_causal && self.q.shape()[2] != self.k.shape()[2];
        Settings {
            dropout_p: self.dropout_p,
            softmax_scale: self.scale,
            causal: self.is_causal,
            nominal: true,
            diagonal: is_off.then_some(0),
            ..Settings::default()
        }
    }

    fn layout(&self) -> Outcome<Layout> {
        let dtype = self.dtype().filter(|dtype| self.q.gpu.is_none() || *dtype != Dtype::F32);
        let dtype = dtype.ok_or_else(|| Failure("query must be of float16 or bfloat16".to_owned()))?;
        Ok(Layout { dtype, at: self.place()?, is_packed: false })
    }

    fn place(&self) -> Outcome<Place> {
        let functions = &self.torch().functions;
        let Some(ordinal) = self.q.gpu else {
            let mut threads = 0;
            // SAFETY: it writes a number.
            self.torch().check(unsafe { (functions.threads)(&raw mut threads) })?;
            return Ok(Place::Cpu { threads: threads as usize });
        };
        let mut stream = null_mut();
        // SAFETY: it writes a stream.
        self.torch().check(unsafe { (functions.stream)(ordinal as i32, &raw mut stream) })?;
        Ok(Place::Cuda { ordinal, stream: stream.expose_provenance() as u64 })
    }

    /// The bias as kernels read it, with all four dimensions, of which the last is written out.
    fn bias(&self, at: Place) -> Outcome<Option<(ForeignBias, Readable)>> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let dtype = self.torch().float_of(bias.dtype);
        let dtype =
            dtype.ok_or_else(|| Failure("attn_bias must be of float32, float16 or bfloat16".to_owned()))?;
        let Dims { shape, strides, .. } = bias.dims;
        let mut dims = Dims { count: 4, shape, strides };
        let seqlen_k = self.k.shape()[2];
        if shape[3] == 1 && seqlen_k != 1 {
            (dims.shape[3], dims.strides[3]) = (seqlen_k, 0);
        }
        let readable = bias.entries(dims, dtype, at)?;
        Ok(Some((ForeignBias { dtype, tensor: readable.lies }, readable)))
    }

    /// Computes out, and probs if there is room for them; lse (batch, num_heads, seqlen_q) is made.
    pub(crate) fn forward(
        &self,
        out: &ForeignTensor,
        state: RandomState,
        probs: Option<&Tensor>,
    ) -> Outcome<Tensor> {
        let layout = self.layout()?;
        let [batch, num_heads, seqlen_q, _] = self.q.shape();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.rows_first(layout));
        let (q, k, v, bias) = (q?, k?, v?, self.bias(layout.at)?);
        let torch = self.torch();
        let rows = [batch, num_heads, seqlen_q];
        let strides = [num_heads * seqlen_q, seqlen_q, 1];
        let lse = torch.empty(&signed(rows), &signed(strides), torch.code(Dtype::F32)?, self.q.gpu)?;
        let probs = probs.map(|probs| {
            let Dims { shape, strides, .. } = probs.dims()?;
            Ok::<_, Failure>(ForeignTensor { address: probs.address()?, shape, strides })
        });
        let call = Forward {
            dtype: layout.dtype,
            results: layout.dtype,
            adds: false,
            q: q.lies,
            k: k.lies,
            v: v.lies,
            cu_seqlens: None,
            joined: Joined { bias: bias.as_ref().map(|(bias, _)| *bias), ..Joined::default() },
            out: *out,
            lse: lse.address()?,
            probs: probs.transpose()?,
            state,
            workspace: 0,
        };
        // SAFETY: tensors live as long as this call, and PyTorch keeps memory that is given back for the stream; how those
        // that are read lie, of which dtype and where, `rows_first` and `entries` have judged; what is written has just been
        // made, as long as it says.
        unsafe { call::forward(layout.at, &call, &self.settings()) }?;
        Ok(lse)
    }

    /// Computes the gradients, and that of the bias if it is wanted.
    pub(crate) fn backward(
        &self,
        saved: &Saved,
        into: [&Room; 3],
        wants_dbias: bool,
    ) -> Outcome<Option<Tensor>> {
        let deterministic = python::is_deterministic()?;
        let layout = self.layout()?;
        let settings = self.settings();
        let [q, k, v, out, dout] =
            [&self.q, &self.k, &self.v, &saved.out, &saved.grad_out].map(|x| x.rows_first(layout));
        let (q, k, v, out, dout, bias) = (q?, k?, v?, out?, dout?, self.bias(layout.at)?);
        let rows = saved.lse.tensor.lent(saved.lse.dims, saved.lse.gpu)?.rows(&q.lies, layout);
        let lse = rows.ok_or_else(|| {
            Failure("logsumexp must be what the forward returned: one float32 of a query and head".to_owned())
        })?;
        let joined = Joined { bias: bias.as_ref().map(|(bias, _)| *bias), ..Joined::default() };
        let declared = joined.declared();
        let problem = settings.problem(
            &RandomState::default(),
            [&q.lies, &k.lies, &v.lies],
            &Lengths::Batch,
            &declared,
        )?;
        let bytes = call::workspace_bytes(layout.at, &problem, deterministic)?;
        let torch = self.torch();
        let workspace =
            if bytes == 0 { None } else { Some(torch.row(bytes as usize, torch.codes.uint8, self.q.gpu)?) };
        let dbias = match &bias {
            Some((bias, _)) if wants_dbias => {
                let made = torch.dense(bias.tensor.shape, torch.code(bias.dtype)?, self.q.gpu)?;
                let Dims { shape, strides, .. } = made.dims()?;
                Some((
                    ForeignBias {
                        tensor: ForeignTensor { address: made.address()?, shape, strides },
                        ..*bias
                    },
                    made,
                ))
            }
            _ => None,
        };
        let backward = Backward {
            dtype: layout.dtype,
            results: layout.dtype,
            adds: [false; 2],
            q: q.lies,
            k: k.lies,
            v: v.lies,
            cu_seqlens: None,
            joined,
            out: out.lies,
            lse,
            dout: dout.lies,
            dlse: 0,
            dq: into[0].lies,
            dk: into[1].lies,
            dv: into[2].lies,
            dbias: dbias.as_ref().map(|(dbias, _)| *dbias),
            dsinks: 0,
            state: saved.state,
            workspace: workspace.as_ref().map_or(Ok(0), Tensor::address)?,
            deterministic,
        };
        // SAFETY: as in `forward`; the workspace is as long as was told.
        unsafe { call::backward(layout.at, &backward, &settings) }?;
        Ok(dbias.map(|(_, made)| made))
    }
}

/// What a backward gets of its forward, and the gradient.
pub(crate) struct Saved {
    pub(crate) out: Operand,
    pub(crate) grad_out: Operand,
    /// (batch, num_heads, seqlen_q), dense.
    pub(crate) lse: Operand,
    pub(crate) state: RandomState,
}
