//! From accumulators to global memory.
use super::copy::{TileCopy, TileRows};
use signflash_ptx::{Acc, Half, SmemAddr, TileLayout, Warp};

/// Rounds a warp's accumulators to 16 bits and writes them as rows of a tensor, by way of `staging`: the warp's own
/// `16 * acc.len()` rows of a tile, which it has finished reading. `copy` shares tiles out among the warp's lanes.
#[track_caller]
pub(crate) fn store_rows<'k>(
    warp: Warp<'k>,
    acc: &[Acc<'k>],
    half: Half,
    staging: SmemAddr<'k>,
    copy: &TileCopy<'k>,
    target: TileRows<'k>,
) {
    let layout = TileLayout::new(8 * acc[0].groups() as u32);
    warp.sync();
    stage(warp, acc, half, staging, layout);
    warp.sync();
    copy.store(staging, target, 16 * acc.len() as u32);
}

/// Writes accumulators as 16-bit rows of a tile.
#[track_caller]
pub(crate) fn stage<'k>(warp: Warp<'k>, acc: &[Acc<'k>], half: Half, tile: SmemAddr<'k>, layout: TileLayout) {
    let t = warp.threads();
    let (row, pair) = (t.lane() >> 2, t.lane() & 3);
    for group in 0..acc[0].groups() {
        // The permutation is the same for rows g, g + 8 and the next 16.
        let own = tile.plus(layout.chunk(row, group as u32) + pair * 4);
        for (i, acc) in acc.iter().enumerate() {
            for lower in 0..2 {
                let word =
                    acc.at(group, 2 * lower).get().pack(acc.at(group, 2 * lower + 1).get(), half, false);
                t.store(own.at(layout.bytes((16 * i + 8 * lower) as u32)), [word]);
            }
        }
    }
}
