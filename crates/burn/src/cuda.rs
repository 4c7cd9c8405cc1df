//! On Burn's CUDA back end: Burn's memory, and our kernels on a stream of our own.
//!
//! Burn hands out no stream. Ours waits on the GPU for all that Burn's were given before, and what these are given later waits
//! for ours; the host waits for neither. Memory that Burn reuses is safe for the same reason.

use crate::attention::or_panic;
use crate::operator::{
    Backwards, Call, Forward, Given, MaybeFloat, Operands, SignflashBackend, SignflashGradients,
};
use burn::backend::ops::BoolTensorOps as _;
use burn::tensor::{DType, IntDType, Shape};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::kernel::{into_contiguous, untile};
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl_runtime::runtime::Runtime;
use signflash_core::{Dtype, Problem};
use signflash_cuda::{CudaEngine, EngineError, Stream};
use signflash_kernels::{
    BackwardCall, DeviceScoreTensor, DeviceScores, DeviceTensor, ForwardCall, Half, Order,
};
use std::any::Any;

impl SignflashBackend for CubeBackend {
    fn signflash_forward(operands: Operands<Self>, call: Call) -> Forward<Self> {
        let (problem, shape) = (&call.problem, call.problem.shape());
        let (place, dtype) = (Place::of(&operands.q), operands.q.dtype);
        let operands = Located::all(operands);
        let (out, lse) = (place.room(heads_first(shape.out()), dtype), place.lse(problem));
        let (workspace, lengths) =
            (place.bytes(place.engine.forward_workspace_bytes(problem)), place.lengths(problem));
        let forward = operands.call(problem, half(dtype), &out, &lse, &lengths).with_workspace(workspace.at);
        // SAFETY: strides are those of Burn's tensors, whose sizes were judged; what is written was made just now. All of it
        // is held until the work is in the stream, and `run` has later uses of the memory wait for it.
        place.run(|stream| unsafe { place.engine.forward_on(stream, &forward) });
        Forward { out: out.tensor, lse: lse.tensor }
    }
}

impl SignflashGradients for CubeBackend {
    fn signflash_backward(given: Given<Self>, call: Call) -> Backwards<Self> {
        let Given { operands, lse, out, dout, dlse, dbias, dsinks } = given;
        let (problem, shape) = (&call.problem, call.problem.shape());
        let (place, dtype) = (Place::of(&operands.q), operands.q.dtype);
        // Where nothing comes through out, its gradient is 0, and out itself counts for nothing.
        let [out, dout] = [out, dout].map(|x| {
            let x = x.given().unwrap_or_else(|| place.zeros(heads_first(shape.out()), dtype));
            Located::of(dense_rows(x))
        });
        let (operands, lse) = (Located::all(operands), Located::of(into_contiguous(lse)));
        let dlse = dlse.given().map(|dlse| Located::of(into_contiguous(dlse)));
        let [dq, dk, dv] =
            [shape.q(), shape.k(), shape.v()].map(|sizes| place.room(heads_first(sizes), dtype));
        let bias = problem.bias().filter(|_| dbias);
        let dbias = bias.map(|bias| place.room(bias.shape, dtype_of(bias.dtype)));
        let dsinks = dsinks.then(|| place.room([shape.num_heads], DType::F32));
        let workspace = place.bytes(place.engine.backward_workspace_bytes(problem, call.deterministic));
        let lengths = place.lengths(problem);

        let forward = operands.call(problem, half(dtype), &out, &lse, &lengths);
        let written = [&dq, &dk, &dv].map(Located::rows);
        let backward = BackwardCall::of(&forward, dout.rows(), written, workspace.at)
            .with_dlse(dlse.as_ref().map(|dlse| dlse.at))
            .with_dbias(dbias.as_ref().map(Located::entries))
            .with_dsinks(dsinks.as_ref().map(|dsinks| dsinks.at))
            .with_deterministic(call.deterministic);
        // SAFETY: as in the forward; out and lse are that forward's.
        place.run(|stream| unsafe { place.engine.backward_on(stream, &backward) });
        Backwards {
            dq: dq.tensor,
            dk: dk.tensor,
            dv: dv.tensor,
            dbias: MaybeFloat::of(dbias.map(|dbias| dbias.tensor)),
            dsinks: MaybeFloat::of(dsinks.map(|dsinks| dsinks.tensor)),
        }
    }
}

/// The GPU of a call.
struct Place {
    engine: CudaEngine,
    client: Client,
    device: CubeDevice,
}

impl Place {
    fn of(q: &CubeTensor) -> Self {
        let CubeDevice::Cuda(device) = &q.device else { unreachable!("the devices of tensors were judged") };
        let engine = or_panic(CudaEngine::shared(device.index as u32));
        Self { engine, client: q.client.clone(), device: q.device.clone() }
    }

    /// A dense tensor, to be written.
    fn room<const D: usize>(&self, sizes: [usize; D], dtype: DType) -> Located {
        // Of no elements, for one: kernels are given the address of something.
        let handle = self.client.empty(sizes.iter().product::<usize>().max(1) * dtype.size());
        let (client, device) = (self.client.clone(), self.device.clone());
        Located::of(CubeTensor::new_contiguous(client, device, Shape::new(sizes), handle, dtype))
    }

    fn zeros<const D: usize>(&self, sizes: [usize; D], dtype: DType) -> CubeTensor {
        zeros_client(self.client.clone(), self.device.clone(), Shape::new(sizes), dtype)
    }

    fn lse(&self, problem: &Problem) -> Located {
        let shape = problem.shape();
        self.room([shape.batch, shape.num_heads, shape.seqlen_q], DType::F32)
    }

    fn bytes(&self, bytes: u64) -> Located {
        self.room([bytes as usize], DType::U8)
    }

    /// Where packed sequences begin, on the GPU.
    fn lengths(&self, problem: &Problem) -> Option<[Located; 2]> {
        let lengths = problem.cu_seqlens()?;
        Some(lengths.map(|numbers| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let (client, device) = (self.client.clone(), self.device.clone());
            let (handle, sizes) = (client.create_from_slice(&bytes), Shape::new([numbers.len()]));
            Located::of(CubeTensor::new_contiguous(client, device, sizes, handle, DType::U32))
        }))
    }

    /// Work in the order of Burn's, on a stream of ours. All addresses must be known: then Burn's own work on what lies there
    /// is in its streams, no longer in a queue of the host's.
    fn run(&self, put: impl FnOnce(&Stream) -> Result<(), EngineError>) {
        let stream = self.engine.stream();
        or_panic(stream.after_all());
        let done = put(stream);
        or_panic(stream.before_all()); // also of what failed in the middle
        or_panic(done);
    }
}

/// A tensor of Burn's and the address of its first element, where it stays while this is held.
struct Located {
    tensor: CubeTensor,
    at: u64,
    _held: Box<dyn Any>,
}

/// The tensors of a call.
struct LocatedOperands {
    qkv: [Located; 3],
    alibi_slopes: Option<Located>,
    bias: Option<Located>,
    mask: Option<Located>,
    sinks: Option<Located>,
}

impl Located {
    fn of(tensor: CubeTensor) -> Self {
        let found = tensor.client.get_resource::<<CudaRuntime as Runtime>::Server>(tensor.handle.clone());
        let found = found.unwrap_or_else(|error| panic!("signflash: a tensor has no address: {error}"));
        Self { tensor, at: found.resource().ptr, _held: Box::new(found) }
    }

    /// With strides such as kernels take.
    fn all(operands: Operands<CubeBackend>) -> LocatedOperands {
        let Operands { q, k, v, alibi_slopes, bias, mask, sinks } = operands;
        let dense = |x: MaybeFloat<CubeBackend>| x.given().map(|x| Self::of(into_contiguous(x)));
        LocatedOperands {
            qkv: [q, k, v].map(|x| Self::of(dense_rows(x))),
            alibi_slopes: dense(alibi_slopes),
            bias: bias.given().map(|bias| Self::of(untile(bias))),
            mask: mask.given().map(|mask| Self::of(bytes_of(mask))),
            sinks: dense(sinks),
        }
    }

    /// (batch, heads, seqlen, head_dim), as kernels are told of it.
    fn rows(&self) -> DeviceTensor {
        DeviceTensor::of(self.at, self.strides(), Order::HeadsFirst)
    }

    /// (batch, num_heads, seqlen_q, seqlen_k), as kernels are told of it.
    fn entries(&self) -> DeviceScoreTensor {
        DeviceScoreTensor::of(self.at, self.strides())
    }

    fn strides(&self) -> [usize; 4] {
        let strides = self.tensor.meta.strides();
        [0, 1, 2, 3].map(|dim| strides[dim])
    }
}

impl LocatedOperands {
    fn call<'a>(
        &self,
        problem: &'a Problem,
        half: Half,
        out: &Located,
        lse: &Located,
        lengths: &Option<[Located; 2]>,
    ) -> ForwardCall<'a> {
        let scores = DeviceScores {
            alibi_slopes: self.alibi_slopes.as_ref().map_or(0, |slopes| slopes.at),
            bias: self.bias.as_ref().map(Located::entries),
            mask: self.mask.as_ref().map(Located::entries),
            sinks: self.sinks.as_ref().map_or(0, |sinks| sinks.at),
        };
        let qkv = self.qkv.each_ref().map(Located::rows);
        let call = ForwardCall::new(problem, half, qkv, out.rows(), lse.at).with_scores(scores);
        match lengths {
            Some(lengths) => call.with_cu_seqlens(lengths.each_ref().map(|x| x.at)),
            None => call,
        }
    }
}

/// The tensor, copied if its rows are not dense.
fn dense_rows(tensor: CubeTensor) -> CubeTensor {
    let tensor = untile(tensor);
    if tensor.meta.strides().last() == Some(&1) { tensor } else { into_contiguous(tensor) }
}

/// A tensor of bools as bytes, which it may be already.
fn bytes_of(mask: CubeTensor) -> CubeTensor {
    if mask.dtype.size() == 1 { untile(mask) } else { CubeBackend::bool_into_int(mask, IntDType::U8) }
}

/// (batch, seqlen, heads, head_dim) in Burn's order.
fn heads_first([batch, seqlen, heads, head_dim]: [usize; 4]) -> [usize; 4] {
    [batch, heads, seqlen, head_dim]
}

/// Of a dtype that was judged.
fn half(dtype: DType) -> Half {
    if dtype == DType::F16 { Half::F16 } else { Half::Bf16 }
}

fn dtype_of(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        _ => DType::F32,
    }
}
