//! Weights that are made of products at once, without a number t in between.
//!
//! What becomes of a score is a few more instructions each, and where a softmax is what a step waits for they count one by one.
//! A forward weighs a product x directly, by exp2(...) of
//!
//! | scores | exponent | instead of |
//! |---|---|---|
//! | with a softcap | x * cubic(x^2 - bound) + shift, cap and scale being part of the coefficients | tanh(x), t * factor + shift |
//! | with ALiBi | x * scale + (slope * column + row's) | x * scale + (slope * distance), t * factor + shift |
//! | with a bias | x * scale + (bias * log2 e + shift) | x * scale + bias, t * factor + shift |
//!
//! Where that does not do, numbers t are [made in place](HeadScores::prepare) as ever, before: of tiles with keys on both sides of
//! the diagonal, of those with hidden keys under a softcap, and of scores near their cap. Or after, if a step is done again.
use super::alibi::AlibiAt;
use super::softcap::Near;
use super::{HeadScores, Place, column};
use crate::config::{Product, Scores};
use crate::parts::overlays::OverlayOf;
use signflash_ptx::{Acc, B32, F32, Pred, S32, Thread, U32, Val, Var, Warp};
use std::cell::Cell;
use std::f32::consts::LOG2_E;

/// Which of them a kernel has, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folding {
    Softcap,
    Alibi,
    Bias,
}

impl Folding {
    /// Of such scores. A mask that is read hides by t, and what is capped before something is added is not linear in it.
    pub(crate) fn of(scores: &Scores) -> Option<Self> {
        let capped = scores.kind.product == Product::Capped;
        match (capped, scores.kind.alibi, scores.overlays.bias, scores.overlays.mask_read()) {
            (_, _, _, Some(_)) | (true, true, _, _) | (true, _, Some(_), _) | (_, true, Some(_), _) => None,
            (true, false, None, None) => Some(Folding::Softcap),
            (false, true, None, None) => Some(Folding::Alibi),
            (false, false, Some(_), None) => Some(Folding::Bias),
            (false, false, None, None) => None,
        }
    }
}

/// Whether scores of a tile of queries have come near their cap, if they have one, so that further ones are expected to.
#[derive(Debug)]
pub(crate) struct Caution<'k>(Option<Var<'k, U32>>);

impl<'k> Caution<'k> {
    pub(crate) fn new(t: Thread<'k>, scores: &Scores) -> Self {
        let capped = Folding::of(scores) == Some(Folding::Softcap);
        Caution(capped.then(|| t.u32(0).var()))
    }

    /// Another tile begins.
    pub(crate) fn reset(&self) {
        self.0.iter().for_each(|near_cap| near_cap.set(0));
    }

    fn var(&self) -> &Var<'k, U32> {
        self.0.as_ref().expect("a softcap")
    }
}

/// How a step's numbers become weights.
pub(crate) struct StepWeights<'a, 'k> {
    t: Thread<'k>,
    how: How<'a, 'k>,
    /// Whether they are t already, as a warp says as one; known if nothing folds.
    at_once: Option<Val<'k, Pred>>,
    /// Signs that all numbers so far had in common.
    signs: Cell<Option<Val<'k, B32>>>,
}

enum How<'a, 'k> {
    /// Of t.
    Factor(Val<'k, F32>),
    Softcap(Near<'k>, &'a Caution<'k>),
    Alibi {
        scale: Val<'k, F32>,
        slope: Val<'k, F32>,
        rows: [Val<'k, F32>; 2],
    },
    Bias {
        scale: Val<'k, F32>,
        overlays: &'a dyn OverlayOf<'k>,
    },
}

impl<'a, 'k> StepWeights<'a, 'k> {
    /// Of numbers t.
    pub(crate) fn of_t(t: Thread<'k>, factor: Val<'k, F32>) -> Self {
        StepWeights { t, how: How::Factor(factor), at_once: None, signs: Cell::new(None) }
    }

    /// What the numbers of a thread's rows are shifted by, given what their exponents are.
    pub(crate) fn shifts(&self, shift: [Val<'k, F32>; 2]) -> [Val<'k, F32>; 2] {
        match &self.how {
            How::Alibi { rows, .. } => [0, 1].map(|row| shift[row] + rows[row]),
            _ => shift,
        }
    }

    /// The weight of a number of an accumulator, shifted so.
    pub(crate) fn of(&self, at: [usize; 2], x: Val<'k, F32>, shift: Val<'k, F32>) -> Val<'k, F32> {
        let [group, register] = at;
        let exponent = match &self.how {
            How::Factor(factor) => x.mul_add(*factor, shift),
            How::Softcap(near, _) => {
                let (rate, sign) = near.rate(x);
                self.signs.set(Some(self.signs.get().map_or(sign, |signs| signs & sign)));
                x.mul_add(rate, shift)
            }
            How::Alibi { scale, slope, .. } => x.mul_add(*scale, slope.mul_add(column(at), shift)),
            How::Bias { scale, overlays } => {
                let number = overlays.of(group)[register].number.expect("a bias");
                x.mul_add(*scale, number.mul_add(LOG2_E, shift))
            }
        };
        exponent.ex2()
    }

    /// Whether some of those weighed were not what this is good for, if that can be.
    pub(crate) fn failed(&self) -> Option<Val<'k, Pred>> {
        let signs = self.signs.get()?.cast::<S32>();
        Some(!signs.lt(self.t.u32(0).cast::<S32>()))
    }

    /// Numbers become t where they are not yet, by `prepare`, since a step is done again.
    pub(crate) fn settle(&self, warp: Warp<'k>, s: &Acc<'k>, prepare: impl FnOnce(Warp<'k>)) {
        match (&self.how, self.at_once) {
            (How::Factor(_), _) => (),
            (How::Softcap(..), Some(at_once)) => warp.when_else(at_once, |_| Near::unmark_hidden(s), prepare),
            (_, Some(at_once)) => warp.when(!at_once, prepare),
            (_, None) => prepare(warp),
        }
    }

    /// Further steps had better be prepared at once, if this has failed.
    pub(crate) fn learn(&self, failed: Val<'k, Pred>) {
        if let How::Softcap(_, caution) = &self.how {
            let near_cap = caution.var();
            near_cap.set(failed.select(self.t.u32(1), near_cap.get()));
        }
    }
}

impl<'k> HeadScores<'k> {
    /// How a step's products are weighed; they become t, in place, only if they have to. `is_edge`: whether some of them
    /// are hidden. Gives that, and what hides them.
    pub(crate) fn fold<'a>(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        place: impl FnOnce() -> Place<'k>,
        (folding, is_edge): (Folding, Val<'k, Pred>),
        overlays: Option<&'a dyn OverlayOf<'k>>,
        caution: &'a Caution<'k>,
    ) -> (StepWeights<'a, 'k>, Val<'k, F32>) {
        let (t, stage) = (warp.threads(), &self.stage);
        let minus = t.f32(f32::NEG_INFINITY);
        let scale = stage.scale * LOG2_E;
        // -inf once it is scaled.
        let hidden = || stage.scale.lt(0.0).select(t.f32(f32::INFINITY), minus);
        let (how, at_once, hidden) = match folding {
            Folding::Softcap => {
                let softcap = stage.kind.softcap.expect("a softcap");
                let at_once = is_edge | caution.var().get().ne(0);
                warp.when(at_once, |warp| stage.bend(warp, s));
                let near = softcap.near(warp, at_once);
                (How::Softcap(near, caution), Some(at_once), softcap.hidden)
            }
            Folding::Alibi => {
                let at = self.alibi.expect("slopes").at(place());
                let [is_behind, at_once] = at.sides(warp, s);
                warp.when(at_once, |_| at.add_to_each(s, stage.scale));
                let how = How::alibi(&at, (at_once, is_behind), scale);
                (how, Some(at_once), at_once.select(minus, hidden()))
            }
            Folding::Bias => {
                let overlays = overlays.expect("a bias");
                (How::Bias { scale, overlays }, None, hidden())
            }
        };
        (StepWeights { t, how, at_once, signs: Cell::new(None) }, hidden)
    }
}

impl<'k> How<'_, 'k> {
    fn alibi(
        at: &AlibiAt<'k>,
        (at_once, is_behind): (Val<'k, Pred>, Val<'k, Pred>),
        scale: Val<'k, F32>,
    ) -> Self {
        let slope = at.slope() * LOG2_E;
        let signed = is_behind.select(-slope, slope);
        let rows = at.rows().map(|first| at_once.select(0.0, first * signed));
        How::Alibi { scale: at_once.select(LOG2_E, scale), slope: at_once.select(0.0, -signed), rows }
    }
}
