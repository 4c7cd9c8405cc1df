//! Sums of dq in f32, between the pass over keys that adds them up and `convert_dq.rs`: they lie in the order of
//! accumulators, tile after tile of a head's queries, head after head.
use super::head::QueryHead;
use crate::config::DqSums;
use signflash_ptx::{Acc, F32, GlobalAddr, Thread, U32, U64, Val};

impl<'k> QueryHead<'k> {
    /// The number of its first tile of `rows` queries among those of all heads.
    #[track_caller]
    pub(crate) fn first_dq_tile(&self, rows: u32) -> Val<'k, U32> {
        self.first_tile(rows)
    }
}

/// The sums of one step of queries in global memory: for each tile of 16 rows and each group of 8 columns, the four
/// registers of 32 lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SumsTile<'k> {
    start: GlobalAddr<'k>,
    groups: u32,
    /// Registers of a lane are neighbours; else lanes are.
    wide: bool,
}

impl<'k> SumsTile<'k> {
    /// Of tile number `tile` of all (batch, head, step).
    #[track_caller]
    pub(crate) fn new(
        t: Thread<'k>,
        sums: Val<'k, U64>,
        tile: Val<'k, U32>,
        size: [u32; 2],
        sums_as: DqSums,
    ) -> Self {
        let ([step, head_dim], wide) = (size, sums_as == DqSums::Wide);
        let own = t.lane() * if wide { 16 } else { 4 };
        let start = tile.widen().mul_add(u64::from(4 * step * head_dim), sums) + own.widen();
        SumsTile { start: GlobalAddr::new(start), groups: head_dim / 8, wide }
    }

    /// What follows from this tile of 16 rows on.
    #[track_caller]
    pub(super) fn at_row_tile(self, row_tile: Val<'k, U32>, t: Thread<'k>) -> Self {
        SumsTile { start: self.place(row_tile, t.u32(0)), ..self }
    }

    fn at(&self, row_tile: u32, group: u32) -> GlobalAddr<'k> {
        self.start.at(512 * i64::from(row_tile * self.groups + group))
    }

    /// Adds four registers to those of other blocks.
    #[track_caller]
    pub(crate) fn add(&self, t: Thread<'k>, place: GlobalAddr<'k>, values: [Val<'k, F32>; 4]) {
        if self.wide {
            return t.add_floats(place, values);
        }
        for (i, value) in values.into_iter().enumerate() {
            t.add_floats(place.at(128 * i as i64), [value]);
        }
    }

    /// Where registers go whose row tile and group are chosen on the GPU.
    #[track_caller]
    pub(crate) fn place(&self, row_tile: Val<'k, U32>, group: Val<'k, U32>) -> GlobalAddr<'k> {
        self.start.plus(((row_tile * self.groups + group) * 512).widen())
    }

    #[track_caller]
    pub(super) fn read(&self, t: Thread<'k>, acc: &Acc<'k>) {
        for group in 0..self.groups {
            let at = self.at(0, group);
            let values = if self.wide {
                t.load_constant::<F32, 4>(at)
            } else {
                [0, 1, 2, 3].map(|i| t.load_constant::<F32, 1>(at.at(128 * i))[0])
            };
            values.into_iter().enumerate().for_each(|(i, value)| acc.at(group as usize, i).set(value));
        }
    }
}
