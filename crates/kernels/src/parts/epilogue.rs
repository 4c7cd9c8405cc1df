//! From accumulators to global memory.
use super::copy::{TileCopy, TileRows};
use super::product::{FragmentA, pack};
use signflash_ptx::{Acc, B32, Half, SmemAddr, TileLayout, U32, Val, Warp};

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
    let words: Vec<_> = acc.iter().map(|acc| pack(acc, half, false)).collect();
    stage_packed(warp, &words, staging, layout, warp.threads().u32(0));
    warp.sync();
    copy.store(staging, target, 16 * acc.len() as u32);
}

/// Writes packed accumulators as rows of a tile, from a group of 8 columns on.
#[track_caller]
pub(crate) fn stage_packed<'k>(
    warp: Warp<'k>,
    words: &[Vec<FragmentA<'k>>],
    tile: SmemAddr<'k>,
    layout: TileLayout,
    first_group: Val<'k, U32>,
) {
    let t = warp.threads();
    let (row, pair) = (t.lane() >> 2, t.lane() & 3);
    for (k16, right) in (0..words[0].len()).flat_map(|k16| [(k16, 0), (k16, 1)]) {
        // The permutation is the same for rows g, g + 8 and the next 16.
        let group = first_group + (2 * k16 + right) as u32;
        let own = tile.plus(layout.chunk(row, group.cast::<B32>()) + pair * 4);
        for (i, words) in words.iter().enumerate() {
            for lower in 0..2 {
                t.store(own.at(layout.bytes((16 * i + 8 * lower) as u32)), [words[k16][2 * right + lower]]);
            }
        }
    }
}
