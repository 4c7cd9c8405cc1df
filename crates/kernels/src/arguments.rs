//! What every kernel is told about a problem.
use crate::call::CallError;
use crate::config::BandKind;
use crate::geometry::{column_shift, row_shift, stat_rows};
use crate::packed::PackedArgs;
use crate::parts::args::{DropoutArgs, ProblemArgs};
use crate::parts::overlays::OverlayArgs;
use crate::parts::scores::{AlibiArgs, KindArgs, SoftcapArgs};
use crate::parts::sinks::SinksArgs;
use crate::parts::visibility::{BandArgs, LeftArgs, RightArgs};
use crate::scores::DeviceScores;
use signflash_core::{Problem, Slopes};
use signflash_ptx::Arg;

/// What kernels that make scores are told besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScoreArgs {
    /// What queries see, unless they see everything.
    pub(crate) band: Option<BandArgs>,
    /// What products become.
    pub(crate) kind: KindArgs,
    /// One more score of each row, for who makes lse.
    pub(crate) sinks: Option<SinksArgs>,
    /// What is dropped, if anything is.
    pub(crate) dropout: Option<DropoutArgs>,
    /// What is added to scores.
    pub(crate) overlays: OverlayArgs,
}

impl ScoreArgs {
    /// Of a problem, for who reads lse; and of what is in device memory: operands of scores, a seed and an offset, and
    /// ranges of keys that a mask leaves.
    ///
    /// # Errors
    /// A [`CallError`].
    pub(crate) fn of(
        problem: &Problem,
        scores: &DeviceScores,
        [seed_and_offset_ptr, ranges]: [u64; 2],
    ) -> Result<Self, CallError> {
        scores.check(problem)?;
        Ok(ScoreArgs {
            band: of_band(problem),
            kind: of_kind(problem, scores),
            sinks: None,
            dropout: of_dropout(problem, seed_and_offset_ptr),
            overlays: OverlayArgs::of(problem, scores, ranges)?,
        })
    }
}

/// The arguments of one kernel: those of the problem, the list of its tiles, its own, and those of scores.
pub(crate) fn arguments(
    problem: ProblemArgs,
    packed: Option<PackedArgs>,
    own: &dyn Fn(&mut Vec<Arg>),
    scores: ScoreArgs,
) -> Vec<Arg> {
    let mut list = Vec::new();
    problem.push(&mut list);
    if let Some(packed) = packed {
        packed.push(&mut list);
    }
    own(&mut list);
    if let Some(band) = scores.band {
        band.push(&mut list);
    }
    scores.kind.push(&mut list);
    if let Some(sinks) = scores.sinks {
        sinks.push(&mut list);
    }
    if let Some(dropout) = scores.dropout {
        dropout.push(&mut list);
    }
    scores.overlays.push(&mut list);
    list
}

/// The band, as far as it hides anything.
fn of_band(problem: &Problem) -> Option<BandArgs> {
    let (sides, band) = (problem.sides(), problem.visibility());
    // A line further away hides nothing, or everything, just as well; and positions remain numbers of 32 bits
    // (`check_diagonal` in core's problem.rs). Lines of packed sequences, which have diagonals of their own, are counted
    // from the diagonal.
    let (facing, nearest, furthest) = match problem.is_packed() {
        false => (band.diagonal, -band.queries, band.keys),
        true => (0, -band.keys, band.queries),
    };
    let line = |at: i64| at.clamp(nearest, furthest) as i32;
    let last = sides.right.and(band.right).map_or(line(furthest), |right| line(facing + right));
    let first = sides.left.and(band.left).map(|left| line(facing - left));
    let left = first.map(|first| LeftArgs { before: last - first });
    let hides = BandKind::of(sides) != BandKind::Full;
    hides.then_some(BandArgs { right: RightArgs { diagonal: last }, left })
}

/// What products become.
fn of_kind(problem: &Problem, scores: &DeviceScores) -> KindArgs {
    let num_heads = problem.shape().num_heads as u32;
    KindArgs {
        softcap: SoftcapArgs::of(problem),
        alibi: problem.alibi().map(|slopes| AlibiArgs {
            alibi_slopes: scores.alibi_slopes,
            slopes_per_sequence: if slopes == Slopes::PerSequence { num_heads } else { 0 },
            // Positions are numbers of 32 bits (`check_diagonal` in core's problem.rs).
            facing: if problem.is_packed() { 0 } else { problem.diagonal() as i32 },
        }),
    }
}

/// Sizes, scale, and where tiles begin.
pub(crate) fn of_problem(problem: &Problem) -> ProblemArgs {
    let shape = problem.shape();
    ProblemArgs {
        seqlen_q: shape.seqlen_q as u32,
        seqlen_k: shape.seqlen_k as u32,
        num_heads: shape.num_heads as u32,
        num_heads_k: shape.num_heads_k as u32,
        group_size: shape.group_size() as u32,
        head_dim: shape.head_dim as u32,
        scale: problem.softmax_scale() as f32,
        scale_log2: problem.scale_log2(),
        row_shift: row_shift(problem),
        column_shift: column_shift(problem),
        stat_rows: stat_rows(problem) as u32,
    }
}

fn of_dropout(problem: &Problem, seed_and_offset_ptr: u64) -> Option<DropoutArgs> {
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
