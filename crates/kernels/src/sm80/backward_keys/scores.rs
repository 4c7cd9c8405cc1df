//! From scores to their gradients, in a warp's registers. Accumulators' rows are keys.
use super::{Keys, Own};
use crate::parts::args::DropoutVals;
use crate::parts::dropout::{DropSigns, Philox};
use crate::parts::hiding::{SeeingColumns, first_column, hide};
use crate::parts::overlays::{ByKeys, QueriesRead, dynamic};
use crate::parts::scores::{Place, RowsAre, Weights, score_gradient};
use crate::parts::softmax::THREAD_ROWS;
use crate::rows::statistics::{self, STAT_BYTES};
use signflash_ptx::{Acc, B32, SmemAddr, U32, Val, Warp};

/// What is drawn in every step.
pub(super) struct Dropout<'k> {
    pub(super) args: DropoutVals<'k>,
    philox: Philox<'k>,
    signs: DropSigns<'k>,
}

impl<'k> Dropout<'k> {
    pub(super) fn new(warp: Warp<'k>, args: DropoutVals<'k>) -> Self {
        Dropout { philox: Philox::new(warp, &args), signs: DropSigns::new(warp.threads(), &args), args }
    }
}

/// For each 16 queries: flags of keys g and g + 8 of a tile.
pub(super) type Flags<'k> = Vec<[Val<'k, B32>; 2]>;

impl<'k> Keys<'_, 'k> {
    /// What is added to the scores of 16 keys, if anything is.
    pub(super) fn overlays_of(&self, first_key: impl FnOnce() -> Val<'k, U32>) -> Option<ByKeys<'k>> {
        let overlays = self.overlays.as_ref()?;
        Some(ByKeys::new(self.cta.warps(), overlays, self.work.sequence, first_key()))
    }

    /// The first query of a warp's part of a step.
    fn first_query(&self, own: &Own<'_, 'k>, m: Val<'k, U32>) -> Val<'k, U32> {
        m * self.form.step - self.problem.row_shift + own.part * self.queries()
    }

    /// What is added to the scores of the warp's keys and its part of a step of a head's queries, if anything is.
    pub(super) fn read(
        &self,
        own: &Own<'_, 'k>,
        m: Val<'k, U32>,
        head: Val<'k, U32>,
    ) -> Vec<Option<QueriesRead<'k>>> {
        let read = |overlays: &ByKeys<'k>| overlays.read(head, self.first_query(own, m), self.queries());
        own.overlays.iter().map(|overlays| overlays.as_ref().map(read)).collect()
    }

    /// Products of these become what weights are made of.
    pub(super) fn weights<'a>(
        &self,
        own: &Own<'_, 'k>,
        m: Val<'k, U32>,
        head: Val<'k, U32>,
        (s, read): (&[Acc<'k>], &'a [Option<QueriesRead<'k>>]),
    ) -> Vec<Weights<'a, 'k>> {
        let (warp, t) = (self.cta.warps(), self.cta.threads());
        let scores = self.stage().of_head(t, self.work.sequence, || head);
        let prepare = |((i, s), read): ((u32, &Acc<'k>), &'a Option<QueriesRead<'k>>)| {
            let place = || Place {
                rows_are: RowsAre::Keys,
                row: own.first_key + own.row + (t.lane() >> 2) + 16 * i,
                column: self.first_query(own, m) + first_column(t),
            };
            scores.prepare_for_gradients(warp, s, place, dynamic(read))
        };
        (0..).zip(s).zip(read).map(prepare).collect()
    }

    /// s becomes p, its sign bit saying what is dropped; dp becomes ds.
    pub(super) fn probabilities(
        &self,
        own: &Own<'_, 'k>,
        (s, weights): (&[Acc<'k>], &[Weights<'_, 'k>]),
        dp: &[Acc<'k>],
        stats: SmemAddr<'k>,
        flags: Option<&[Flags<'k>]>,
    ) {
        let t = self.cta.threads();
        for group in 0..s[0].groups() {
            let first = stats.plus(own.part * (self.queries() * STAT_BYTES));
            let of = |first| statistics::of_columns(t, first, group as u32);
            let (negative_lse, delta) = (of(first), of(first.at(statistics::DELTA)));
            for (i, s) in s.iter().enumerate() {
                let weights = weights[i].of_group(group);
                for register in 0..4 {
                    let (h, x) = (register / 2, register % 2);
                    let cell = s.at(group, register);
                    let prepared = cell.get();
                    let p = weights.of(register, prepared, negative_lse[x]);
                    let p = match flags {
                        Some(flags) => DropSigns::sign(p, flags[i][group / 2][h], (2 * x + group % 2) as u32),
                        None => p,
                    };
                    cell.set(p);
                    let p = weights.bent(p, prepared);
                    score_gradient(&dp[i].at(group, register), p, delta[x], flags.is_some());
                }
            }
        }
    }

    /// The flags of this warp's keys and a step of queries.
    pub(super) fn draw(
        &self,
        dropout: &Dropout<'k>,
        own: &Own<'_, 'k>,
        m: Val<'k, U32>,
        head: Val<'k, U32>,
    ) -> Vec<Flags<'k>> {
        let (warp, t, form) = (self.cta.warps(), self.cta.threads(), self.form);
        let Dropout { args, philox, signs } = dropout;
        let philox = philox.stream(t, self.work.sequence, head);
        let rows16 = self.queries() / 16;
        let row16 = args.first_row16 + m * (form.step / 16) + own.part * rows16;
        let column32 = args.first_column32 + ((self.work.block * form.rows() + own.row) >> 5u32);
        let transposed = |words: [Val<'k, B32>; 2]| words.map(|word| signs.transposed(warp, word));
        if form.row_tiles.is_multiple_of(2) {
            // Two tiles of 16 keys are the two halves of a block of 32 columns.
            let mut flags: Vec<Flags<'k>> = vec![vec![]; form.row_tiles as usize];
            for (pair, r) in (0..form.row_tiles / 2).flat_map(|pair| (0..rows16).map(move |r| (pair, r))) {
                let [a, b, c, d] = philox.block(row16 + r, column32 + pair);
                flags[2 * pair as usize].push(transposed([a, b]));
                flags[2 * pair as usize + 1].push(transposed([c, d]));
            }
            return flags;
        }
        assert_eq!(form.row_tiles, 1, "one tile of 16 keys a warp, or pairs");
        let right = (own.row & 16).ne(0);
        let of_row = |r: u32| {
            let [a, b, c, d] = philox.block(row16 + r, column32);
            transposed([right.select(c, a), right.select(d, b)])
        };
        vec![(0..rows16).map(of_row).collect()]
    }

    /// Zeroes what is hidden of a step.
    pub(super) fn hide(&self, own: &Own<'_, 'k>, m: Val<'k, U32>, s: &[Acc<'k>], dp: &[Acc<'k>]) {
        let (sight, form) = (self.sight(), self.form);
        let first_row = m * form.step - self.problem.row_shift;
        let hides = sight.hides_some_of([first_row, own.first_key], [form.step, form.rows()]);
        self.cta.when(hides, |cta| {
            let t = cta.threads();
            let first = first_row + own.part * self.queries() + first_column(t);
            let own_key = own.first_key + own.row + (t.lane() >> 2);
            for (i, (s, dp)) in (0..).zip(s.iter().zip(dp)) {
                let seeing: [_; THREAD_ROWS] = std::array::from_fn(|lower| {
                    SeeingColumns::of(&sight, own_key + (16 * i + 8 * lower as u32), first)
                });
                hide(&[s, dp], 0.0, |row, column| seeing[row].contains(column));
            }
        });
    }
}
