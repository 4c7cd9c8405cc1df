//! From accumulators to global memory.
use super::copy::{TileCopy, TileRows};
use super::product::{FragmentA, pack};
use crate::config::{Access, Operands, Stored};
use signflash_ptx::{Acc, B32, F32, GlobalAddr, Pred, SmemAddr, Thread, TileLayout, U32, Val, Warp};

/// Writes a warp's accumulators as rows of a tensor: rounded to 16 bits by way of `staging`, the warp's own
/// `16 * acc.len()` rows of a tile, which it has finished reading; or as they are, if results are wide. `copy` shares tiles
/// out among the warp's lanes.
#[track_caller]
pub(crate) fn store_rows<'k>(
    warp: Warp<'k>,
    acc: &[Acc<'k>],
    Operands { half, stored, .. }: Operands,
    staging: SmemAddr<'k>,
    copy: &TileCopy<'k>,
    target: TileRows<'k>,
) {
    if stored.is_wide() {
        let before = if stored == Stored::Added { Before::Added } else { Before::Nothing };
        acc.iter().zip(0..).for_each(|(acc, tile)| {
            let first = target.first + 16 * tile;
            store_wide(warp, acc, (copy.access, copy.first_col), TileRows { first, ..target }, before);
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

/// What becomes of what an f32 tensor holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Before<'k> {
    /// It is written over.
    Nothing,
    /// It is added to.
    Added,
    /// The same, by a factor for each of a thread's two rows.
    Weighed([Val<'k, F32>; 2]),
}

/// Groups of 8 columns whose numbers are read before any is written, to wait for them once.
const AT_ONCE: usize = 4;

/// Writes 16 rows of an f32 tensor as they are, from a column on. The four lanes that have a row's eight neighbouring columns
/// write whole sectors of 32 bytes.
#[track_caller]
pub(crate) fn store_wide<'k>(
    warp: Warp<'k>,
    acc: &Acc<'k>,
    (access, first_col): (Access, Val<'k, U32>),
    target: TileRows<'k>,
    before: Before<'k>,
) {
    let t = warp.threads();
    let own_col = first_col + ((t.lane() & 3) << 1u32);
    for lower in 0..2 {
        let row = target.first + (t.lane() >> 2) + 8 * lower as u32;
        let real = row.lt(target.seqlen);
        let start = target.rows.row(row).plus((own_col * 4).widen());
        t.when(real, |t| {
            let weight = match before {
                Before::Nothing => None,
                Before::Added => Some(t.f32(1.0)),
                Before::Weighed(weights) => Some(weights[lower]),
            };
            let groups: Vec<usize> = (0..acc.groups()).collect();
            for groups in groups.chunks(AT_ONCE) {
                let pairs: Vec<_> = groups
                    .iter()
                    .map(|&group| {
                        let place = Pair {
                            at: start.at(32 * group as i64),
                            column: 8 * group as u32,
                            first_col,
                            own_col,
                            head_dim: target.head_dim,
                        };
                        let new = [0, 1].map(|i| acc.at(group, 2 * lower + i).get());
                        (place, new, weight.map(|weight| (weight, place.load(t, access))))
                    })
                    .collect();
                for (place, new, old) in pairs {
                    let sum = match old {
                        None => new,
                        Some((weight, old)) => [0, 1].map(|i| old[i].mul_add(weight, new[i])),
                    };
                    place.store(t, access, sum);
                }
            }
        });
    }
}

/// Where two neighbouring numbers of a row lie.
#[derive(Clone, Copy)]
struct Pair<'k> {
    at: GlobalAddr<'k>,
    /// Of the eight columns that they are among, counted from the first that is written.
    column: u32,
    first_col: Val<'k, U32>,
    own_col: Val<'k, U32>,
    /// Columns of the tensor.
    head_dim: Val<'k, U32>,
}

impl<'k> Pair<'k> {
    /// Whether eight columns are in the tensor, where these are a multiple of 8.
    #[track_caller]
    fn is_real(&self) -> Val<'k, Pred> {
        (self.first_col + self.column).lt(self.head_dim)
    }

    /// Whether one of the two is, where they are not.
    #[track_caller]
    fn is_one_real(&self, i: u32) -> Val<'k, Pred> {
        (self.own_col + (self.column + i)).lt(self.head_dim)
    }

    /// What is there; 0 outside of the tensor.
    #[track_caller]
    fn load(&self, t: Thread<'k>, access: Access) -> [Val<'k, F32>; 2] {
        if access == Access::Whole {
            return t.load(self.at);
        }
        let found = [0, 1].map(|_| t.f32(0.0).var());
        match access {
            Access::Elements => {
                for (i, found) in (0..).zip(&found) {
                    t.when(self.is_one_real(i), |t| {
                        let [old] = t.load(self.at.at(4 * i64::from(i)));
                        found.set(old);
                    });
                }
            }
            _ => t.when(self.is_real(), |t| {
                let old: [_; 2] = t.load(self.at);
                found.iter().zip(old).for_each(|(found, old)| found.set(old));
            }),
        }
        found.map(|found| found.get())
    }

    #[track_caller]
    fn store(&self, t: Thread<'k>, access: Access, pair: [Val<'k, F32>; 2]) {
        match access {
            Access::Whole => t.store(self.at, pair),
            Access::Pieces => t.when(self.is_real(), |t| t.store(self.at, pair)),
            Access::Elements => {
                for (i, element) in (0..).zip(pair) {
                    t.when(self.is_one_real(i), |t| t.store(self.at.at(4 * i64::from(i)), [element]));
                }
            }
        }
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
