//! From accumulators to global memory.
use super::copy::{TileCopy, TileRows};
use super::product::{FragmentA, pack};
use crate::config::{Access, Operands};
use signflash_ptx::{Acc, B32, SmemAddr, TileLayout, U32, Val, Warp};

/// Writes a warp's accumulators as rows of a tensor: rounded to 16 bits by way of `staging`, the warp's own
/// `16 * acc.len()` rows of a tile, which it has finished reading; or as they are, if results are wide. `copy` shares tiles
/// out among the warp's lanes.
#[track_caller]
pub(crate) fn store_rows<'k>(
    warp: Warp<'k>,
    acc: &[Acc<'k>],
    Operands { half, wide, .. }: Operands,
    staging: SmemAddr<'k>,
    copy: &TileCopy<'k>,
    target: TileRows<'k>,
) {
    if wide {
        acc.iter().zip(0..).for_each(|(acc, tile)| {
            let first = target.first + 16 * tile;
            store_wide(warp, acc, copy.access, copy.first_col, TileRows { first, ..target });
        });
        return;
    }
    let layout = TileLayout::new(8 * acc[0].groups() as u32);
    warp.sync();
    let words: Vec<_> = acc.iter().map(|acc| pack(acc, half, false)).collect();
    stage_packed(warp, &words, staging, layout, warp.threads().u32(0));
    warp.sync();
    copy.store(staging, target, 16 * acc.len() as u32);
}

/// Writes 16 rows of an f32 tensor as they are, from a column on. The four lanes that have a row's eight neighbouring columns
/// write whole sectors of 32 bytes.
#[track_caller]
pub(crate) fn store_wide<'k>(
    warp: Warp<'k>,
    acc: &Acc<'k>,
    access: Access,
    first_col: Val<'k, U32>,
    target: TileRows<'k>,
) {
    let t = warp.threads();
    let own_col = first_col + ((t.lane() & 3) << 1u32);
    for lower in 0..2 {
        let row = target.first + (t.lane() >> 2) + 8 * lower as u32;
        let real = row.lt(target.seqlen);
        let start = target.rows.row(row).plus((own_col * 4).widen());
        t.when(real, |t| {
            for group in 0..acc.groups() {
                let to = start.at(32 * group as i64);
                let pair = [0, 1].map(|i| acc.at(group, 2 * lower + i).get());
                let col = 8 * group as u32;
                match access {
                    Access::Whole => t.store(to, pair),
                    // So many columns are a multiple of 8.
                    Access::Pieces => {
                        t.when((first_col + col).lt(target.head_dim), |t| t.store(to, pair));
                    }
                    Access::Elements => {
                        for (i, element) in (0..).zip(pair) {
                            let real = (own_col + (col + i)).lt(target.head_dim);
                            t.when(real, |t| t.store(to.at(4 * i64::from(i)), [element]));
                        }
                    }
                }
            }
        });
    }
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
