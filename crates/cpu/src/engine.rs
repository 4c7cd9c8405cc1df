//! The public face of the CPU kernels.

use crate::backward::{Backward, TILE_ROWS};
use crate::call::{BLOCK_KEYS, Call};
use crate::entry::kernels;
use crate::finite::{all_finite, finite_where_seen};
use crate::forward::{Forward, Scores};
use crate::isa::{Isa, IsaError};
use crate::order::Order;
use crate::passes::{Workers, references, run_backward, run_forward};
use crate::raw::{RawGradInputs, RawGradients, RawInputs, RawOutputs, RawTensor};
use crate::references::is_large;
use crate::sequence::{Sequence, Sequences};
use crate::view::{FloatsMut, View, ViewMut};
use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, Shape};

/// Attention on this machine's CPU.
///
/// Results are the same to the bit for any number of threads. Extra memory is up to 1 MiB a thread in the forward and
/// 3 MiB in the backward, whatever the lengths, and at most 64 bytes for each head of packed sequences; see
/// [`backward`](Self::backward) for its one addition.
///
/// ```
/// use signflash_core::{Dropout, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef};
/// use signflash_cpu::CpuEngine;
///
/// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(8);
/// let problem = Problem::builder(shape).dropout(Dropout::new(0.1, 42, 0)?).build()?;
/// let (q, k, v) = (vec![0.1f32; 80], vec![0.2f32; 56], vec![0.3f32; 56]);
/// let inputs = Inputs::new(
///     TensorRef::bshd(&q, shape.q()),
///     TensorRef::bshd(&k, shape.k()),
///     TensorRef::bshd(&v, shape.v()),
/// );
/// let (mut out, mut lse) = (vec![0.0f32; 80], vec![0.0; 10]);
/// let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
/// CpuEngine::new().forward(&problem, &inputs, &mut outputs)?;
/// assert!((lse[0] - (0.16 / 8f32.sqrt() + 7f32.ln())).abs() < 1e-6); // seven equal scores
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CpuEngine {
    isa: Isa,
    threads: Option<usize>,
    partial_bytes: usize,
}

impl Default for CpuEngine {
    fn default() -> Self {
        Self::new()
    }
}

/// The default of [`CpuEngine::with_partial_bytes`].
const PARTIAL_BYTES: usize = 16 << 20;

/// Below this many floating-point operations waking other threads takes longer than the work.
const SERIAL_FLOPS: f64 = 5e6;

impl CpuEngine {
    /// The fastest instruction set of this machine, all threads of the current rayon pool.
    pub fn new() -> Self {
        Self { isa: Isa::best(), threads: None, partial_bytes: PARTIAL_BYTES }
    }

    /// The same with another instruction set.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`].
    pub fn with_isa(self, isa: Isa) -> Result<Self, IsaError> {
        Ok(Self { isa: isa.require()?, ..self })
    }

    /// The same with at most so many threads, of those that the current rayon pool has; 0 counts as 1.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: Some(threads.max(1)), ..self }
    }

    /// The same with another limit for the partial sums of dq, in bytes a key head; see [`backward`](Self::backward).
    /// The default is 16 MiB. dq may differ in its last bits between one side of the limit and the other.
    pub fn with_partial_bytes(self, partial_bytes: usize) -> Self {
        Self { partial_bytes, ..self }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many threads a call made here would use at most: those of the current rayon pool, or fewer if told so.
    pub fn threads(&self) -> usize {
        let pool = rayon::current_num_threads();
        self.threads.map_or(pool, |threads| threads.min(pool))
    }

    /// Computes `out`, `lse` and, where asked for, `probs`.
    ///
    /// Every entry of the outputs is written, and nothing else of their storage. A row that sees no key gets out = 0
    /// and lse = -inf. Infinities and NaNs stay where they belong: a key that is not visible, dropped, or of weight
    /// exactly 0 contributes nothing, whatever it holds.
    ///
    /// Scores, sums and `lse` are f32 for every dtype; relative errors against the f64 oracle are within the
    /// [contract's](signflash_core::judge): of ordinary numbers 1e-6 (f32), 4e-4 (f16), 3e-3 (bf16), lse 1e-6.
    /// `probs` costs another pass over the scores.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`; the outputs are then untouched.
    pub fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), ProblemError> {
        Self::check(problem)?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        let outputs = RawOutputs::new(RawTensor::of_mut(&mut outputs.out), outputs.lse)
            .probs(outputs.probs.as_mut().map(RawTensor::of_mut));
        // SAFETY: both borrow their tensors, whose storage the checks found long enough.
        unsafe { self.run_forward(problem, RawInputs::of(inputs), outputs) };
        Ok(())
    }

    /// [`forward`](Self::forward) over tensors that are not borrowed.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem` or has no memory; the outputs are then
    /// untouched.
    ///
    /// # Safety
    /// Every element of the tensors must be there during the call. Nobody may write those of `inputs` or use those of
    /// `outputs` meanwhile, and no element may belong to two tensors of which one is written. What lies between
    /// elements does not matter.
    pub unsafe fn forward_raw<T: Element>(
        &self,
        problem: &Problem,
        inputs: &RawInputs<T>,
        outputs: RawOutputs<'_, T>,
    ) -> Result<(), ProblemError> {
        Self::check(problem)?;
        inputs.check(problem)?;
        outputs.check(problem)?;
        // SAFETY: checked just now; the rest is the caller's promise.
        unsafe { self.run_forward(problem, *inputs, outputs) };
        Ok(())
    }

    /// # Safety
    /// As [`forward_raw`](Self::forward_raw), and the tensors were checked.
    unsafe fn run_forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: RawInputs<T>,
        outputs: RawOutputs<'_, T>,
    ) {
        let RawInputs { q, k, v } = inputs;
        let RawOutputs { out, lse, probs } = outputs;
        // SAFETY: the caller's promise, for as long as this call.
        let (q, k, v) = unsafe { (View::new(q), View::new(k), View::new(v)) };
        // SAFETY: as above.
        let (out, probs) = unsafe { (ViewMut::new(out), probs.map(|probs| ViewMut::new(probs))) };
        self.forward_of_views(problem, [q, k, v], out, FloatsMut::new(lse), probs);
    }

    /// The forward, for any dtype: compiled once, and not in every crate that calls it.
    fn forward_of_views(
        &self,
        problem: &Problem,
        [q, k, v]: [View<'_>; 3],
        out: ViewMut<'_>,
        lse: FloatsMut<'_>,
        probs: Option<ViewMut<'_>>,
    ) {
        let shape = problem.shape();
        if shape.lse_len() == 0 {
            return; // no row, however many heads there are of nothing
        }
        let threads = self.threads_for(problem, 4.0);
        let tile_rows = forward_tile_rows(problem, threads);
        let order = Order::largest_first(problem, |sequence| {
            let rows = sequence.place.seqlen_q.min(tile_rows);
            rows * sequence.keys_seen_by(rows)
        });
        let call = Call::new(problem, order.of(problem), !all_finite(threads, &v));
        let scores = Scores { call, q, k, tile_rows };
        let kernels = kernels(self.isa, v.dtype, call.careful);
        run_forward(&Forward { scores, v, out, lse, probs }, Workers { kernels, threads });
    }

    /// Computes `dq`, `dk`, `dv` from the forward's inputs and results and the gradient of `out`, and of `lse` if it
    /// has one.
    ///
    /// Weights are recomputed from q, k and lse, dropout from the seed. Every entry of the gradients is written.
    /// Relative errors against the f64 oracle are within the [contract's](signflash_core::judge): of ordinary numbers
    /// 3e-6 (f32), 5e-4 (f16), 4e-3 (bf16; on AVX512-BF16 dq of keys with a common mean may be a fifth above, as
    /// docs/contract.md says).
    ///
    /// For dtypes of 16 bits and more than one chunk of keys (256 to 1024), each key head being worked on also
    /// holds the dq of its query heads in f32, at most 16 MiB (see [`with_partial_bytes`](Self::with_partial_bytes));
    /// where they take more, dq is computed in a pass of its own, with 7 products in place of 5 and no such memory.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`; the gradients are then untouched.
    pub fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), ProblemError> {
        Self::check(problem)?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        let GradInputs { inputs, out, lse, dout, dlse, .. } = inputs;
        let inputs = RawGradInputs::new(RawInputs::of(inputs), RawTensor::of(out), lse, RawTensor::of(dout))
            .dlse(*dlse);
        let Gradients { dq, dk, dv, .. } = gradients;
        let gradients =
            RawGradients::new(RawTensor::of_mut(dq), RawTensor::of_mut(dk), RawTensor::of_mut(dv));
        // SAFETY: both borrow their tensors, whose storage the checks found long enough.
        unsafe { self.run_backward(problem, &inputs, gradients) };
        Ok(())
    }

    /// [`backward`](Self::backward) over tensors that are not borrowed: gradients may be interleaved in one buffer.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem` or has no memory; the gradients are then
    /// untouched.
    ///
    /// # Safety
    /// As [`forward_raw`](Self::forward_raw).
    pub unsafe fn backward_raw<T: Element>(
        &self,
        problem: &Problem,
        inputs: &RawGradInputs<'_, T>,
        gradients: &RawGradients<T>,
    ) -> Result<(), ProblemError> {
        Self::check(problem)?;
        inputs.check(problem)?;
        gradients.check(problem)?;
        // SAFETY: checked just now; the rest is the caller's promise.
        unsafe { self.run_backward(problem, inputs, *gradients) };
        Ok(())
    }

    /// # Safety
    /// As [`backward_raw`](Self::backward_raw), and the tensors were checked.
    unsafe fn run_backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &RawGradInputs<'_, T>,
        gradients: RawGradients<T>,
    ) {
        let RawGradInputs { inputs: RawInputs { q, k, v }, out, dout, lse, dlse } = *inputs;
        let RawGradients { dq, dk, dv } = gradients;
        // SAFETY: the caller's promise, for as long as this call.
        let read = unsafe { [View::new(q), View::new(k), View::new(v), View::new(out), View::new(dout)] };
        // SAFETY: as above.
        let written = unsafe { [ViewMut::new(dq), ViewMut::new(dk), ViewMut::new(dv)] };
        self.backward_of_views(problem, read, lse, dlse, written);
    }

    /// The backward, for any dtype: compiled once, and not in every crate that calls it.
    fn backward_of_views(
        &self,
        problem: &Problem,
        read: [View<'_>; 5],
        lse: &[f32],
        dlse: Option<&[f32]>,
        [dq, dk, dv]: [ViewMut<'_>; 3],
    ) {
        let shape = problem.shape();
        if [shape.q(), shape.k(), shape.v()].iter().all(|shape| shape.contains(&0)) {
            return; // no gradient has an element, however many heads there are of nothing
        }
        let threads = self.threads_for(problem, 10.0);
        let finite = read.iter().all(|x| all_finite(threads, x))
            && dlse.is_none_or(|dlse| finite_where_seen(lse, dlse));
        let [q, k, v, out, dout] = read;
        let chunk_keys = chunk_keys(problem);
        let order = Order::largest_first(problem, |sequence| {
            let keys = sequence.place.seqlen_k.min(chunk_keys);
            keys * sequence.queries_that_see(keys)
        });
        let call = Call::new(problem, order.of(problem), !finite);
        let workers = Workers { kernels: kernels(self.isa, q.dtype, !finite), threads };
        let references = lse.iter().any(|&lse| is_large(lse)).then(|| {
            let call = Call { rule: None, ..call }; // what is dropped counts, too
            references(&Scores { call, q, k, tile_rows: TILE_ROWS }, workers, lse)
        });
        let references = references.as_ref();
        let backward = Backward { call, q, k, v, out, dout, lse, references, dlse, dq, dk, dv, chunk_keys };
        run_backward(&backward, workers, self.partial_bytes);
    }

    /// Refuses what it does not compute, of whatever tensors.
    ///
    /// # Errors
    /// [`ProblemError::NotComputed`].
    pub fn check(problem: &Problem) -> Result<(), ProblemError> {
        problem.check_features("the CPU engine", &[])
    }

    /// Threads for a pass of so many operations per score and element of head_dim.
    fn threads_for(&self, problem: &Problem, flops: f64) -> usize {
        let Shape { num_heads, head_dim, .. } = *problem.shape();
        let scores = sum_of_sequences(problem, |sequence| {
            sequence.place.seqlen_q as f64 * sequence.keys_seen_by(1) as f64
        });
        let flops = scores * num_heads as f64 * head_dim as f64 * flops;
        if flops < SERIAL_FLOPS { 1 } else { self.threads() }
    }
}

/// The sum of something over all sequences.
fn sum_of_sequences(problem: &Problem, of: impl Fn(&Sequence) -> f64) -> f64 {
    let sequences = Sequences::of(problem);
    match (problem.is_packed(), sequences.count()) {
        (true, _) => sequences.iter().map(|sequence| of(&sequence)).sum(),
        (false, 0) => 0.0,
        (false, count) => count as f64 * of(&sequences.at(0)), // all are alike
    }
}

/// The longest sequence's queries or keys, as `of` says.
fn longest(problem: &Problem, of: impl Fn(&signflash_core::Sequence) -> usize) -> usize {
    let sequences = problem.sequences().take(if problem.is_packed() { usize::MAX } else { 1 });
    sequences.map(|sequence| of(&sequence)).max().unwrap_or(0)
}

/// Queries per unit: many, so that keys are read seldom; few, so that all threads have work. Results do not depend on
/// it, because every row is computed alike in any tile.
fn forward_tile_rows(problem: &Problem, threads: usize) -> usize {
    let units = |rows: usize| {
        let tiles = sum_of_sequences(problem, |sequence| sequence.place.seqlen_q.div_ceil(rows) as f64);
        tiles * problem.shape().num_heads as f64
    };
    let longest = longest(problem, |sequence| sequence.seqlen_q);
    let mut rows = 256;
    while rows > 64 && (units(rows) < (4 * threads) as f64 || rows / 2 >= longest) {
        rows /= 2;
    }
    rows
}

/// Keys per unit of the backward. Many, so that a tile of queries is prepared seldom and its share of dq seldom added
/// (f32, head_dim 128, length 2048 on Zen 5: 69, 76, 83, 86 % of the peak with 128, 256, 512, 1024 keys); few enough
/// that there are some 32 units to share. By the lengths alone, since dq is summed chunk by chunk.
fn chunk_keys(problem: &Problem) -> usize {
    let shape = problem.shape();
    let most = (131_072 / shape.head_dim.next_multiple_of(32)).clamp(512, 1024) / BLOCK_KEYS * BLOCK_KEYS;
    let chunks = sum_of_sequences(problem, |sequence| sequence.place.seqlen_k.div_ceil(most) as f64);
    let keys = if chunks * (shape.num_heads_k as f64) < 32.0 { most / 2 } else { most };
    keys.min(longest(problem, |sequence| sequence.seqlen_k).next_multiple_of(BLOCK_KEYS)).max(BLOCK_KEYS)
}
