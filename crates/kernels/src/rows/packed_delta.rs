//! Statistics of packed sequences' rows, see `delta.rs`; and what is zeroed before the pass over keys, which costs no
//! launch of its own here, and leaves out what no tile will ask for.
//!
//! Several blocks share a tile of [`statistics::STEP`] rows. A lane takes a few rows, all of which it asks for before it
//! uses the first: between a block's start and its first row lie the list's record and its number.
use super::delta::{DeltaVals, WARPS, dot, over_lanes};
use super::head::{QueryHead, QueryHeads};
use super::lse::LseRows;
use super::statistics::{self, StatRows};
use crate::config::DeltaRows;
use crate::packed::PackedVals;
use crate::parts::args::{ProblemVals, kernel_args};
use crate::parts::softmax::lse_of_p;
use crate::parts::work::Work;
use signflash_ptx::{Cta, F32, GlobalAddr, Half, U32, Val};
use std::f32::consts::LOG2_E;

kernel_args! {
    /// What is zeroed.
    ClearArgs / ClearVals {
        /// Sums of dq in f32, if they are asked for, of so many queries a tile and so many bytes a query; or 0.
        dq_sums: u64,
        dq_step: u32,
        dq_row_bytes: u32,
        /// 16 bytes, or 0.
        counter: u64,
    }
}

/// Rows that a lane takes at most.
const LANE_ROWS: u32 = 4;

impl DeltaRows {
    /// Rows of packed sequences that one block computes: it divides [`statistics::STEP`].
    pub(crate) fn packed_per_block(self) -> u32 {
        (LANE_ROWS * self.per_block()).min(statistics::STEP)
    }
}

/// The rest of the kernel.
pub(super) fn several_rows<'k>(
    cta: Cta<'k>,
    (half, rows): (Half, DeltaRows),
    problem: ProblemVals<'k>,
    packed: &PackedVals<'k>,
    (clear, args): (ClearVals<'k>, DeltaVals<'k>),
) {
    let (warp, t) = (cta.warps(), cta.threads());
    t.when((cta.index() + t.index()).eq(0) & clear.counter.ne(0u64), |t| {
        t.store(GlobalAddr::new(clear.counter), [t.u32(0); 4]);
    });
    let per_block = rows.packed_per_block();
    let blocks = statistics::STEP / per_block;
    let unit = cta.index() / blocks;
    let Work { sequence, head, block } = Work::listed(cta, &problem, packed, unit, problem.num_heads);
    let head_of = QueryHeads::of(&problem, sequence).nth(head);
    let first = block * statistics::STEP + (cta.index() - unit * blocks) * per_block;

    let lanes = rows.lanes();
    let (lane, own) = (t.lane() & (lanes - 1), first + t.index() / lanes);
    let own_rows: Vec<_> = (0..per_block / rows.per_block()).map(|i| own + i * rows.per_block()).collect();
    let (lse_rows, last) = (LseRows::of(head_of), sequence.seqlen_q - 1);
    // Rows behind the last are read like the last.
    let read: Vec<_> = own_rows.iter().map(|row| row.min(last)).collect();
    let lses: Vec<_> =
        read.iter().map(|row| t.load::<F32, 1>(lse_rows.place(*row).of(args.lse))[0]).collect();
    let sums: Vec<_> = read.iter().map(|_| t.f32(0.0).var()).collect();
    let both = |row| [args.out, args.dout].map(|tensor| tensor.head(sequence.queries(), head).row(row));
    let pairs: Vec<_> = read.iter().zip(&sums).map(|(row, sum)| (both(*row), sum)).collect();
    zero_sums(cta, &head_of, (first, per_block), &clear);
    dot(t, (half, rows), lane, problem.head_dim, &pairs);

    for (((row, read), sum), lse) in own_rows.into_iter().zip(read).zip(&sums).zip(lses) {
        let real = row.lt(sequence.seqlen_q);
        let dlse = t.f32(0.0).var();
        t.when(args.dlse.ne(0u64), |t| {
            let [own] = t.load::<F32, 1>(lse_rows.place(read).of(args.dlse));
            dlse.set(lse.eq(f32::NEG_INFINITY).select(t.f32(0.0), own));
        });
        let delta = (over_lanes(warp, lanes, sum.get()) - dlse.get()) * args.ds_divisor.rcp();
        let to = StatRows::of(head_of).place(args.stats, row);
        t.when(lane.eq(0), |t| {
            let lse = real.select(lse_of_p(t, lse), t.f32(f32::INFINITY));
            t.store(to, [-(lse * LOG2_E)]);
            t.store(to.at(statistics::DELTA.into()), [real.select(delta, t.f32(0.0))]);
        });
    }
}

/// Zeroes the sums of dq of a block's rows, which lie in whole tiles.
fn zero_sums<'k>(
    cta: Cta<'k>,
    head: &QueryHead<'k>,
    (first, rows): (Val<'k, U32>, u32),
    clear: &ClearVals<'k>,
) {
    cta.when(clear.dq_sums.ne(0u64), |cta| {
        let (warp, t) = (cta.warps(), cta.threads());
        let (step, row_bytes) = (clear.dq_step, clear.dq_row_bytes);
        let (seqlen, begins) = (head.sequence.seqlen_q, head.sequence.packed.expect("listed"));
        let end = ((seqlen + step - 1) / step * step).min(first + rows);
        let tile = head.first_packed_tile(begins, step).mul_wide(step * row_bytes);
        let start = tile + first.mul_wide(row_bytes) + clear.dq_sums;
        // None, if all of the block's rows are behind the last tile.
        let pieces = (end - first.min(end)) * (row_bytes / 16);
        let at = (t.index() - t.lane()).var();
        warp.while_(
            || at.get().lt(pieces),
            |warp| {
                let (t, own) = (warp.threads(), at.get() + warp.threads().lane());
                t.when(own.lt(pieces), |t| {
                    t.store(GlobalAddr::new(start + own.mul_wide(16u32)), [t.u32(0); 4]);
                });
                at.set(at.get() + 32 * WARPS);
            },
        );
    });
}
