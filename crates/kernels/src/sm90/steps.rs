//! The steps of keys that a tile of queries goes through, in the order of all roles of a block.
//!
//! A row that has seen nothing yet does each step twice (softmax.rs). Up to a diagonal, every row sees keys of the first
//! step. In a window the later rows of a tile see nothing of the first steps; but where the diagonal meets the corners of
//! tiles, as it does in causal windows of sequences of one length, all rows see keys of the last step. So windows are gone
//! through downwards.
//!
//! With ALiBi scores fall with the distance from the diagonal, by more than 2^8 a step where slopes are large, and who comes
//! nearer with each step does each twice, too. So they are gone through downwards from the last one that is seen, or, where
//! all are, from the diagonal's: first downwards, then from the one behind it upwards.
use crate::parts::visibility::KeyTiles;
use signflash_core::Number;
use signflash_ptx::{Pred, S32, U32, Val};

/// Steps in their order. There is at least one, so that rows without keys need no way of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps<'k> {
    pub(super) first: Val<'k, U32>,
    pub(super) second: Val<'k, U32>,
    order: Order<'k>,
}

/// In which order.
#[derive(Clone, Copy, Debug)]
enum Order<'k> {
    /// Up to the one before this.
    Upwards(Val<'k, U32>),
    /// Down to this one.
    Downwards(Val<'k, U32>),
    /// From the second of these down to the first, then from there up to the one before the third.
    Outwards([Val<'k, U32>; 3]),
}

impl<'k> Steps<'k> {
    /// Those of some tiles of keys.
    #[track_caller]
    pub(super) fn of(keys: &KeyTiles<'k>, downwards: bool) -> Self {
        let [begin, second] = [0, 1].map(|step| keys.begin.plus(keys.begin.constant(step)).unsigned());
        let end = keys.end.max(second);
        match downwards {
            false => Steps { first: begin, second, order: Order::Upwards(end) },
            true => Steps { first: end - 1, second: end - 2, order: Order::Downwards(begin) },
        }
    }

    /// The same, those that are nearest to this one first.
    #[track_caller]
    pub(super) fn around(keys: &KeyTiles<'k>, nearest: Val<'k, S32>) -> Self {
        let begin = keys.begin.unsigned();
        let end = keys.end.max(begin + 1);
        let first = nearest.max(begin.cast::<S32>()).cast::<U32>().min(end - 1);
        let order = Order::Outwards([begin, first, end]);
        Steps { first, second: order.after(first), order }
    }

    /// The one that follows.
    #[track_caller]
    pub(super) fn after(&self, step: Val<'k, U32>) -> Val<'k, U32> {
        self.order.after(step)
    }

    /// Whether what follows the first one, or another, is one of them.
    #[track_caller]
    pub(super) fn have(&self, step: Val<'k, U32>) -> Val<'k, Pred> {
        match self.order {
            Order::Upwards(end) | Order::Outwards([_, _, end]) => step.lt(end),
            // What follows step 0 is negative.
            Order::Downwards(begin) => begin.cast::<S32>().le(step.cast::<S32>()),
        }
    }
}

impl<'k> Order<'k> {
    #[track_caller]
    fn after(&self, step: Val<'k, U32>) -> Val<'k, U32> {
        match *self {
            Order::Upwards(_) => step + 1,
            Order::Downwards(_) => step - 1,
            Order::Outwards([begin, first, _]) => {
                let before = step.le(first);
                let inner = step.eq(begin).select(first + 1, step - 1);
                before.select(inner, step + 1)
            }
        }
    }
}
