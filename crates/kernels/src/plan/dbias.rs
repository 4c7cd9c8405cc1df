//! The launch of the pass over tiles of a bias.
use super::{Launch, Plan};
use crate::call::CallError;
use crate::choose::BackwardChoice;
use crate::config::{Config, KeysKernel, Layout};
use crate::geometry::{column_shift, row_shift};
use crate::overlays::{boxed_bias, numbers_of};
use crate::packed::matrices::MatricesArgs;
use crate::sm80::dbias::{DbiasArgs, OperandArgs};
use crate::sm90;
use crate::sm90::dbias::TILE;
use crate::sm90::forward::WG_ROWS;
use crate::tensor::ScoreTensor;
use signflash_ptx::Arg;

impl BackwardChoice<'_> {
    /// The gradient of the bias, if it is asked for.
    pub(super) fn dbias_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (call, problem) = (self.call, plan.problem);
        let (Some((config, dbias)), Some(bias)) = (self.dbias, problem.bias()) else { return Ok(()) };
        let tile = match config {
            Config::Dbias(kernel) => [kernel.form.rows(), kernel.form.step],
            _ => [TILE; 2],
        };
        let [batches, heads, rows, columns] = bias.shape;
        let args = DbiasArgs {
            stats: call.workspace,
            dbias: ScoreTensor::of(numbers_of(bias.dtype), bias.shape, dbias),
            sequence_count: problem.sequence_count() as u32,
            bias_batches: batches as u32,
            bias_heads: heads as u32,
            delta_scale: self.delta_scale(plan),
        };
        let tiles = |size: usize, shift: u32, of: u32| (size as u64 + u64::from(shift)).div_ceil(of.into());
        let row_tiles = if rows == 1 { 1 } else { tiles(rows, row_shift(problem), tile[0]) };
        let key_tiles = tiles(columns, column_shift(problem), tile[1]);
        let blocks = if columns == 0 { 0 } else { (batches * heads) as u64 * row_tiles * key_tiles };
        let [cu_seqlens_q, cu_seqlens_k] = call.cu_seqlens.unwrap_or_default();
        let (sequences, rows, columns) = (args.sequence_count, rows as u32, columns as u32);
        let matrices = problem.is_packed().then_some(MatricesArgs {
            cu_seqlens_q,
            cu_seqlens_k,
            sequences,
            rows,
            columns,
        });
        let boxed = matches!(config, Config::OwnDbias(_)).then(|| self.boxed_operands(plan)).transpose()?;
        let own = |list: &mut Vec<Arg>| {
            if let Some(matrices) = matrices {
                matrices.push(list);
            }
            match boxed {
                Some(boxed) => boxed.push(list),
                None => OperandArgs { q: call.q, k: call.k, v: call.v, dout: call.dout }.push(list),
            }
            args.push(list);
        };
        let launch = Launch { config, blocks, list: None };
        match config {
            Config::Dbias(kernel) => plan.launch_with_widths(launch, &kernel.common, &own),
            _ => plan.launch(launch, &own),
        }
    }

    fn boxed_operands(&self, plan: &Plan<'_>) -> Result<sm90::dbias::OperandArgs, CallError> {
        let (call, shape) = (self.call, plan.problem.shape());
        let (bias, sizes) =
            boxed_bias(plan.problem, &call.scores).ok_or(CallError::NoScores { tensor: "bias" })?;
        Ok(sm90::dbias::OperandArgs {
            q: call.q.map(shape.q(), TILE, Layout::Batch),
            k: call.k.map(shape.k(), TILE, Layout::Batch),
            v: call.v.map(shape.v(), TILE, Layout::Batch),
            dout: call.dout.map(shape.out(), TILE, Layout::Batch),
            boxed_bias: bias.map(sizes, WG_ROWS, Layout::Batch),
        })
    }

    /// What delta is multiplied by to be divided by the keep scale, whatever the pass over keys divides it by.
    fn delta_scale(&self, plan: &Plan<'_>) -> f32 {
        match self.keys {
            KeysKernel::Portable(..) => 1.0,
            KeysKernel::Hopper(..) => sm90::backward::ds_scale(plan.scores.dropout.is_some()),
        }
    }
}
