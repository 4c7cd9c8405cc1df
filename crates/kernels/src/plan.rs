//! What the chosen kernels do on a GPU: launches with their arguments. The interpreter and the driver run the same
//! plan.
use crate::arguments::{ScoreArgs, arguments, of_problem};
use crate::call::{Task, TooManyBlocks};
use crate::choose::{BackwardChoice, ForwardChoice};
use crate::config::{Config, DqKernel, ForwardKernel, HopperForm, HopperKeysForm, KeysKernel};
use crate::geometry::{
    heads, heads_at_once, is_triangle, key_blocks, query_blocks, query_tiles, schedule, stat_rows,
};
use crate::gpu::Gpu;
use crate::parts::args::ProblemArgs;
use crate::rows::convert_dq::ConvertDqArgs;
use crate::rows::delta::DeltaArgs;
use crate::sm80::backward_keys::KeysArgs;
use crate::sm80::backward_queries::QueriesArgs;
use crate::sm80::forward::ForwardArgs;
use crate::sm80::probs::ProbsArgs;
use crate::sm90;
use crate::sm90::forward::WG_ROWS;
use crate::tensor::DeviceTensor;
use signflash_core::Problem;
use signflash_ptx::Arg;

/// The tasks of a call, one behind the other.
struct Plan<'a> {
    problem: &'a Problem,
    gpu: Gpu,
    args: ProblemArgs,
    scores: ScoreArgs,
    tasks: Vec<Task>,
}

impl ForwardChoice<'_> {
    /// The tasks of the forward; none if there is nothing to write.
    ///
    /// # Errors
    /// [`TooManyBlocks`].
    pub fn tasks(&self) -> Result<Vec<Task>, TooManyBlocks> {
        let call = self.call;
        let mut plan = Plan::new(call.problem, self.gpu, call.seed_and_offset_ptr);
        self.forward_task(&mut plan)?;
        if let Some((kernel, probs)) = self.probs {
            self.probs_task(&mut plan, kernel, probs)?;
        }
        Ok(plan.tasks)
    }

    fn forward_task(&self, plan: &mut Plan<'_>) -> Result<(), TooManyBlocks> {
        let (q, k, v, out, lse) = (self.call.q, self.call.k, self.call.v, self.call.out, self.call.lse);
        let config = Config::Forward(self.forward);
        match &self.forward {
            ForwardKernel::Portable(_, form) => {
                let blocks = query_blocks(plan.problem, form.rows());
                plan.launch(config, blocks, &|list| ForwardArgs { q, k, v, out, lse }.push(list))
            }
            ForwardKernel::Hopper(_, form) => {
                let shape = plan.problem.shape();
                let args = sm90::forward::ForwardArgs {
                    q: q.map(shape.q(), WG_ROWS),
                    k: k.map(shape.k(), form.step),
                    v: v.map(shape.v(), form.step),
                    out: out.map(shape.out(), WG_ROWS),
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
    ) -> Result<(), TooManyBlocks> {
        let (q, k, lse) = (self.call.q, self.call.k, self.call.lse);
        match &kernel {
            ForwardKernel::Portable(_, form) => {
                let blocks = query_blocks(plan.problem, form.rows());
                let own = |list: &mut Vec<Arg>| ProbsArgs { q, k, lse, probs }.push(list);
                plan.launch(Config::Probs(kernel), blocks, &own)
            }
            ForwardKernel::Hopper(_, form) => {
                let shape = plan.problem.shape();
                let [batch, heads, seqlen_q, seqlen_k] = shape.probs();
                let args = sm90::probs::ProbsArgs {
                    q: q.map(shape.q(), WG_ROWS),
                    k: k.map(shape.k(), form.step),
                    probs: probs.map([batch, seqlen_q, heads, seqlen_k], WG_ROWS),
                    lse,
                };
                // Every key is written, whether it is seen or not: no tile is longer than another.
                plan.launch_scheduled(Config::Probs(kernel), form, false, &|list| args.push(list))
            }
        }
    }
}

impl BackwardChoice<'_> {
    /// The tasks of the backward.
    ///
    /// # Errors
    /// [`TooManyBlocks`].
    pub fn tasks(&self) -> Result<Vec<Task>, TooManyBlocks> {
        let call = self.call;
        let mut plan = Plan::new(call.problem, self.gpu, call.seed_and_offset_ptr);
        self.delta_task(&mut plan)?;
        let (first, bytes) = (self.workspace.dq_sums, self.workspace.bytes);
        if matches!(self.dq, DqKernel::FromSums(..)) && bytes > first {
            plan.tasks.push(Task::Zero { ptr: call.workspace + first, bytes: bytes - first });
        }
        self.keys_task(&mut plan)?;
        self.dq_task(&mut plan)?;
        Ok(plan.tasks)
    }

    fn dq_sums(&self) -> u64 {
        self.call.workspace + self.workspace.dq_sums
    }

    /// What delta and so ds are divided by, and sums of dq multiplied with: once, rather than every dp.
    fn ds_divisor(&self, plan: &Plan<'_>) -> f32 {
        let keep_scale = plan.scores.dropout.map_or(1.0, |dropout| dropout.keep_scale);
        match self.keys {
            KeysKernel::Portable(..) => keep_scale,
            KeysKernel::Hopper(..) => keep_scale * sm90::backward::ds_scale(plan.scores.dropout.is_some()),
        }
    }

    fn delta_task(&self, plan: &mut Plan<'_>) -> Result<(), TooManyBlocks> {
        let call = self.call;
        let args = DeltaArgs {
            out: call.out,
            dout: call.dout,
            lse: call.lse,
            dlse: call.dlse.unwrap_or(0),
            stats: call.workspace,
            ds_divisor: self.ds_divisor(plan),
        };
        let (half, rows) = self.delta;
        let blocks = (heads(plan.problem) * stat_rows(plan.problem)).div_ceil(rows.per_block().into());
        plan.launch_on_rows(Config::Delta(half, rows), blocks, &|list| args.push(list))
    }

    fn keys_task(&self, plan: &mut Plan<'_>) -> Result<(), TooManyBlocks> {
        let (call, problem) = (self.call, plan.problem);
        let (q, k, v, dout, dk, dv) = (call.q, call.k, call.v, call.dout, call.dk, call.dv);
        let (config, stats, dq_sums) = (Config::Keys(self.keys), call.workspace, self.dq_sums());
        match &self.keys {
            KeysKernel::Portable(_, form, _) => {
                let args = KeysArgs { q, k, v, dout, dk, dv, stats, dq_sums };
                plan.launch(config, key_blocks(problem, form.rows()), &|list| args.push(list))
            }
            KeysKernel::Hopper(_, form) => {
                let args = self.own_keys_args(plan, form);
                plan.launch(config, key_blocks(problem, form.keys), &|list| args.push(list))
            }
        }
    }

    fn own_keys_args(&self, plan: &Plan<'_>, form: &HopperKeysForm) -> sm90::backward::KeysArgs {
        let (call, problem) = (self.call, plan.problem);
        let shape = problem.shape();
        sm90::backward::KeysArgs {
            q: call.q.map(shape.q(), form.step),
            k: call.k.map(shape.k(), form.keys),
            v: call.v.map(shape.v(), form.keys),
            dout: call.dout.map(shape.out(), form.step),
            dk: call.dk.map(shape.k(), WG_ROWS),
            dv: call.dv.map(shape.v(), WG_ROWS),
            stats: call.workspace,
            dq_sums: self.dq_sums(),
            dq_counters: call.workspace + self.workspace.dq_counters,
            heads_at_once: heads_at_once(problem, form, plan.gpu),
        }
    }

    fn dq_task(&self, plan: &mut Plan<'_>) -> Result<(), TooManyBlocks> {
        let (call, dq) = (self.call, self.call.dq);
        match &self.dq {
            DqKernel::Queries(_, form) => {
                let args = QueriesArgs {
                    q: call.q,
                    k: call.k,
                    v: call.v,
                    dout: call.dout,
                    dq,
                    stats: call.workspace,
                };
                let blocks = query_blocks(plan.problem, form.rows());
                plan.launch(Config::Dq(self.dq), blocks, &|list| args.push(list))
            }
            DqKernel::FromSums(_, step, _) => {
                // Its tiles are the steps of the pass over keys.
                let blocks = heads(plan.problem) * query_tiles(plan.problem, *step);
                let args = ConvertDqArgs { dq, dq_sums: self.dq_sums(), ds_divisor: self.ds_divisor(plan) };
                plan.launch_on_rows(Config::Dq(self.dq), blocks, &|list| args.push(list))
            }
        }
    }
}

impl<'a> Plan<'a> {
    fn new(problem: &'a Problem, gpu: Gpu, seed_and_offset_ptr: u64) -> Self {
        let (args, scores) = (of_problem(problem), ScoreArgs::of(problem, seed_and_offset_ptr));
        Plan { problem, gpu, args, scores, tasks: vec![] }
    }

    /// A kernel that makes scores.
    fn launch(
        &mut self,
        config: Config,
        blocks: u64,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), TooManyBlocks> {
        self.push(config, blocks, arguments(self.args, own, self.scores))
    }

    /// Work on rows, which knows no scores.
    fn launch_on_rows(
        &mut self,
        config: Config,
        blocks: u64,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), TooManyBlocks> {
        self.push(config, blocks, arguments(self.args, own, ScoreArgs::default()))
    }

    /// A kernel of Hopper's whose blocks take several tiles of queries each.
    fn launch_scheduled(
        &mut self,
        config: Config,
        form: &HopperForm,
        triangle: bool,
        own: &dyn Fn(&mut Vec<Arg>),
    ) -> Result<(), TooManyBlocks> {
        let (schedule, blocks) = schedule(self.problem, form.rows(), triangle, self.gpu)?;
        let own = |list: &mut Vec<Arg>| {
            schedule.push(list);
            own(list);
        };
        self.launch(config, blocks, &own)
    }

    fn push(&mut self, config: Config, blocks: u64, args: Vec<Arg>) -> Result<(), TooManyBlocks> {
        let grid = i32::try_from(blocks).map_err(|_| TooManyBlocks { blocks })? as u32;
        if grid > 0 {
            self.tasks.push(Task::Launch { config, grid, args });
        }
        Ok(())
    }
}
