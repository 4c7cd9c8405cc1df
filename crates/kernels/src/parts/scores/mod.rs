//! What becomes of a score.
//!
//! A product q k becomes, in place, a number t ([`HeadScores::prepare`]), so that its weight is always
//!
//! ```text
//! exp2(t * factor + shift)
//! ```
//! where shift is minus the running maximum in a forward and minus lse in a backward, both in base 2. What t and the
//! factor are is said here and nowhere else; the kernels of both orientations, whose rows are queries or keys, ask
//! here.
//!
//! | scores | t | factor | slope of the score |
//! |---|---|---|---|
//! | scaled | q k | softmax_scale in base 2 | 1 |
//! | scaled by a negative number | -q k | its magnitude in base 2 | 1 |
//! | with a softcap | tanh(q k softmax_scale / softcap) | softcap in base 2 | 1 - t^2 |
//! | with a bias, or ALiBi | one of these, scaled, and what is added to it | 1 in base 2 | that without it |
//!
//! Where a mask is 0 or a bias -inf, t is -inf, whatever the product.
//!
//! Slopes are of the score by q k, but for softmax_scale, which gradients are multiplied by at the end. That of a capped
//! score is known of its tanh alone. So where something is added to such, or hides them, a backward does it only while it
//! makes weights ([`HeadScores::prepare_for_gradients`]).
mod alibi;
mod folded;
mod gradients;
mod softcap;

pub(crate) use alibi::{AlibiArgs, AlibiVals};
pub(crate) use folded::{Caution, Folding, StepWeights};
pub(crate) use gradients::{Weights, doubled_score_gradient, score_gradient};
pub(crate) use softcap::{SoftcapArgs, SoftcapVals};

use super::args::ProblemVals;
use super::overlays::{Overlay, OverlayOf};
use super::sequence::Sequence;
use super::visibility::BandVals;
use crate::config::{Product, ScoreKind, Scores};
use alibi::Alibi;
use gradients::Later;
use signflash_ptx::{Acc, Arg, Cta, F32, S32, Thread, U32, Val, Var, Warp};
use std::f32::consts::LOG2_E;

/// What kernels are told of a kind of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct KindArgs {
    pub(crate) softcap: Option<SoftcapArgs>,
    pub(crate) alibi: Option<AlibiArgs>,
}

/// The same on the device.
#[derive(Clone, Copy, Debug)]
struct KindVals<'k> {
    softcap: Option<SoftcapVals<'k>>,
    alibi: Option<AlibiVals<'k>>,
}

impl KindArgs {
    pub(crate) fn push(self, args: &mut Vec<Arg>) {
        if let Some(softcap) = self.softcap {
            softcap.push(args);
        }
        if let Some(alibi) = self.alibi {
            alibi.push(args);
        }
    }
}

impl<'k> KindVals<'k> {
    /// Of a kernel that is built for this kind.
    fn declare(cta: Cta<'k>, kind: ScoreKind) -> Self {
        KindVals {
            softcap: (kind.product == Product::Capped).then(|| SoftcapVals::declare(cta)),
            alibi: kind.alibi.then(|| AlibiVals::declare(cta)),
        }
    }
}

/// What kernels that make scores know of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreVals<'k> {
    /// Which keys a query sees, unless it sees all.
    pub(crate) band: Option<BandVals<'k>>,
    kind: KindVals<'k>,
}

impl<'k> ScoreVals<'k> {
    /// Of a kernel that is built for such scores.
    pub(crate) fn declare(cta: Cta<'k>, scores: &Scores) -> Self {
        ScoreVals { band: BandVals::declare(cta, scores.band), kind: KindVals::declare(cta, scores.kind) }
    }
}

/// What becomes of scores in a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreStage<'k> {
    scores: Scores,
    kind: KindVals<'k>,
    /// What a product, or its tanh, is multiplied by before something is added.
    scale: Val<'k, F32>,
    /// What t is multiplied by in base 2.
    factor: Val<'k, F32>,
}

/// Of which operands an accumulator's rows are; its columns are of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowsAre {
    Queries,
    Keys,
}

/// Where a thread's part of an accumulator lies among the scores of a head: it has two rows, the second 8 behind the
/// first, and of every eight columns two neighbours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'k> {
    pub(crate) rows_are: RowsAre,
    /// The thread's first row; before the first of the sequence it has a negative number.
    pub(crate) row: Val<'k, U32>,
    /// Its first column, likewise.
    pub(crate) column: Val<'k, U32>,
}

/// What becomes of the scores of one query head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadScores<'k> {
    stage: ScoreStage<'k>,
    alibi: Option<Alibi<'k>>,
}

impl<'k> ScoreStage<'k> {
    /// Of a problem, of such scores.
    pub(crate) fn new(t: Thread<'k>, problem: &ProblemVals<'k>, vals: ScoreVals<'k>, scores: Scores) -> Self {
        let kind = vals.kind;
        let scale = kind.softcap.map_or(problem.scale, |softcap| softcap.cap);
        let factor = match (scores.adds(), kind.softcap) {
            (true, _) => t.f32(LOG2_E),
            (false, Some(softcap)) => softcap.cap,
            (false, None) => problem.scale_log2,
        };
        ScoreStage { scores, kind, scale, factor }
    }

    /// The key that query 0 of a sequence faces, if scores depend on how far keys are from there.
    pub(crate) fn facing(&self, sequence: Sequence<'k>) -> Option<Val<'k, S32>> {
        self.kind.alibi.map(|alibi| alibi.facing_of(sequence))
    }

    /// Of one query head, whose number is asked for only where heads differ.
    pub(crate) fn of_head(
        self,
        t: Thread<'k>,
        sequence: Sequence<'k>,
        head: impl Fn() -> Val<'k, U32>,
    ) -> HeadScores<'k> {
        let alibi = self.kind.alibi.map(|args| Alibi::of_head(t, args, sequence, head()));
        HeadScores { stage: self, alibi }
    }

    /// The weight of t.
    pub(crate) fn weight(&self, t: Val<'k, F32>, shift: Val<'k, F32>) -> Val<'k, F32> {
        t.mul_add(self.factor, shift).ex2()
    }

    /// What t is multiplied by, in base 2.
    pub(crate) fn factor(&self) -> Val<'k, F32> {
        self.factor
    }

    /// What is done to a product by itself.
    fn bend(&self, warp: Warp<'k>, s: &Acc<'k>) {
        match (self.scores.kind.product, &self.kind.softcap) {
            (Product::Negated, _) => cells(s).for_each(|(_, x)| x.set(-x.get())),
            (Product::Capped, Some(softcap)) => softcap.tanh(warp, s),
            _ => (),
        }
    }

    /// Adds a bias, and hides.
    fn lay_over(&self, x: Val<'k, F32>, Overlay { number, seen }: &Overlay<'k>) -> Val<'k, F32> {
        let t = number.map_or(x, |number| x.mul_add(self.scale, number));
        seen.select::<F32>(t, f32::NEG_INFINITY)
    }
}

impl<'k> HeadScores<'k> {
    /// Products become t, in place, with what was read to be added to them, if anything was. Where they lie is asked only
    /// if that matters.
    pub(crate) fn prepare(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        place: impl FnOnce() -> Place<'k>,
        overlays: Option<&dyn OverlayOf<'k>>,
    ) {
        let stage = &self.stage;
        stage.bend(warp, s);
        for (group, overlays) in overlays.into_iter().flat_map(|of| (0..s.groups()).map(|g| (g, of.of(g)))) {
            for (register, overlay) in overlays.iter().enumerate() {
                let x = s.at(group, register);
                x.set(stage.lay_over(x.get(), overlay));
            }
        }
        if let Some(alibi) = self.alibi {
            let is_scaled = stage.scores.overlays.bias.is_some();
            let scale = if is_scaled { warp.threads().f32(1.0) } else { stage.scale };
            alibi.at(place()).add_to(warp, s, scale);
        }
    }

    /// The same for a backward, which makes weights of the result by [`Weights`].
    pub(crate) fn prepare_for_gradients<'a>(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        place: impl FnOnce() -> Place<'k>,
        overlays: Option<&'a dyn OverlayOf<'k>>,
    ) -> Weights<'a, 'k> {
        let ScoreStage { scores, scale, factor, .. } = self.stage;
        let is_capped = scores.kind.product == Product::Capped;
        if !is_capped || (self.alibi.is_none() && overlays.is_none()) {
            self.prepare(warp, s, place, overlays);
            return Weights { factor, is_capped, near: None, later: None };
        }
        self.stage.bend(warp, s);
        let alibi = self.alibi.map(|alibi| alibi.at(place()));
        let scale = scores.adds().then_some(scale);
        Weights { factor, is_capped, near: None, later: Some(Later { scale, alibi, overlays }) }
    }

    /// The same, given to `then`, which is built twice under a softcap to which nothing is added: where all products are near
    /// enough to 0, weights and slopes are made of these.
    pub(crate) fn with_weights(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        (place, overlays): (impl FnOnce() -> Place<'k>, Option<&dyn OverlayOf<'k>>),
        then: impl Fn(&Weights<'_, 'k>),
    ) {
        let prepared = || then(&self.prepare_for_gradients(warp, s, place, overlays));
        let Some(softcap) = self.stage.kind.softcap.filter(|_| self.alibi.is_none() && overlays.is_none())
        else {
            return prepared();
        };
        let near = softcap.near_gradients(warp);
        let near = Weights { factor: self.stage.factor, is_capped: true, near: Some(near), later: None };
        warp.when_else(softcap.are_near(warp, s), |_| then(&near), |_| prepared());
    }
}

/// The numbers of a thread, each with its group of eight columns and its number among the four there.
fn cells<'a, 'k>(acc: &'a Acc<'k>) -> impl Iterator<Item = ([usize; 2], Var<'k, F32>)> + use<'a, 'k> {
    (0..acc.groups()).flat_map(|group| (0..4).map(move |r| (group, r))).map(|(g, r)| ([g, r], acc.at(g, r)))
}

/// The column of such a number, counted from the thread's first.
fn column([group, register]: [usize; 2]) -> f32 {
    (8 * group + register % 2) as f32
}
