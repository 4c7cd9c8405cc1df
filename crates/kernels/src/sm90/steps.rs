//! The steps of keys that a tile of queries goes through, in the order of all roles of a block.
//!
//! A row that has seen nothing yet does each step twice (softmax.rs). Up to a diagonal, every row sees keys of the first
//! step. In a window the later rows of a tile see nothing of the first steps; but where the diagonal meets the corners of
//! tiles, as it does in causal windows of sequences of one length, all rows see keys of the last step. So windows are gone
//! through downwards.
use crate::parts::visibility::KeyTiles;
use signflash_core::Number;
use signflash_ptx::{Pred, S32, U32, Val};

/// Steps in their order. There is at least one, so that rows without keys need no way of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps<'k> {
    pub(super) first: Val<'k, U32>,
    pub(super) second: Val<'k, U32>,
    /// Behind the last one, or if they go downwards the last one.
    bound: Val<'k, U32>,
    downwards: bool,
}

impl<'k> Steps<'k> {
    /// Those of some tiles of keys.
    #[track_caller]
    pub(super) fn of(keys: &KeyTiles<'k>, downwards: bool) -> Self {
        let [begin, second] = [0, 1].map(|step| keys.begin.plus(keys.begin.constant(step)).unsigned());
        let end = keys.end.max(second);
        match downwards {
            false => Steps { first: begin, second, bound: end, downwards },
            true => Steps { first: end - 1, second: end - 2, bound: begin, downwards },
        }
    }

    /// The one that follows.
    #[track_caller]
    pub(super) fn after(&self, step: Val<'k, U32>) -> Val<'k, U32> {
        if self.downwards { step - 1 } else { step + 1 }
    }

    /// Whether what follows the first one, or another, is one of them.
    #[track_caller]
    pub(super) fn have(&self, step: Val<'k, U32>) -> Val<'k, Pred> {
        match self.downwards {
            false => step.lt(self.bound),
            // What follows step 0 is negative.
            true => self.bound.cast::<S32>().le(step.cast::<S32>()),
        }
    }
}
