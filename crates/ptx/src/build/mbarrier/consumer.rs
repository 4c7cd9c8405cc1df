//! The reading side of a ring.
use super::{BulkRing, Position};
use crate::build::memory::SmemAddr;
use crate::build::scope::Warp;
use crate::build::value::Val;
use crate::types::U32;

/// Reads stages in turn.
#[derive(Debug)]
pub struct BulkRingConsumer<'k> {
    pub(super) ring: BulkRing<'k>,
    pub(super) position: Position<'k>,
}

impl<'k> BulkRingConsumer<'k> {
    /// Goes on to the stage after the next, which somebody else reads.
    #[track_caller]
    pub fn skip(&mut self) {
        self.position.advance(self.ring.stages);
    }

    /// Waits until the next stage is full. It borrows the ring: one stage is read at a time.
    #[track_caller]
    pub fn wait(&mut self, warp: Warp<'k>) -> FullStage<'_, 'k> {
        let stage = self.position.stage();
        self.ring.full.nth(stage).wait(warp.threads(), self.position.parity.get());
        FullStage {
            at: self.ring.data.plus(stage * self.ring.stage_bytes),
            stage,
            consumer: self,
            released: false,
        }
    }
}

/// A stage whose data is there. It must be released.
#[must_use = "a stage must be released"]
#[derive(Debug)]
pub struct FullStage<'r, 'k> {
    consumer: &'r mut BulkRingConsumer<'k>,
    stage: Val<'k, U32>,
    at: SmemAddr<'k>,
    released: bool,
}

impl<'k> FullStage<'_, 'k> {
    /// Where the data is.
    pub fn address(&self) -> SmemAddr<'k> {
        self.at
    }

    /// Waits once more for what is there already. It costs a few instructions and waits for nothing, but ptxas moves no
    /// instruction across it: what is written before it is done before it.
    #[track_caller]
    pub fn hold_order(&self, warp: Warp<'k>) {
        let position = &self.consumer.position;
        self.consumer.ring.full.nth(self.stage).wait(warp.threads(), position.parity.get());
    }

    /// This warp has read all it wants.
    #[track_caller]
    pub fn release(self, warp: Warp<'k>) {
        // Every lane has read: here if one arrives for all, and for what one of them says later of the whole warp.
        warp.sync();
        self.release_products(warp);
    }

    /// The same where products alone have read, all of which this warp has waited for: no lane has to wait for another.
    #[track_caller]
    pub fn release_products(self, warp: Warp<'k>) {
        self.let_go(warp);
        self.go_on();
    }

    /// The first half of [`release_products`](Self::release_products): once, in one of several branches.
    #[track_caller]
    pub fn let_go(&self, warp: Warp<'k>) {
        let (t, empty) = (warp.threads(), self.consumer.ring.empty.nth(self.stage));
        match self.consumer.ring.by_lane.readers {
            true => empty.arrive(t),
            false => t.when(t.lane().eq(0), |t| empty.arrive(t)),
        }
    }

    /// The other half, behind the branches.
    #[track_caller]
    pub fn go_on(mut self) {
        self.released = true;
        self.consumer.position.advance(self.consumer.ring.stages);
    }
}

impl Drop for FullStage<'_, '_> {
    fn drop(&mut self) {
        if !self.released && !std::thread::panicking() {
            panic!("a stage was waited for and never released");
        }
    }
}
