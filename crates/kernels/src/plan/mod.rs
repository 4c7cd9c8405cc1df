//! What the chosen kernels do on a GPU: launches with their arguments. The interpreter and the driver run the same
//! plan.
mod clear;
mod dbias;

use crate::arguments::{ScoreArgs, arguments, of_problem};
use crate::call::{CallError, Task, TooManyBlocks, check_features, check_workspace};
use crate::choose::{BackwardChoice, ForwardChoice};
use crate::config::{
    Common, Config, DqKernel, ForwardKernel, HopperForm, HopperKeysForm, KeysKernel, Layout,
};
use crate::geometry::{
    heads, heads_at_once, is_triangle, key_blocks, query_blocks, query_tiles, schedule, stat_rows,
};
use crate::gpu::Gpu;
use crate::packed::PackedArgs;
use crate::packed::lists::{Listed, Lists};
use crate::packed::matrices::MatricesArgs;
use crate::padding;
use crate::parts::args::ProblemArgs;
use crate::parts::overlays::OverlayArgs;
use crate::parts::width::WidthArgs;
use crate::rows::convert_dq::ConvertDqArgs;
use crate::rows::delta::DeltaArgs;
use crate::rows::dsinks::{DsinksArgs, UNIT};
use crate::rows::sinks::SinksArgs;
use crate::rows::statistics::STEP;
use crate::sm80::backward_keys::KeysArgs;
use crate::sm80::backward_queries::QueriesArgs;
use crate::sm80::forward::ForwardArgs;
use crate::sm80::probs::ProbsArgs;
use crate::sm90;
use crate::sm90::forward::WG_ROWS;
use crate::tensor::DeviceTensor;
use crate::workspace::list_bytes;
use signflash_core::Problem;
use signflash_ptx::Arg;

/// The tasks of a call, one behind the other.
struct Plan<'a> {
    problem: &'a Problem,
    gpu: Gpu,
    args: ProblemArgs,
    scores: ScoreArgs,
    /// Of packed sequences.
    lists: Option<Lists>,
    tasks: Vec<Task>,
}

/// A launch: of which kernel, of how many blocks, and where the tiles are listed that they own.
struct Launch {
    config: Config,
    blocks: u64,
    list: Option<PackedArgs>,
}

impl ForwardChoice<'_> {
    /// The tasks of the forward; none if there is nothing to write.
    ///
    /// # Errors
    /// A [`CallError`].
    pub fn tasks(&self) -> Result<Vec<Task>, CallError> {
        let call = self.call;
        check_features(call.problem)?;
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
        let (q, k, v, out, lse) = (self.call.q, self.call.k, self.call.v, self.call.out, self.call.lse);
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
                    out: out.map(shape.out(), WG_ROWS, layout),
                    lse,
                };
                plan.launch_scheduled(config, form, is_triangle(plan.problem), &|list| args.push(list))
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
                plan.launch_scheduled(Config::Probs(kernel), form, false, &|list| args.push(list))
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
        self.call.workspace + self.workspace.dq_counters
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
        let (q, k, v, dout, dk, dv) = (call.q, call.k, call.v, call.dout, call.dk, call.dv);
        let (config, stats, dq_sums) = (Config::Keys(self.keys), call.workspace, self.dq_sums());
        match &self.keys {
            KeysKernel::Portable(common, form, _) => {
                let args = KeysArgs { q, k, v, dout, dk, dv, stats, dq_sums };
                let launch = plan.by_keys(config, form.rows());
                plan.launch_with_widths(launch, common, &|list| args.push(list))
            }
            KeysKernel::Hopper(_, form) => {
                let args = self.own_keys_args(plan, form);
                let launch = plan.by_keys(config, form.keys);
                if !form.persistent {
                    return plan.launch(launch, &|list| args.push(list));
                }
                let units = i32::try_from(launch.blocks);
                let units = units.map_err(|_| TooManyBlocks { blocks: launch.blocks })? as u32;
                let blocks = launch.blocks.min(plan.gpu.sm_count.into());
                let tiles = sm90::backward::TilesArgs { units, begun: self.counters() };
                plan.launch(Launch { blocks, ..launch }, &|list| {
                    tiles.push(list);
                    args.push(list);
                })
            }
        }
    }

    fn own_keys_args(&self, plan: &Plan<'_>, form: &HopperKeysForm) -> sm90::backward::KeysArgs {
        let (call, problem) = (self.call, plan.problem);
        let shape = problem.shape();
        let layout = Layout::of(problem);
        sm90::backward::KeysArgs {
            q: call.q.map(shape.q(), form.step, layout),
            k: call.k.map(shape.k(), form.keys, layout),
            v: call.v.map(shape.v(), form.keys, layout),
            dout: call.dout.map(shape.out(), form.step, layout),
            dk: call.dk.map(shape.k(), WG_ROWS, layout),
            dv: call.dv.map(shape.v(), WG_ROWS, layout),
            stats: call.workspace,
            dq_sums: self.dq_sums(),
            dq_counters: self.counters(),
            heads_at_once: heads_at_once(problem, form, plan.gpu),
        }
    }

    fn dq_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (call, dq) = (self.call, self.call.dq);
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

impl<'a> Plan<'a> {
    fn new(problem: &'a Problem, gpu: Gpu, scores: ScoreArgs) -> Self {
        Plan { problem, gpu, args: of_problem(problem), scores, lists: None, tasks: vec![] }
    }

    /// Finds the keys that a mask leaves, if it is the same for all queries. The address is that of the workspace.
    fn ranges_task(&mut self, workspace: u64) -> Result<(), CallError> {
        let OverlayArgs { mask, padding, .. } = self.scores.overlays;
        let (Some(shape), Some(mask), Some(padding)) = (self.problem.mask(), mask, padding) else {
            return Ok(());
        };
        check_workspace(workspace)?;
        let (blocks, args) = padding::launch(shape, mask.mask, padding.ranges);
        self.push(Config::Padding, blocks, args)
    }

    /// A kernel whose blocks own so many queries each.
    fn by_queries(&mut self, config: Config, rows: u32) -> Launch {
        let list = self.list(Listed { rows, keys: false }, 1);
        Launch { config, blocks: query_blocks(self.problem, rows), list }
    }

    /// A kernel whose blocks own so many keys each.
    fn by_keys(&mut self, config: Config, rows: u32) -> Launch {
        let list = self.list(Listed { rows, keys: true }, 1);
        Launch { config, blocks: key_blocks(self.problem, rows), list }
    }

    /// Where tiles of packed sequences are listed, of which one is `tiles_each` of the kernel's.
    fn list(&mut self, listed: Listed, tiles_each: u32) -> Option<PackedArgs> {
        self.lists.as_mut().map(|lists| lists.of(listed, tiles_each))
    }

    /// A kernel that makes scores.
    fn launch(&mut self, launch: Launch, own: &dyn Fn(&mut Vec<Arg>)) -> Result<(), CallError> {
        let args = arguments(self.args, launch.list, own, self.scores);
        self.push(launch.config, launch.blocks, args)
    }

    /// The same that reads v, by the portable kernels, who check columns themselves.
    fn launch_with_widths(
        &mut self,
        launch: Launch,
        common: &Common,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let widths = WidthArgs::of(self.problem, common);
        self.launch(launch, &|list| {
            own(list);
            widths.into_iter().for_each(|widths| widths.push(list));
        })
    }

    /// Work on rows, which knows no scores.
    fn launch_on_rows(
        &mut self,
        launch: Launch,
        problem: ProblemArgs,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let args = arguments(problem, launch.list, own, ScoreArgs::default());
        self.push(launch.config, launch.blocks, args)
    }

    /// A kernel of Hopper's whose blocks take several tiles of queries each.
    fn launch_scheduled(
        &mut self,
        config: Config,
        form: &HopperForm,
        triangle: bool,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        if self.lists.is_some() {
            return self.launch_listed(config, form, triangle, own);
        }
        let (schedule, blocks) = schedule(self.problem, form.rows(), triangle, self.gpu)?;
        let own = |list: &mut Vec<Arg>| {
            schedule.push(list);
            own(list);
        };
        self.launch(Launch { config, blocks, list: None }, &own)
    }

    /// The same of packed sequences.
    fn launch_listed(
        &mut self,
        config: Config,
        form: &HopperForm,
        triangle: bool,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), CallError> {
        let (rows, gpu_blocks) = (form.rows(), u64::from(self.gpu.sm_count));
        let pairs = triangle && heads(self.problem) * query_tiles(self.problem, rows) > gpu_blocks;
        let tiles_each = if pairs { 2 } else { 1 };
        let units = query_blocks(self.problem, tiles_each * rows);
        if i32::try_from(units + 2 * gpu_blocks).is_err() {
            return Err(TooManyBlocks { blocks: units }.into());
        }
        let list = self.list(Listed { rows: tiles_each * rows, keys: false }, tiles_each);
        self.launch(Launch { config, blocks: units.min(gpu_blocks), list }, own)
    }

    fn push(&mut self, config: Config, blocks: u64, args: Vec<Arg>) -> Result<(), CallError> {
        let grid = i32::try_from(blocks).map_err(|_| TooManyBlocks { blocks })? as u32;
        if grid > 0 {
            self.tasks.push(Task::Launch { config, grid, args });
        }
        Ok(())
    }

    /// All tasks; before them the lists that they ask for are made.
    fn finish(mut self) -> Result<Vec<Task>, CallError> {
        let asked = std::mem::take(&mut self.tasks);
        if let Some(lists) = self.lists.take().filter(|_| !asked.is_empty()) {
            let (blocks, args) = lists.launch();
            self.push(Config::Tiles, blocks, args)?;
        }
        self.tasks.extend(asked);
        Ok(self.tasks)
    }
}
