//! Which keys of a sequence a mask leaves, where it is the same for all its queries: the first, behind the last, and whether
//! all between them.
//!
//! Keys before and behind these need not be looked at: other kernels read these numbers before they begin, and walk
//! over what is between them. A block looks at the mask of one sequence.
use crate::overlays::RANGE_BYTES;
use crate::parts::args::{ScoreTensor, kernel_args};
use crate::parts::overlays::load_one;
use crate::{Config, config::Numbers};
use signflash_core::Problem;
use signflash_ptx::{Arg, B32, Builder, GlobalAddr, Kernel, LaunchBounds, Pred, U32, Val, Warp};

kernel_args! {
    /// Arguments of the kernel.
    RangesArgs / RangesVals {
        /// (sequences, 1, 1, keys) bytes.
        mask: ScoreTensor,
        /// Written: four numbers of 32 bits for each sequence.
        ranges: u64,
    }
}

const WARPS: u32 = 8;

/// Keys that a thread reads before it looks at them.
const AT_ONCE: u32 = 8;

/// Whether a problem's mask is of this kind.
pub(crate) fn has_padding(problem: &Problem) -> bool {
    problem.mask().is_some_and(|shape| shape[1] == 1 && shape[2] == 1 && !shape.contains(&0))
}

/// Bytes that a problem's ranges take.
pub(crate) fn ranges_bytes(problem: &Problem) -> u64 {
    let sequences = problem.mask().filter(|_| has_padding(problem)).map_or(0, |shape| shape[0] as u64);
    (RANGE_BYTES * sequences).next_multiple_of(16)
}

/// Who finds them, before all others.
pub(crate) fn ranges(problem: &Problem) -> Option<Config> {
    has_padding(problem).then_some(Config::Padding)
}

/// Blocks, and arguments.
pub(crate) fn launch(shape: [usize; 4], mask: ScoreTensor, ranges: u64) -> (u64, Vec<Arg>) {
    let mut args = vec![];
    RangesArgs { mask, ranges }.push(&mut args);
    (shape[0] as u64, args)
}

/// The kernel, of which there is only one.
pub(crate) fn kernel(name: &str) -> Kernel {
    let bounds = LaunchBounds { block_threads: 32 * WARPS, min_blocks_per_sm: 1 };
    Builder::build(name, bounds, |cta| {
        let RangesVals { mask, ranges } = RangesVals::declare(cta);
        let (warp, t, sequence) = (cta.warps(), cta.threads(), cta.index());
        let places = cta.smem("ranges", RANGE_BYTES as u32 * WARPS, 16);
        let start = sequence.widen().mul_add(mask.batch, mask.ptr);
        let (begin, end, count) = (t.u32(u32::MAX).var(), t.u32(0).var(), t.u32(0).var());
        let first = t.u32(0).var();
        cta.while_(
            || first.get().lt(mask.columns),
            |_| {
                let own = first.get() + t.index();
                let keys = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| own + 32 * WARPS * i);
                let read = keys.map(|key| {
                    // Behind the last key, the last one is read again, and not counted.
                    let place =
                        GlobalAddr::new(key.min(mask.columns - 1).widen().mul_add(mask.column, start));
                    load_one(t, Numbers::Bytes, place)
                });
                for (key, byte) in keys.into_iter().zip(read) {
                    let set: Val<'_, Pred> = byte.cast::<U32>().ne(0) & key.lt(mask.columns);
                    begin.set(set.select(begin.get().min(key), begin.get()));
                    end.set(set.select(end.get().max(key + 1), end.get()));
                    count.set(count.get() + set.select::<U32>(1u32, 0u32));
                }
                first.set(first.get() + 32 * WARPS * AT_ONCE);
            },
        );
        let own = places.plus(warp.index() * RANGE_BYTES as u32);
        let range = [
            over_warp(warp, begin.get(), |a, b| a.min(b)),
            over_warp(warp, end.get(), |a, b| a.max(b)),
            over_warp(warp, count.get(), |a, b| a + b),
            t.u32(0),
        ];
        t.when(t.lane().eq(0), |t| t.store(own, range));
        cta.sync();
        t.when(t.index().eq(0), |t| {
            let all = (0..WARPS).map(|warp| t.load::<U32, 4>(places.at(RANGE_BYTES as u32 * warp)));
            let both = all.reduce(|[a, b, m, zero], [c, d, n, _]| [a.min(c), b.max(d), m + n, zero]);
            let [begin, end, count, zero] = both.expect("a block has warps");
            // Of a sequence without keys both are 0.
            let begin = begin.min(end);
            let has_holes = count.eq(end - begin).select::<U32>(0u32, 1u32);
            let to = GlobalAddr::new(sequence.widen().mul_add(RANGE_BYTES, ranges));
            t.store(to, [begin, end, has_holes, zero].map(|number| number.cast::<B32>()));
        });
    })
}

/// Combines the numbers of a warp's lanes.
fn over_warp<'k>(
    warp: Warp<'k>,
    own: Val<'k, U32>,
    combine: impl Fn(Val<'k, U32>, Val<'k, U32>) -> Val<'k, U32>,
) -> Val<'k, U32> {
    [16, 8, 4, 2, 1].into_iter().fold(own, |own, bit| combine(own, warp.shuffle_xor(own, bit)))
}
