//! What becomes of scores in a backward: weights, and gradients of scores.
use super::alibi::AlibiAt;
use super::softcap::NearGradients;
use crate::parts::overlays::{Overlay, OverlayOf};
use signflash_ptx::{F32, Val, Var};

/// How scores of an accumulator, prepared for gradients, become weights.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a, 'k> {
    pub(super) factor: Val<'k, F32>,
    /// Whether what they are made of is a tanh.
    pub(super) is_capped: bool,
    /// If it is a product yet, near enough to 0 for a softcap's weights and slopes to be made of it.
    pub(super) near: Option<NearGradients<'k>>,
    /// What is yet to be done to a tanh, if anything is.
    pub(super) later: Option<Later<'a, 'k>>,
}

/// What is added to a tanh, and hides it.
#[derive(Clone, Copy)]
pub(super) struct Later<'a, 'k> {
    /// What it is multiplied by before, if something is added.
    pub(super) scale: Option<Val<'k, F32>>,
    pub(super) alibi: Option<AlibiAt<'k>>,
    pub(super) overlays: Option<&'a dyn OverlayOf<'k>>,
}

/// The same of a group of eight columns.
pub(crate) struct GroupWeights<'a, 'k> {
    all: Weights<'a, 'k>,
    group: usize,
    overlays: Option<[Overlay<'k>; 4]>,
}

impl<'a, 'k> Weights<'a, 'k> {
    /// Of a group of eight columns.
    pub(crate) fn of_group(&self, group: usize) -> GroupWeights<'a, 'k> {
        let overlays = self.later.and_then(|later| later.overlays).map(|overlays| overlays.of(group));
        GroupWeights { all: *self, group, overlays }
    }

    /// Whether scores have slopes.
    pub(crate) fn are_bent(&self) -> bool {
        self.is_capped
    }
}

impl<'k> GroupWeights<'_, 'k> {
    /// The weight of one of the group's numbers.
    pub(crate) fn of(&self, register: usize, prepared: Val<'k, F32>, shift: Val<'k, F32>) -> Val<'k, F32> {
        let Weights { factor, later, near, .. } = self.all;
        if let Some(near) = near {
            return near.exponent(prepared, shift).ex2();
        }
        let overlay = self.overlays.map(|overlays| overlays[register]);
        let number = overlay.and_then(|overlay| overlay.number);
        let score = match (later.and_then(|later| later.scale), number) {
            (None, _) => prepared,
            (Some(scale), None) => prepared * scale,
            (Some(scale), Some(number)) => prepared.mul_add(scale, number),
        };
        let alibi = later.and_then(|later| later.alibi);
        let score = alibi.map_or(score, |alibi| alibi.plus([self.group, register], score));
        let weight = score.mul_add(factor, shift).ex2();
        overlay.map_or(weight, |overlay| overlay.seen.select::<F32>(weight, 0.0))
    }

    /// A probability, with its sign, times the slope of its score.
    pub(crate) fn bent(&self, p: Val<'k, F32>, prepared: Val<'k, F32>) -> Val<'k, F32> {
        match (self.all.near, self.all.is_capped) {
            (Some(near), _) => p * near.slope(prepared),
            (None, true) => p * prepared.mul_add(-prepared, 1.0),
            (None, false) => p,
        }
    }
}

/// The gradient of a probability, dp, becomes that of its score but for softmax_scale, in place. With dropout, the
/// sign of `p` says what is dropped. `p` is [bent](GroupWeights::bent).
pub(crate) fn score_gradient<'k>(dp: &Var<'k, F32>, p: Val<'k, F32>, delta: Val<'k, F32>, dropout: bool) {
    dp.set(match dropout {
        // The dropped p is negative: max(p, 0) is what dp counts for, |p| what delta counts for.
        true => p.max(0.0).mul_add(dp.get(), -(p.abs() * delta)),
        false => p * (dp.get() - delta),
    });
}

/// The same, with dropout twice as large, which takes an instruction less.
pub(crate) fn doubled_score_gradient<'k>(
    dp: &Var<'k, F32>,
    p: Val<'k, F32>,
    delta: Val<'k, F32>,
    dropout: bool,
) {
    dp.set(match dropout {
        // The dropped p is negative: p + |p| is what dp counts for, |p| what delta, doubled, counts for.
        true => (p + p.abs()).mul_add(dp.get(), -(p.abs() * delta)),
        false => p * (dp.get() - delta),
    });
}
