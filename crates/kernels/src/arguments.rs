//! What every kernel is told about a problem.
use crate::geometry::{column_shift, row_shift, stat_rows};
use crate::parts::args::{DropoutArgs, ProblemArgs};
use signflash_core::Problem;
use signflash_ptx::Arg;

/// The arguments of one kernel: those of the problem, its own, and those of dropout.
pub(crate) fn arguments(
    problem: ProblemArgs,
    own: &dyn Fn(&mut Vec<Arg>),
    dropout: Option<DropoutArgs>,
) -> Vec<Arg> {
    let mut list = Vec::new();
    problem.push(&mut list);
    own(&mut list);
    if let Some(dropout) = dropout {
        dropout.push(&mut list);
    }
    list
}

/// Sizes, scale, and where tiles begin.
pub(crate) fn of_problem(problem: &Problem) -> ProblemArgs {
    let shape = problem.shape();
    ProblemArgs {
        seqlen_q: shape.seqlen_q as u32,
        seqlen_k: shape.seqlen_k as u32,
        num_heads: shape.num_heads as u32,
        num_heads_k: shape.num_heads_k as u32,
        group: shape.group_size() as u32,
        head_dim: shape.head_dim as u32,
        scale: problem.softmax_scale() as f32,
        scale_log2: problem.scale_log2(),
        row_shift: row_shift(problem),
        column_shift: column_shift(problem),
        stat_rows: stat_rows(problem) as u32,
    }
}

/// What is dropped, if anything is.
pub(crate) fn of_dropout(problem: &Problem, seed_and_offset_ptr: u64) -> Option<DropoutArgs> {
    let (rule, dropout, shard) = (problem.keep_rule()?, problem.dropout()?, problem.shard());
    let num_heads_total = shard.num_heads_total.unwrap_or(problem.shape().num_heads) as u64;
    let first_stream =
        (shard.first_batch as u64).wrapping_mul(num_heads_total).wrapping_add(shard.first_head as u64);
    Some(DropoutArgs {
        seed: dropout.seed(),
        offset: dropout.offset(),
        seed_and_offset_ptr,
        first_stream,
        num_heads_total,
        first_row16: (rule.first_row() / 16) as u32,
        first_column32: (rule.first_column() / 32) as u32,
        threshold: rule.threshold().into(),
        keep_scale: problem.keep_scale() as f32,
    })
}
