//! From scores to their gradients, in a multiplying warpgroup's registers. Accumulators' rows are keys.
use super::multiply::Operand;
use super::{Block, FLAG_BYTES};
use crate::parts::cursor::Cursor;
use crate::parts::dropout::DropSigns;
use crate::parts::hiding::{SeeingColumns, first_column, hide, hide_packed};
use crate::parts::overlays::{BoxRead, ByKeys, OverlayVals, OwnPart, QueriesRead, box_bytes};
use crate::parts::scores::{HeadScores, Place, RowsAre, ScoreStage, Weights, doubled_score_gradient};
use crate::parts::softmax::THREAD_ROWS;
use crate::rows::statistics;
use crate::sm90::forward::WG_ROWS;
use signflash_ptx::{Acc, B32, F32, FullStage, SmemAddr, Thread, U32, Val, Warp};

/// For each 8 queries a number of each of the thread's two.
pub(super) struct OfQueries<'k> {
    t: Thread<'k>,
    from: SmemAddr<'k>,
    /// Those that have been read.
    read: Vec<[Val<'k, F32>; 2]>,
}

impl<'k> OfQueries<'k> {
    /// Of `groups` times 8 queries, read now if `early`, else when they are used.
    pub(super) fn new(t: Thread<'k>, from: SmemAddr<'k>, groups: usize, early: bool) -> Self {
        let mut own = OfQueries { t, from, read: vec![] };
        if early {
            own.read = (0..groups).map(|group| own.get(group)).collect();
        }
        own
    }

    fn get(&self, group: usize) -> [Val<'k, F32>; 2] {
        let late = || statistics::of_columns(self.t, self.from, group as u32);
        self.read.get(group).copied().unwrap_or_else(late)
    }
}

/// The first of a thread's two keys, of the warpgroup's 64.
#[track_caller]
fn own_key<'k>(t: Thread<'k>, first_key: Val<'k, U32>, wg_number: Val<'k, U32>) -> Val<'k, U32> {
    first_key + wg_number * WG_ROWS + (t.index() >> 5u32 & 3) * 16 + (t.lane() >> 2)
}

impl<'k> Block<'_, 'k> {
    /// What becomes of scores.
    pub(super) fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    /// What is added to the scores of a warp's 16 keys, of those that a warpgroup of this number works on, if anything
    /// is.
    pub(super) fn overlays_of(
        &self,
        warp: Warp<'k>,
        wg_number: impl FnOnce() -> Val<'k, U32>,
    ) -> Option<ByKeys<'k>> {
        let overlays = self.overlays.as_ref().filter(|overlays| overlays.reads())?;
        let first = self.first_key() + wg_number() * WG_ROWS + (warp.threads().index() >> 5u32 & 3) * 16;
        Some(ByKeys::new(warp, overlays, self.work.sequence, first))
    }

    /// Starts to read what is added to a step's scores, if anything is.
    pub(super) fn read(&self, overlays: Option<&ByKeys<'k>>, at: &Cursor<'k>) -> Option<QueriesRead<'k>> {
        overlays.map(|overlays| overlays.read(self.head(at), self.first_row(at), self.form.step))
    }

    /// What is added to the scores of a warp's 16 keys, of a step's boxes.
    pub(super) fn boxes(
        &self,
        warp: Warp<'k>,
        stage: &FullStage<'_, 'k>,
        wg_number: Val<'k, U32>,
    ) -> BoxRead<'k> {
        let kind = self.overlays.as_ref().and_then(OverlayVals::boxed).expect("what comes in boxes");
        let own = stage.address().plus(wg_number * box_bytes(self.form.step));
        BoxRead::new(warp, kind, own, OwnPart::Keys(warp.index() & 3))
    }

    /// Where the lane's flags of the warp's 16 keys and of a step of queries are.
    pub(super) fn own_flags(
        &self,
        warp: Warp<'k>,
        stage: &FullStage<'_, 'k>,
        wg_number: Val<'k, U32>,
    ) -> SmemAddr<'k> {
        let own = wg_number * 4 + (warp.index() & 3);
        stage.address().plus(own * (self.form.step / 8 * FLAG_BYTES) + warp.threads().lane() * 4)
    }

    /// What becomes of the scores of a step.
    pub(super) fn head_scores(&self, t: Thread<'k>, at: &Cursor<'k>) -> HeadScores<'k> {
        self.stage().of_head(t, self.work.sequence, || self.head(at))
    }

    /// Where a thread's part of the scores of a step and of 64 keys lies.
    pub(super) fn place(&self, t: Thread<'k>, wg_number: Val<'k, U32>, at: &Cursor<'k>) -> Place<'k> {
        Place {
            rows_are: RowsAre::Keys,
            row: own_key(t, self.first_key(), wg_number),
            column: self.first_row(at) + first_column(t),
        }
    }

    /// s becomes p, its sign saying what is dropped. If scores are bent it becomes what p is for their gradients, and p
    /// without what is dropped goes to `packed` at once, for which there are registers by then.
    pub(super) fn probabilities(
        &self,
        (s, weights): (&Acc<'k>, &Weights<'_, 'k>),
        lse: &OfQueries<'k>,
        flags: Option<SmemAddr<'k>>,
        packed: &Operand<'k>,
    ) {
        let (half, dropout) = (self.common.operands.half, self.common.scores.dropout);
        for (k16, packed) in packed.iter().enumerate() {
            let dropped = flags.map(|flags| {
                [0, 1].map(|h| {
                    let place = (h * (self.form.step / 16) + k16 as u32) * FLAG_BYTES;
                    let [word] = lse.t.load::<B32, 1>(flags.at(place));
                    word
                })
            });
            let mut probabilities = vec![];
            for (group, right) in [(2 * k16, 0), (2 * k16 + 1, 1)] {
                let (lse, weights) = (lse.get(group), weights.of_group(group));
                for (h, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let cell = s.at(group, 2 * h + x);
                    let prepared = cell.get();
                    let p = weights.of(2 * h + x, prepared, lse[x]);
                    let p = dropped.map_or(p, |words| DropSigns::sign(p, words[h], 2 * x as u32 + right));
                    cell.set(weights.bent(p, prepared));
                    probabilities.push(p);
                }
            }
            if weights.are_bent() {
                // Neighbours of a row: an operand's words are in the order of the accumulator.
                let pairs = packed.iter().zip(probabilities.chunks(2));
                pairs.for_each(|(word, pair)| word.set(pair[0].pack(pair[1], half, dropout)));
            }
        }
    }

    /// Zeroes what is hidden of a step, of 64 keys; also of what is packed already.
    pub(super) fn hide(
        &self,
        warp: Warp<'k>,
        wg_number: Val<'k, U32>,
        at: &Cursor<'k>,
        accs: &[&Acc<'k>],
        packed: Option<&Operand<'k>>,
    ) {
        let (sight, first_row, first_key) = (self.sight(), self.first_row(at), self.first_key());
        // Of all keys, or of the warpgroup's own.
        let (of, keys) = match self.form.persistent {
            false => (first_key, self.form.keys),
            true => (first_key + wg_number * WG_ROWS, WG_ROWS),
        };
        let hides = sight.hides_some_of([first_row, of], [self.form.step, keys]);
        warp.when(warp.any(hides), |warp| {
            let t = warp.threads();
            let own_key = own_key(t, first_key, wg_number);
            let seeing: [_; THREAD_ROWS] = std::array::from_fn(|lower| {
                SeeingColumns::of(&sight, own_key + 8 * lower as u32, first_row + first_column(t))
            });
            hide(accs, 0.0, |row, column| seeing[row].contains(column));
            if let Some(packed) = packed {
                hide_packed(packed, |row, column| seeing[row].contains(column));
            }
        });
        self.hide_unseen_keys(warp, wg_number, accs, packed);
    }

    /// The same of what a mask of keys says of the thread's two.
    fn hide_unseen_keys(
        &self,
        warp: Warp<'k>,
        wg_number: Val<'k, U32>,
        accs: &[&Acc<'k>],
        packed: Option<&Operand<'k>>,
    ) {
        let first_key = self.first_key();
        let is_asked = self.range.and_then(|range| range.is_to_be_asked(first_key));
        let mask = || self.overlays.as_ref()?.key_mask(warp.threads(), self.work.sequence);
        let Some((is_asked, mask)) = is_asked.and_then(|is_asked| Some((is_asked, mask()?))) else { return };
        warp.when(is_asked, |warp| {
            let t = warp.threads();
            let own_key = own_key(t, first_key, wg_number);
            let seen = [0, 8].map(|lower| mask.sees(t, own_key + lower));
            hide(accs, 0.0, |row, _| seen[row]);
            if let Some(packed) = packed {
                hide_packed(packed, |row, _| seen[row]);
            }
        });
    }

    /// dp becomes ds divided by [`ds_scale`](super::ds_scale). `p` gives that of 8 queries.
    pub(super) fn score_gradients(
        &self,
        p: impl Fn(usize) -> [Val<'k, F32>; 4],
        dp: &Acc<'k>,
        delta: &OfQueries<'k>,
    ) {
        for group in 0..dp.groups() {
            let (p, delta) = (p(group), delta.get(group));
            for (register, p) in p.into_iter().enumerate() {
                let x = register % 2;
                doubled_score_gradient(&dp.at(group, register), p, delta[x], self.common.scores.dropout);
            }
        }
    }
}
