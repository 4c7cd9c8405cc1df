//! Lists the tiles of packed sequences, those of the longest walk first.
//!
//! A warp takes a sequence: it counts the tiles of all that come before it, and writes its own records. Before it come
//! sequences whose tiles have more to walk over (keys, if tiles are of queries; queries, if of keys), and of equal ones
//! those of lower numbers; so the order is the same in every run, and needs neither sorting nor counters. The tiles of a
//! sequence stay together, since they share what they walk over in the second-level cache.
//!
//! Queries behind the last sequence are those of a further one, which has no keys; keys likewise, without queries. So
//! every row of every result is somebody's.
use super::RECORD_BYTES;
use super::starts::{Starts, Stretch};
use crate::parts::args::kernel_args;
use signflash_ptx::{Builder, GlobalAddr, Kernel, LaunchBounds, Thread, U32, U64, Val, Warp};

const WARPS: u32 = 4;

/// Lists that one launch makes at most.
pub(crate) const LISTS: usize = 3;

kernel_args! {
    /// Arguments of the kernel that lists tiles.
    ListArgs / ListVals {
        /// Where sequences begin and the last ends, of queries and of keys: `sequences + 1` numbers each.
        cu_seqlens_q: u64,
        cu_seqlens_k: u64,
        /// Rows of the tensors.
        total_q: u32,
        total_k: u32,
        /// Sequences.
        sequences: u32,
        /// Lists to make: for each where it goes, of how many rows its tiles are, and whether these are keys (1) or
        /// queries (0).
        list0: u64,
        rows0: u32,
        keys0: u32,
        list1: u64,
        rows1: u32,
        keys1: u32,
        list2: u64,
        rows2: u32,
        keys2: u32,
    }
}

/// Blocks that make so many lists of so many sequences, what is left over counted as one.
pub(crate) fn blocks(lists: usize, sequences: u64) -> u64 {
    (lists as u64 * sequences).div_ceil(WARPS.into())
}

/// The kernel, of which there is only one.
pub(crate) fn kernel(name: &str) -> Kernel {
    let bounds = LaunchBounds { block_threads: 32 * WARPS, min_blocks_per_sm: 1 };
    Builder::build(name, bounds, |cta| {
        let args = ListVals::declare(cta);
        let warp = cta.warps();
        let (count, index) = (args.sequences + 1, cta.index() * WARPS + warp.index());
        let list = index / count;
        let own = List::nth(&args, list);
        warp.when(list.lt(LISTS as u32) & own.list.ne(0u64), |warp| {
            own.write(warp, &args, index - list * count);
        });
    })
}

/// One of the lists.
struct List<'k> {
    list: Val<'k, U64>,
    rows: Val<'k, U32>,
    keys: Val<'k, U32>,
}

/// The tiles of a sequence.
struct Tiles<'k> {
    queries: Stretch<'k>,
    keys: Stretch<'k>,
    count: Val<'k, U32>,
    /// What each of them walks over.
    walk: Val<'k, U32>,
}

impl<'k> List<'k> {
    fn nth(args: &ListVals<'k>, number: Val<'k, U32>) -> Self {
        let [first, second] = [0, 1].map(|i| number.eq(i));
        List {
            list: first.select(args.list0, second.select(args.list1, args.list2)),
            rows: first.select(args.rows0, second.select(args.rows1, args.rows2)),
            keys: first.select(args.keys0, second.select(args.keys1, args.keys2)),
        }
    }

    /// Those of a sequence, or of what is left over, which has nothing to walk over.
    fn tiles(&self, t: Thread<'k>, args: &ListVals<'k>, sequence: Val<'k, U32>) -> Tiles<'k> {
        let of = |cu_seqlens, total| Starts { cu_seqlens, total, sequences: args.sequences }.of(t, sequence);
        let (queries, keys) = (of(args.cu_seqlens_q, args.total_q), of(args.cu_seqlens_k, args.total_k));
        let (of_keys, is_over) = (self.keys.ne(0), sequence.eq(args.sequences));
        let left_over = |own: Val<'k, _>, stretch: Stretch<'k>| Stretch {
            len: (is_over & !own).select(0u32, stretch.len),
            ..stretch
        };
        let (queries, keys) = (left_over(!of_keys, queries), left_over(of_keys, keys));
        let own = of_keys.select(keys.len, queries.len);
        let count = (own + self.rows - 1) / self.rows;
        Tiles { queries, keys, count, walk: of_keys.select(queries.len, keys.len) }
    }

    /// Writes the records of a sequence.
    fn write(&self, warp: Warp<'k>, args: &ListVals<'k>, sequence: Val<'k, U32>) {
        let t = warp.threads();
        let own = self.tiles(t, args, sequence);
        let (before, all) = (t.u32(0).var(), t.u32(0).var());
        by_lanes(warp, args.sequences + 1, |t, other| {
            let tiles = self.tiles(t, args, other);
            let comes_before = own.walk.lt(tiles.walk) | tiles.walk.eq(own.walk) & other.lt(sequence);
            before.set(before.get() + comes_before.select(tiles.count, 0u32));
            all.set(all.get() + tiles.count);
        });
        let of_warp = |sum: Val<'k, U32>| {
            [16, 8, 4, 2, 1].into_iter().fold(sum, |sum, bit| sum + warp.shuffle_xor(sum, bit))
        };
        let (before, all) = (of_warp(before.get()), of_warp(all.get()));
        // Only numbers that are none (they fall) could make more of them.
        let most = self.keys.ne(0).select(args.total_k, args.total_q) / self.rows + args.sequences + 1;
        t.when(sequence.eq(0) & t.lane().eq(0), |t| {
            t.store(GlobalAddr::new(self.list), [all.min(most)]);
        });
        by_lanes(warp, own.count, |t, number| {
            let index = before + number;
            t.when(index.lt(most), |t| {
                let bytes = u64::from(RECORD_BYTES);
                let record = GlobalAddr::new((index + 1).widen().mul_add(bytes, self.list));
                t.store(record, [sequence, number, own.queries.first, own.queries.len]);
                t.store(record.at(16), [own.keys.first, own.keys.len]);
            });
        });
    }
}

/// Shares the numbers below `end` out among the lanes.
fn by_lanes<'k>(warp: Warp<'k>, end: Val<'k, U32>, body: impl FnOnce(Thread<'k>, Val<'k, U32>)) {
    let first = warp.threads().u32(0).var();
    warp.while_(
        || first.get().lt(end),
        |warp| {
            let t = warp.threads();
            let own = first.get() + t.lane();
            t.when(own.lt(end), |t| body(t, own));
            first.set(first.get() + 32);
        },
    );
}
