//! What the chosen kernels do on a GPU: launches with their arguments. The interpreter and the driver run the same
//! plan.
mod clear;
mod dbias;
mod launches;

use crate::arguments::ScoreArgs;
use crate::call::{CallError, Task, TooManyBlocks, check_features};
use crate::choose::{BackwardChoice, ForwardChoice};
use crate::config::{Config, DqKernel, ForwardKernel, HopperCommon, HopperKeysForm, KeysKernel, Layout};
use crate::geometry::{heads, heads_at_once, is_triangle, query_tiles, stat_rows};
use crate::overlays::boxed_bias;
use crate::packed::lists::{Listed, Lists};
use crate::packed::matrices::MatricesArgs;
use crate::parts::args::ProblemArgs;
use crate::parts::sinks::SinksArgs;
use crate::rows::convert_dq::ConvertDqArgs;
use crate::rows::delta::DeltaArgs;
use crate::rows::dsinks::{DsinksArgs, UNIT};
use crate::rows::statistics::STEP;
use crate::sm80::backward_keys::KeysArgs;
use crate::sm80::backward_queries::QueriesArgs;
use crate::sm80::forward::ForwardArgs;
use crate::sm80::probs::ProbsArgs;
use crate::sm90;
use crate::sm90::forward::WG_ROWS;
use crate::sm90::results::Results;
use crate::tensor::DeviceTensor;
use crate::workspace::list_bytes;
use launches::{Launch, Plan};
use signflash_ptx::Arg;

impl ForwardChoice<'_> {
    /// The tasks of the forward; none if there is nothing to write.
    ///
    /// # Errors
    /// A [`CallError`].
    pub fn tasks(&self) -> Result<Vec<Task>, CallError> {
        let call = self.call;
        check_features(call.problem)?;
        if call.stored.is_wide() && self.probs.is_some() {
            return Err(CallError::WideProbs);
        }
        let ranges = call.workspace + list_bytes(call.problem);
        let scores = ScoreArgs::of(call.problem, &call.scores, [call.seed_and_offset_ptr, ranges])?;
        let mut plan = Plan::new(call.problem, self.gpu, scores);
        plan.lists = Lists::new(call.problem, call.cu_seqlens, (call.workspace, 0))?;
        plan.ranges_task(call.workspace)?;
        let with_lse = plan.scores;
        plan.scores.sinks = call.problem.sinks().then_some(SinksArgs { sinks: call.scores.sinks });
        self.forward_task(&mut plan)?;
        plan.scores = with_lse;
        if let Some((kernel, probs)) = self.probs {
            self.probs_task(&mut plan, kernel, probs)?;
        }
        plan.finish()
    }

    fn forward_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (q, k, v, out, lse) =
            (self.call.q, self.call.k, self.call.v, self.call.out_in_halves(), self.call.lse);
        let config = Config::Forward(self.forward);
        match &self.forward {
            ForwardKernel::Portable(common, form) => {
                let launch = plan.by_queries(config, form.rows());
                plan.launch_with_widths(launch, common, &|list| ForwardArgs { q, k, v, out, lse }.push(list))
            }
            ForwardKernel::Hopper(common, form) => {
                let (shape, layout) = (plan.problem.shape(), common.operands.layout);
                let args = sm90::forward::ForwardArgs {
                    q: q.map(shape.q(), WG_ROWS, layout),
                    k: k.map(shape.k(), form.step, layout),
                    v: v.map(shape.v(), form.step, layout),
                };
                let out = Results::of(out, shape.out(), common.operands);
                let bias = boxed_bias(plan.problem, &self.call.scores)
                    .filter(|_| common.scores.overlays.has_boxes())
                    .map(|(bias, sizes)| bias.map(sizes, WG_ROWS, Layout::Batch));
                // Parts of results are computed while others travel, and what sends them holds some multiprocessors: with several
                // blocks for each, those that are free take more.
                let blocks_each = if common.operands.stored.is_wide() { 4 } else { 1 };
                plan.launch_scheduled(config, form, (is_triangle(plan.problem), blocks_each), &|list| {
                    args.push(list);
                    out.push(list);
                    list.push(Arg::U64(lse));
                    if let Some(boxed_bias) = bias {
                        sm90::forward::BoxedArgs { boxed_bias }.push(list);
                    }
                })
            }
        }
    }

    fn probs_task(
        &self,
        plan: &mut Plan<'_>,
        kernel: ForwardKernel,
        probs: DeviceTensor,
    ) -> Result<(), CallError> {
        let (q, k, lse) = (self.call.q, self.call.k, self.call.lse);
        match &kernel {
            ForwardKernel::Portable(_, form) => {
                let args = ProbsArgs { q, k, lse, probs };
                let config = Config::Probs(kernel);
                match self.matrices()? {
                    None => {
                        let launch = plan.by_queries(config, form.rows());
                        plan.launch(launch, &|list| args.push(list))
                    }
                    Some(matrices) => {
                        let blocks = matrices.blocks(plan.problem, form.rows());
                        let own = |list: &mut Vec<Arg>| {
                            matrices.push(list);
                            args.push(list);
                        };
                        plan.launch(Launch { config, blocks, list: None }, &own)
                    }
                }
            }
            ForwardKernel::Hopper(common, form) => {
                let (shape, layout) = (plan.problem.shape(), common.operands.layout);
                let [batch, heads, seqlen_q, seqlen_k] = shape.probs();
                let args = sm90::probs::ProbsArgs {
                    q: q.map(shape.q(), WG_ROWS, layout),
                    k: k.map(shape.k(), form.step, layout),
                    probs: probs.map([batch, seqlen_q, heads, seqlen_k], WG_ROWS, Layout::Batch),
                    lse,
                };
                // Every key is written, whether it is seen or not: no tile is longer than another.
                plan.launch_scheduled(Config::Probs(kernel), form, (false, 1), &|list| args.push(list))
            }
        }
    }
}

impl ForwardChoice<'_> {
    /// The matrices of probs, if sequences are packed.
    fn matrices(&self) -> Result<Option<MatricesArgs>, CallError> {
        let Some([cu_seqlens_q, cu_seqlens_k]) = self.call.cu_seqlens else { return Ok(None) };
        let [rows, columns] = self.call.probs_sizes.ok_or(CallError::NoProbsSizes)?.map(|size| size as u32);
        let sequences = self.call.problem.sequence_count() as u32;
        Ok(Some(MatricesArgs { cu_seqlens_q, cu_seqlens_k, sequences, rows, columns }))
    }
}

impl BackwardChoice<'_> {
    /// The tasks of the backward.
    ///
    /// # Errors
    /// A [`CallError`].
    pub fn tasks(&self) -> Result<Vec<Task>, CallError> {
        let call = self.call;
        check_features(call.problem)?;
        call.check_score_gradients()?;
        let ranges = call.workspace + self.workspace.ranges;
        let scores = ScoreArgs::of(call.problem, &call.scores, [call.seed_and_offset_ptr, ranges])?;
        let mut plan = Plan::new(call.problem, self.gpu, scores);
        plan.lists = Lists::new(call.problem, call.cu_seqlens, (call.workspace, self.workspace.lists))?;
        plan.ranges_task(call.workspace)?;
        if call.dsinks.is_some() && call.problem.is_packed() {
            // Between packed sequences there are rows that nobody owns.
            plan.tasks.push(Task::Zero { ptr: call.workspace, bytes: self.workspace.lists });
        }
        self.delta_task(&mut plan)?;
        self.dsinks_task(&mut plan)?;
        self.zero_task(&mut plan);
        self.keys_task(&mut plan)?;
        self.dq_task(&mut plan)?;
        self.dbias_task(&mut plan)?;
        plan.finish()
    }

    fn dq_sums(&self) -> u64 {
        self.call.workspace + self.workspace.dq_sums
    }

    fn counters(&self) -> u64 {
        self.call.workspace + self.workspace.counters
    }

    /// What delta and so ds are divided by, and sums of dq multiplied with: once, rather than every dp.
    fn ds_divisor(&self, plan: &Plan<'_>) -> f32 {
        let keep_scale = plan.scores.dropout.map_or(1.0, |dropout| dropout.keep_scale);
        match self.keys {
            KeysKernel::Portable(..) => keep_scale,
            KeysKernel::Hopper(..) => keep_scale * sm90::backward::ds_scale(plan.scores.dropout.is_some()),
        }
    }

    fn delta_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let call = self.call;
        let args = DeltaArgs {
            out: call.out,
            dout: call.dout,
            lse: call.lse,
            dlse: call.dlse.unwrap_or(0),
            stats: call.workspace,
            ds_divisor: self.ds_divisor(plan),
        };
        let (half, layout, rows) = self.delta;
        let clear = self.clear(plan);
        let per_block = if clear.is_some() { rows.packed_per_block() } else { rows.per_block() };
        let blocks = (heads(plan.problem) * stat_rows(plan.problem)).div_ceil(per_block.into());
        let list = plan.list(Listed { rows: STEP, keys: false }, 1);
        let launch = Launch { config: Config::Delta(half, layout, rows), blocks, list };
        // Its rows are those of out and dout.
        let problem = ProblemArgs { head_dim: plan.problem.shape().head_dim_v as u32, ..plan.args };
        plan.launch_on_rows(launch, problem, &|list| {
            clear.into_iter().for_each(|clear| clear.push(list));
            args.push(list);
        })
    }

    /// Gradients of the sinks, if they are asked for.
    fn dsinks_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (call, Some(dsinks)) = (self.call, self.call.dsinks) else { return Ok(()) };
        let units_per_sequence = stat_rows(plan.problem) / u64::from(UNIT);
        let args = DsinksArgs {
            sinks: call.scores.sinks,
            dsinks,
            stats: call.workspace,
            units: (plan.problem.shape().batch as u64 * units_per_sequence) as u32,
            units_per_sequence: units_per_sequence as u32,
            ds_divisor: self.ds_divisor(plan),
        };
        let blocks = plan.problem.shape().num_heads as u64;
        let launch = Launch { config: Config::Dsinks, blocks, list: None };
        plan.launch_on_rows(launch, plan.args, &|list| args.push(list))
    }

    fn keys_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let call = self.call;
        let (q, k, v, dout) = (call.q, call.k, call.v, call.dout);
        let [_, dk, dv] = call.gradients_in_halves();
        let (config, stats, dq_sums) = (Config::Keys(self.keys), call.workspace, self.dq_sums());
        match &self.keys {
            KeysKernel::Portable(common, form, _) => {
                let args = KeysArgs { q, k, v, dout, dk, dv, stats, dq_sums };
                let launch = plan.by_keys(config, form.rows());
                plan.launch_with_widths(launch, common, &|list| args.push(list))
            }
            KeysKernel::Hopper(common, form) => {
                let own = self.own_keys_args(plan, common, form);
                let launch = plan.by_keys(config, form.keys);
                let bias = boxed_bias(plan.problem, &call.scores)
                    .filter(|_| common.scores.overlays.has_boxes())
                    .map(|(bias, sizes)| bias.map(sizes, form.step, Layout::Batch));
                if !form.persistent {
                    return plan.launch(launch, &|list| {
                        own(list);
                        if let Some(boxed_bias) = bias {
                            sm90::forward::BoxedArgs { boxed_bias }.push(list);
                        }
                    });
                }
                let units = i32::try_from(launch.blocks);
                let units = units.map_err(|_| TooManyBlocks { blocks: launch.blocks })? as u32;
                let blocks = launch.blocks.min(plan.gpu.sm_count.into());
                let tiles = sm90::backward::TilesArgs { units, begun: self.counters() };
                plan.launch(Launch { blocks, ..launch }, &|list| {
                    tiles.push(list);
                    own(list);
                })
            }
        }
    }

    /// What Hopper's pass over keys is told.
    fn own_keys_args(
        &self,
        plan: &Plan<'_>,
        common: &HopperCommon,
        form: &HopperKeysForm,
    ) -> impl Fn(&mut Vec<Arg>) + use<> {
        let (call, problem) = (self.call, plan.problem);
        let shape = problem.shape();
        let layout = Layout::of(problem);
        let [_, dk, dv] = call.gradients_in_halves();
        let results = [(dk, shape.k()), (dv, shape.v())]
            .map(|(tensor, sizes)| Results::of(tensor, sizes, common.operands));
        let args = sm90::backward::KeysArgs {
            q: call.q.map(shape.q(), form.step, layout),
            k: call.k.map(shape.k(), form.keys, layout),
            v: call.v.map(shape.v(), form.keys, layout),
            dout: call.dout.map(shape.out(), form.step, layout),
        };
        let sums = sm90::backward::SumsArgs {
            stats: call.workspace,
            dq_sums: self.dq_sums(),
            dq_counters: self.counters() + if form.persistent { sm90::backward::NEXT_TILE_BYTES } else { 0 },
            heads_at_once: heads_at_once(problem, form, plan.gpu),
        };
        move |list: &mut Vec<Arg>| {
            args.push(list);
            results.iter().for_each(|results| results.push(list));
            sums.push(list);
        }
    }

    fn dq_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (call, [dq, ..]) = (self.call, self.call.gradients_in_halves());
        match &self.dq {
            DqKernel::Queries(common, form) => {
                let args = QueriesArgs {
                    q: call.q,
                    k: call.k,
                    v: call.v,
                    dout: call.dout,
                    dq,
                    stats: call.workspace,
                };
                let launch = plan.by_queries(Config::Dq(self.dq), form.rows());
                plan.launch_with_widths(launch, common, &|list| args.push(list))
            }
            DqKernel::FromSums(_, step, _) => {
                // Its tiles are the steps of the pass over keys.
                let blocks = heads(plan.problem) * query_tiles(plan.problem, *step);
                let args = ConvertDqArgs { dq, dq_sums: self.dq_sums(), ds_divisor: self.ds_divisor(plan) };
                let list = plan.list(Listed { rows: *step, keys: false }, 1);
                let launch = Launch { config: Config::Dq(self.dq), blocks, list };
                plan.launch_on_rows(launch, plan.args, &|list| args.push(list))
            }
        }
    }
}
