//! The launch of the pass over tiles of a bias.
use super::{Launch, Plan};
use crate::call::CallError;
use crate::choose::BackwardChoice;
use crate::config::{Config, KeysKernel};
use crate::geometry::{column_shift, row_shift};
use crate::overlays::numbers_of;
use crate::packed::matrices::MatricesArgs;
use crate::sm80::dbias::DbiasArgs;
use crate::sm90;
use crate::tensor::ScoreTensor;
use signflash_ptx::Arg;

impl BackwardChoice<'_> {
    /// The gradient of the bias, if it is asked for.
    pub(super) fn dbias_task(&self, plan: &mut Plan<'_>) -> Result<(), CallError> {
        let (call, problem) = (self.call, plan.problem);
        let (Some((kernel, dbias)), Some(bias)) = (self.dbias, problem.bias()) else { return Ok(()) };
        let [batches, heads, rows, columns] = bias.shape;
        let args = DbiasArgs {
            q: call.q,
            k: call.k,
            v: call.v,
            dout: call.dout,
            stats: call.workspace,
            dbias: ScoreTensor::of(numbers_of(bias.dtype), bias.shape, dbias),
            sequence_count: problem.sequence_count() as u32,
            bias_batches: batches as u32,
            bias_heads: heads as u32,
            delta_scale: self.delta_scale(plan),
        };
        let tiles = |size: usize, shift: u32, of: u32| (size as u64 + u64::from(shift)).div_ceil(of.into());
        let row_tiles = if rows == 1 { 1 } else { tiles(rows, row_shift(problem), kernel.form.rows()) };
        let key_tiles = tiles(columns, column_shift(problem), kernel.form.step);
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
        let own = |list: &mut Vec<Arg>| {
            if let Some(matrices) = matrices {
                matrices.push(list);
            }
            args.push(list);
        };
        let launch = Launch { config: Config::Dbias(kernel), blocks, list: None };
        plan.launch_with_widths(launch, &kernel.common, &own)
    }

    /// What delta is multiplied by to be divided by the keep scale, whatever the pass over keys divides it by.
    fn delta_scale(&self, plan: &Plan<'_>) -> f32 {
        match self.keys {
            KeysKernel::Portable(..) => 1.0,
            KeysKernel::Hopper(..) => sm90::backward::ds_scale(plan.scores.dropout.is_some()),
        }
    }
}
