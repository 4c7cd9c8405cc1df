//! Whose products are started next (FlashAttention-3's ping-pong).
use crate::config::HopperForm;
use signflash_ptx::{U32, Val, Warpgroup};

/// Named barriers from this one on are turns, one for each warpgroup that multiplies.
const FIRST_TURN: u32 = 1;

/// Who comes to such a barrier: the warpgroup whose turn it is, and the one that has had its own.
const THREADS: u32 = 256;

/// Warpgroups start their products one after the other, so that one's softmax runs during another's products.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns<'k> {
    /// The barriers of this warpgroup and of the next, if there are turns.
    barriers: Option<(Val<'k, U32>, Val<'k, U32>)>,
}

impl<'k> Turns<'k> {
    /// For the warpgroup of this number.
    #[track_caller]
    pub(super) fn new(wg: Warpgroup<'k>, wg_number: Val<'k, U32>, form: &HopperForm) -> Self {
        if !form.turns {
            return Turns { barriers: None };
        }
        let last = wg_number.eq(form.warpgroups - 1);
        let next = last.select(0u32, wg_number + 1) + FIRST_TURN;
        wg.when(last, |wg| wg.arrive_among(next, THREADS)); // the first one begins
        Turns { barriers: Some((wg_number + FIRST_TURN, next)) }
    }

    /// Waits for one's turn.
    #[track_caller]
    pub(super) fn begin(&self, wg: Warpgroup<'k>) {
        if let Some((own, _)) = self.barriers {
            wg.sync_among(own, THREADS);
        }
    }

    /// Products are started: the next one's turn.
    #[track_caller]
    pub(super) fn end(&self, wg: Warpgroup<'k>) {
        if let Some((_, next)) = self.barriers {
            wg.arrive_among(next, THREADS);
        }
    }
}
