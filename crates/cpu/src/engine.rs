//! The public face of the CPU kernels.

use crate::backward::{Backward, TILE_ROWS, is_of_each_score};
use crate::call::{Call, until_careful};
use crate::division::{chunk_keys, forward_tile_rows, operations};
use crate::entry::kernels;
use crate::finite::{finite_where_seen, has_nan_rows};
use crate::forward::{Forward, Scores};
use crate::isa::{Isa, IsaError};
use crate::operands::{Read, Written};
use crate::order::Order;
use crate::passes::{Workers, references, run_backward, run_bias, run_forward};
use crate::raw::{RawBias, RawGradInputs, RawGradients, RawInputs, RawOutputs, RawTensor, of_bias};
use crate::references::is_large;
use crate::score_stage::{ScoreOperands, TableMut};
use crate::sinks::run_sinks;
use crate::team::{Crew, Team};
use crate::tiles::Tiles;
use crate::view::{FloatsMut, View, ViewMut};
use signflash_core::{
    Element, Feature, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, ResultOf,
};
use std::sync::atomic::AtomicBool;

/// Attention on this machine's CPU.
///
/// Results are the same to the bit for any number of threads. Extra memory is up to 1 MiB a thread in the forward and
/// 3 MiB in the backward, whatever the lengths, 64 bytes a head of packed sequences, and what [`backward`](Self::backward) says.
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
    team: Option<Team>,
    partial_bytes: usize,
    tiles: Tiles,
}

impl Default for CpuEngine {
    fn default() -> Self {
        Self::new()
    }
}

/// The default of [`CpuEngine::with_partial_bytes`].
const PARTIAL_BYTES: usize = 16 << 20;

impl CpuEngine {
    /// The fastest instruction set of this machine, all threads of the current rayon pool.
    pub fn new() -> Self {
        let (isa, tiles) = (Isa::best(), Tiles::here());
        Self { isa, threads: None, team: None, partial_bytes: PARTIAL_BYTES, tiles }
    }

    /// [`Isa::Amx`] with its tiles emulated: the same bits, slowly. For tests, on machines without AMX.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`] without AVX512-BF16, which makes what tiles multiply.
    #[doc(hidden)]
    pub fn emulating_amx() -> Result<Self, IsaError> {
        Isa::Avx512Bf16.require()?;
        Ok(Self { isa: Isa::Amx, tiles: Tiles::Emulated, ..Self::new() })
    }

    /// The same with another instruction set.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`].
    pub fn with_isa(self, isa: Isa) -> Result<Self, IsaError> {
        Ok(Self { isa: isa.require()?, tiles: Tiles::here(), ..self })
    }

    /// The same with at most so many threads, of those that the current rayon pool or the team has; 0 counts as 1.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: Some(threads.max(1)), ..self }
    }

    /// The same on the threads of a team and not on those of the current rayon pool.
    pub fn with_team(self, team: Team) -> Self {
        Self { team: Some(team), ..self }
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

    /// How many threads a call made here would use at most: those of the current rayon pool or the team, or fewer if told so.
    /// The calling thread is one of them.
    pub fn threads(&self) -> usize {
        let all = self.team.map_or_else(rayon::current_num_threads, |team| team.threads);
        self.threads.map_or(all, |threads| threads.min(all)).max(1)
    }

    /// Computes `out`, `lse` and, where asked for, `probs`.
    ///
    /// Every entry of the outputs is written, and nothing else of their storage. A row that sees no key gets out = 0
    /// and lse = -inf, or its sink. Infinities and NaNs stay where they belong: a key that is not visible, dropped, or of
    /// weight exactly 0 contributes nothing, whatever it holds; nor does one that a mask or a bias of -inf hides.
    ///
    /// Everything that a [`Problem`] can say of its scores is computed. Where most of a block of keys is hidden by a mask
    /// it takes the time of what is left.
    ///
    /// Scores, sums and `lse` are f32 for every dtype; relative errors against the f64 oracle are within the
    /// [contract's](signflash_core::judge): of ordinary numbers 1e-6 (f32), 4e-4 (f16), 3e-3 (bf16), lse 1e-6.
    /// `probs` costs another pass over the scores.
    ///
    /// Outputs of 16-bit inputs may be f32: what would have been rounded, not rounded. That is for partial results, of some
    /// of the keys, which are rounded when all have been added.
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`; the outputs are then untouched.
    pub fn forward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, R>,
    ) -> Result<(), ProblemError> {
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
    pub unsafe fn forward_raw<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &RawInputs<'_, T>,
        outputs: RawOutputs<'_, R>,
    ) -> Result<(), ProblemError> {
        inputs.check(problem)?;
        outputs.check(problem)?;
        // SAFETY: checked just now; the rest is the caller's promise.
        unsafe { self.run_forward(problem, *inputs, outputs) };
        Ok(())
    }

    /// # Safety
    /// As [`forward_raw`](Self::forward_raw), and the tensors were checked.
    unsafe fn run_forward<T: Element, R: Element>(
        &self,
        problem: &Problem,
        inputs: RawInputs<'_, T>,
        outputs: RawOutputs<'_, R>,
    ) {
        let RawInputs { q, k, v, scores } = inputs;
        let RawOutputs { out, lse, probs } = outputs;
        // SAFETY: the caller's promise, for as long as this call.
        let operands = unsafe { ScoreOperands::new(scores) };
        // SAFETY: the caller's promise, for as long as this call.
        let (q, k, v) = unsafe { (View::new(q), View::new(k), View::new(v)) };
        // SAFETY: as above.
        let (out, probs) = unsafe { (ViewMut::new(out), probs.map(|probs| ViewMut::new(probs))) };
        self.forward_of_views(problem, [q, k, v], operands, out, FloatsMut::new(lse), probs);
    }

    /// The forward, for any dtype: compiled once, and not in every crate that calls it.
    fn forward_of_views(
        &self,
        problem: &Problem,
        [q, k, v]: [View<'_>; 3],
        operands: ScoreOperands<'_>,
        out: ViewMut<'_>,
        lse: FloatsMut<'_>,
        probs: Option<ViewMut<'_>>,
    ) {
        let shape = problem.shape();
        if shape.lse_len() == 0 {
            return; // no row, however many heads there are of nothing
        }
        let crew = Crew::of(self.threads(), self.team, operations(problem, 4.0));
        let tile_rows = forward_tile_rows(problem, crew.threads, self.isa.multiplies_tiles(q.dtype));
        let order = Order::largest_first(problem, |sequence| {
            let rows = sequence.place.seqlen_q.min(tile_rows);
            rows * sequence.keys_seen_by(rows)
        });
        let met = AtomicBool::new(false);
        let call = Call { tiles: self.tiles, ..Call::new(problem, order.of(problem), operands, &met) };
        until_careful(call, |call| {
            let scores = Scores { call, q, k, tile_rows };
            let kernels = kernels(self.isa, v.dtype, call.careful);
            run_forward(&Forward { scores, v, out, lse, probs }, Workers { kernels, crew });
        });
    }

    /// Computes `dq`, `dk`, `dv` from the forward's inputs and results and the gradient of `out`, and of `lse` if it
    /// has one.
    ///
    /// Weights are recomputed from q, k and lse, dropout from the seed. Every entry of the gradients is written.
    /// Relative errors against the f64 oracle are within the [contract's](signflash_core::judge): of ordinary numbers
    /// 3e-6 (f32), 5e-4 (f16), 4e-3 (bf16; on AVX512-BF16 and AMX dq of keys with a common mean may be a fifth above, as
    /// docs/contract.md says).
    ///
    /// For dtypes of 16 bits and more than one chunk of keys (256 to 1024), each key head being worked on also
    /// holds the dq of its query heads in f32, at most 16 MiB (see [`with_partial_bytes`](Self::with_partial_bytes));
    /// where they take more, dq is computed in a pass of its own, with 7 products in place of 5 and no such memory.
    ///
    /// dbias, if asked for, is written by the way where the bias has a number for each score of a batch; where entries are
    /// shared, or sequences are packed, it takes two more products and 256 KiB a thread. All sums are added in one order, so that every
    /// gradient is the same to the bit for any number of threads. dq, dk and dv of 16-bit inputs may be f32, as the
    /// [forward](Self::forward)'s outputs.
    ///
    /// ```
    /// use signflash_core::{
    ///     BiasMut, BiasRef, Dtype, GradInputs, Gradients, Inputs, Outputs, Problem, ScoreInputs, Shape, TensorMut, TensorRef,
    /// };
    /// use signflash_cpu::CpuEngine;
    ///
    /// // One query of two keys, of which a bias makes the second three times as heavy.
    /// let shape = Shape::new(1, 1, 2).heads(1, 1).head_dim(1);
    /// let of_bias = [1, 1, 1, 2];
    /// let problem = Problem::builder(shape).bias(Dtype::F32, of_bias).build()?;
    /// let (q, k, v, bias) = ([0.0f32], [0.0f32; 2], [4.0f32, 8.0], [0.0f32, f32::ln(3.0)]);
    /// let scores = ScoreInputs::default().bias(BiasRef::F32(TensorRef::bshd(&bias, of_bias)));
    /// let [k, v] = [TensorRef::bshd(&k, shape.k()), TensorRef::bshd(&v, shape.v())];
    /// let inputs = Inputs::new(TensorRef::bshd(&q, shape.q()), k, v).scores(scores);
    /// let (engine, mut out, mut lse) = (CpuEngine::new(), [0.0], [0.0]);
    /// engine.forward(&problem, &inputs, &mut Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse))?;
    ///
    /// let (mut dq, mut dk, mut dv, mut dbias) = ([0.0], [0.0; 2], [0.0; 2], [0.0f32; 2]);
    /// let mut gradients = Gradients::new(
    ///     TensorMut::bshd(&mut dq, shape.q()),
    ///     TensorMut::bshd(&mut dk, shape.k()),
    ///     TensorMut::bshd(&mut dv, shape.v()),
    /// )
    /// .dbias(BiasMut::F32(TensorMut::bshd(&mut dbias, of_bias)));
    /// let (out, dout) = (TensorRef::bshd(&out, shape.out()), TensorRef::bshd(&[1.0], shape.out()));
    /// engine.backward(&problem, &GradInputs::new(inputs, out, &lse, dout), &mut gradients)?;
    /// assert!((dbias[1] - 0.75 * (8.0 - 7.0)).abs() < 1e-6 && (dbias[0] + dbias[1]).abs() < 1e-6); // p (dp - delta)
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    ///
    /// # Errors
    /// A [`ProblemError`] naming the tensor that does not fit `problem`; the gradients are then untouched.
    pub fn backward<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, R>,
    ) -> Result<(), ProblemError> {
        inputs.check(problem)?;
        gradients.check(problem)?;
        let GradInputs { inputs, out, lse, dout, dlse, .. } = inputs;
        let inputs = RawGradInputs::new(RawInputs::of(inputs), RawTensor::of(out), lse, RawTensor::of(dout))
            .dlse(*dlse);
        let Gradients { dq, dk, dv, dbias, dsinks, .. } = gradients;
        let gradients =
            RawGradients::new(RawTensor::of_mut(dq), RawTensor::of_mut(dk), RawTensor::of_mut(dv))
                .dbias(dbias.as_mut().map(RawBias::of_mut))
                .dsinks(dsinks.as_deref_mut());
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
    pub unsafe fn backward_raw<T: Element, R: Element + ResultOf<T>>(
        &self,
        problem: &Problem,
        inputs: &RawGradInputs<'_, T>,
        gradients: RawGradients<'_, R>,
    ) -> Result<(), ProblemError> {
        inputs.check(problem)?;
        gradients.check(problem)?;
        // SAFETY: checked just now; the rest is the caller's promise.
        unsafe { self.run_backward(problem, inputs, gradients) };
        Ok(())
    }

    /// # Safety
    /// As [`backward_raw`](Self::backward_raw), and the tensors were checked.
    unsafe fn run_backward<T: Element, R: Element>(
        &self,
        problem: &Problem,
        inputs: &RawGradInputs<'_, T>,
        gradients: RawGradients<'_, R>,
    ) {
        let RawGradInputs { inputs: RawInputs { q, k, v, scores }, out, dout, lse, dlse } = *inputs;
        let RawGradients { dq, dk, dv, dbias, dsinks } = gradients;
        // SAFETY: the caller's promise, for as long as this call.
        let operands = unsafe { ScoreOperands::new(scores) };
        // SAFETY: the caller's promise, for as long as this call.
        let read = unsafe { [View::new(q), View::new(k), View::new(v), View::new(out), View::new(dout)] };
        // SAFETY: as above.
        let written = unsafe { [ViewMut::new(dq), ViewMut::new(dk), ViewMut::new(dv)] };
        // SAFETY: as above.
        let dbias = dbias.map(|dbias| unsafe { of_bias!(RawBias, dbias, x => TableMut::new(x)) });
        let [q, k, v, out, dout] = read;
        let read = Read { q, k, v, out, dout, operands, lse, dlse };
        let [dq, dk, dv] = written;
        self.backward_of_views(
            problem,
            read,
            Written { dq, dk, dv, dbias, dsinks: dsinks.map(FloatsMut::new) },
        );
    }

    /// The backward, for any dtype: compiled once, and not in every crate that calls it.
    fn backward_of_views(&self, problem: &Problem, read: Read<'_>, written: Written<'_>) {
        let Read { q, k, v, out, dout, operands, lse, dlse } = read;
        let Written { dq, dk, dv, dbias, dsinks } = written;
        let shape = problem.shape();
        let is_empty = [shape.q(), shape.k(), shape.v()].iter().all(|shape| shape.contains(&0));
        if is_empty && dbias.is_none() && dsinks.is_none() {
            return; // no gradient has an element, however many heads there are of nothing
        }
        let crew = Crew::of(self.threads(), self.team, operations(problem, 10.0));
        let finite = dlse.is_none_or(|dlse| finite_where_seen(lse, dlse))
            && !(problem.features().any(|feature| feature != Feature::HeadDimV) && has_nan_rows(lse));
        let chunk_keys = chunk_keys(problem, self.isa.multiplies_tiles(q.dtype));
        let order = Order::largest_first(problem, |sequence| {
            let keys = sequence.place.seqlen_k.min(chunk_keys);
            keys * sequence.queries_that_see(keys)
        });
        let own = dbias.filter(|dbias| !is_empty && is_of_each_score(problem, dbias.shape));
        let met = AtomicBool::new(false);
        let call = Call {
            careful: !finite,
            tiles: self.tiles,
            ..Call::new(problem, order.of(problem), operands, &met)
        };
        until_careful(call, |call| {
            let workers = Workers { kernels: kernels(self.isa, q.dtype, call.careful), crew };
            let references = lse.iter().any(|&lse| is_large(lse)).then(|| {
                let call = Call { rule: None, ..call }; // what is dropped counts, too
                references(&Scores { call, q, k, tile_rows: TILE_ROWS }, workers, lse)
            });
            let references = references.as_ref();
            let backward = Backward {
                call,
                q,
                k,
                v,
                out,
                dout,
                lse,
                references,
                dlse,
                dq,
                dk,
                dv,
                dbias: own,
                chunk_keys,
            };
            if !is_empty {
                run_backward(&backward, workers, self.partial_bytes);
            }
            if let (Some(dbias), None) = (&dbias, own) {
                run_bias(&backward, dbias, workers);
            }
            if let Some(dsinks) = &dsinks {
                run_sinks(&backward, dsinks, crew);
            }
        });
    }
}
