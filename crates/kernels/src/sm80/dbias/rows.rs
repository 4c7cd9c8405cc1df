//! From scores and dp of 16 queries to the gradients of scores.
use super::DbiasVals;
use super::walk::{At, Own};
use crate::config::Scores;
use crate::parts::args::{DropoutVals, ProblemVals};
use crate::parts::dropout::{DropSigns, Philox};
use crate::parts::hiding::{SeenKeys, first_column, hide_keys};
use crate::parts::overlays::OverlayOf;
use crate::parts::scores::{Place, RowsAre, ScoreStage, ScoreVals, score_gradient};
use crate::parts::softmax::THREAD_ROWS;
use crate::rows::head::QueryHeads;
use crate::rows::statistics::StatRows;
use signflash_ptx::{Acc, B32, F32, U32, Val, Warp};

/// What a warp knows of the scores of a tile.
pub(crate) struct GradientsOf<'a, 'k> {
    pub(crate) warp: Warp<'k>,
    pub(crate) problem: &'a ProblemVals<'k>,
    pub(crate) args: &'a DbiasVals<'k>,
    pub(crate) own: &'a Own<'k>,
    pub(crate) scores: ScoreVals<'k>,
    pub(crate) kinds: Scores,
    /// Queries and keys of a tile, the latter a multiple of 32.
    pub(crate) tile: [u32; 2],
    pub(crate) dropout: Option<(&'a DropoutVals<'k>, &'a Philox<'k>, &'a DropSigns<'k>)>,
}

impl<'k> GradientsOf<'_, 'k> {
    /// -lse in base 2, and delta divided by the keep scale, of the lane's two of 16 queries, from `first` of the tile on.
    pub(crate) fn stats(&self, at: &At<'k>, first: Val<'k, U32>) -> [[Val<'k, F32>; 2]; THREAD_ROWS] {
        let t = self.warp.threads();
        let rows = StatRows::of(QueryHeads::of(self.problem, at.sequence).nth(at.head));
        [0, 8].map(|lower| {
            let own = at.tile * self.tile[0] + first + (t.lane() >> 2) + lower;
            let [lse, delta] = rows.load(t, self.args.stats, own);
            [lse, delta * self.args.delta_scale]
        })
    }

    /// Products become probabilities, in place, whose signs say what is dropped.
    pub(crate) fn probabilities(
        &self,
        (at, first): (&At<'k>, Val<'k, U32>),
        s: &Acc<'k>,
        read: &dyn OverlayOf<'k>,
        negative_lse: [Val<'k, F32>; THREAD_ROWS],
    ) {
        let (warp, t) = (self.warp, self.warp.threads());
        let stage = ScoreStage::new(t, self.problem, self.scores, self.kinds);
        let place = || Place {
            rows_are: RowsAre::Queries,
            row: at.first_row + first + (t.lane() >> 2),
            column: self.own.first_key + first_column(t),
        };
        stage.of_head(t, at.sequence, || at.head).prepare(warp, s, place, Some(read));
        for block in 0..s.groups().div_ceil(4) {
            let flags = self.flags((at, first), block as u32);
            for (group, register) in (0..4).flat_map(|group| (0..4).map(move |r| (4 * block + group, r))) {
                let cell = s.at(group, register);
                let p = stage.weight(cell.get(), negative_lse[register / 2]);
                cell.set(flags.map_or(p, |flags| DropSigns::sign(p, flags[group % 4], register as u32)));
            }
        }
    }

    /// dp becomes the gradient of scores.
    pub(crate) fn gradients(
        &self,
        (at, first): (&At<'k>, Val<'k, U32>),
        p: &Acc<'k>,
        dp: &Acc<'k>,
        delta: [Val<'k, F32>; THREAD_ROWS],
    ) {
        for (group, register) in (0..dp.groups()).flat_map(|group| (0..4).map(move |r| (group, r))) {
            let p = p.at(group, register).get();
            score_gradient(&dp.at(group, register), p, delta[register / 2], self.dropout.is_some());
        }
        self.warp.when(at.is_edge, |warp| {
            let t = warp.threads();
            let row = at.first_row + first + (t.lane() >> 2);
            let seen = [0, 8].map(|lower| SeenKeys::of(&at.sight, row + lower));
            hide_keys(dp, &seen, self.own.first_key + first_column(t), 0.0);
        });
    }

    /// The flags of 16 queries and 32 keys, if anything is dropped.
    fn flags(&self, (at, first): (&At<'k>, Val<'k, U32>), block: u32) -> Option<[Val<'k, B32>; 4]> {
        let (args, philox, signs) = self.dropout?;
        let stream = philox.stream(self.warp.threads(), at.sequence, at.head);
        let row16 = args.first_row16 + ((at.first_row + first + self.problem.row_shift) >> 4u32);
        let column32 = args.first_column32 + self.own.key_tile * (self.tile[1] / 32) + block;
        Some(stream.block(row16, column32).map(|word| signs.dropped(word)))
    }
}
