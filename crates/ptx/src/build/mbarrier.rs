//! Hopper's barriers in shared memory, and the ring of stages between bulk copies and their readers. Stages, phases,
//! full and empty barriers live here and nowhere else.
mod consumer;

use super::memory::{GlobalAddr, SmemAddr};
use super::scope::{Cta, Thread, Warp};
use super::value::{Operand, Val, Var};
use crate::ops::bulk::BulkLoad;
use crate::ops::mbarrier::{MbarrierArrive, MbarrierInit, MbarrierInitFence, MbarrierWait};
use crate::types::{Src, U32, Width};
pub use consumer::{BulkRingConsumer, FullStage};

/// A barrier that counts arrivals and bytes. A phase ends when both have come; parities of phases alternate from 0.
#[derive(Clone, Copy, Debug)]
pub struct Mbarrier<'k> {
    at: SmemAddr<'k>,
}

impl<'k> Cta<'k> {
    /// `count` barriers that expect so many arrivals a phase. The block must [`sync`](Cta::sync) before anyone uses
    /// them.
    #[track_caller]
    pub fn mbarriers(self, name: &str, count: u32, arrivals: u32) -> Mbarrier<'k> {
        let at = self.smem(name, 8 * count, 8);
        let t = self.threads();
        t.when(t.index().eq(0), |_| {
            for i in 0..count {
                self.0.emit(MbarrierInit { barrier: at.at(8 * i).address(), arrivals });
            }
            self.0.emit(MbarrierInitFence);
        });
        Mbarrier { at }
    }

    /// `stages` pieces of shared memory, filled by one thread with bulk copies and read by `readers` warps.
    #[track_caller]
    pub fn bulk_ring(self, name: &str, stages: u32, stage_bytes: u32, readers: u32) -> BulkRing<'k> {
        self.bulk_rings(name, 1, [stages, stage_bytes], readers)
    }

    /// The same for readers of which some load for themselves what the copies bring, instead of leaving it to products:
    /// every lane arrives when it has read, as for [`stage_rings`](Self::stage_rings).
    #[track_caller]
    pub fn bulk_ring_for_lanes(
        self,
        name: &str,
        stages: u32,
        stage_bytes: u32,
        readers: u32,
    ) -> BulkRing<'k> {
        self.bulk_rings_for_lanes(name, 1, [stages, stage_bytes], readers)
    }

    /// `count` such rings of `[stages, stage_bytes]` each, to be told apart by [`BulkRing::nth`].
    #[track_caller]
    pub fn bulk_rings_for_lanes(self, name: &str, count: u32, sizes: [u32; 2], readers: u32) -> BulkRing<'k> {
        let by_lane = ByLane { writers: false, readers: true };
        self.rings(name, count, sizes, [1, 32 * readers], by_lane)
    }

    /// `count` such rings of `[stages, stage_bytes]` each, to be told apart by [`BulkRing::nth`].
    #[track_caller]
    pub fn bulk_rings(self, name: &str, count: u32, sizes: [u32; 2], readers: u32) -> BulkRing<'k> {
        self.rings(name, count, sizes, [1, readers], ByLane { writers: false, readers: false })
    }

    /// `stages` pieces of shared memory, filled by `writers` warps with ordinary stores and read by `readers` warps.
    #[track_caller]
    pub fn stage_ring(
        self,
        name: &str,
        stages: u32,
        stage_bytes: u32,
        writers: u32,
        readers: u32,
    ) -> BulkRing<'k> {
        self.stage_rings(name, 1, [stages, stage_bytes], writers, readers)
    }

    /// `count` such rings of `[stages, stage_bytes]` each, to be told apart by [`BulkRing::nth`].
    ///
    /// Every lane arrives for itself. (One for its warp, after a barrier of the warp, would do and is no faster, but
    /// compute-sanitizer does not see that the other lanes' stores come before it.)
    #[track_caller]
    pub fn stage_rings(
        self,
        name: &str,
        count: u32,
        sizes: [u32; 2],
        writers: u32,
        readers: u32,
    ) -> BulkRing<'k> {
        let by_lane = ByLane { writers: true, readers: true };
        self.rings(name, count, sizes, [32 * writers, 32 * readers], by_lane)
    }

    #[track_caller]
    fn rings(
        self,
        name: &str,
        count: u32,
        [stages, stage_bytes]: [u32; 2],
        [fulls, empties]: [u32; 2],
        by_lane: ByLane,
    ) -> BulkRing<'k> {
        assert!(stage_bytes.is_multiple_of(16), "a stage has whole pieces of 16 bytes");
        // A tile that products read starts where its pattern of banks does; less than one is none.
        let align = if stage_bytes < 1024 { 16 } else { 1024 };
        BulkRing {
            data: self.smem(name, count * stages * stage_bytes, align),
            full: self.mbarriers(&format!("{name}_full"), count * stages, fulls),
            empty: self.mbarriers(&format!("{name}_empty"), count * stages, empties),
            stages,
            stage_bytes,
            copied_bytes: stage_bytes,
            by_lane,
        }
    }
}

impl<'k> Mbarrier<'k> {
    /// Number `i` of several that were made together.
    #[track_caller]
    pub fn nth(self, i: Val<'k, U32>) -> Self {
        Mbarrier { at: self.at.plus(i * 8) }
    }

    /// Each active thread arrives.
    #[track_caller]
    pub fn arrive(self, t: Thread<'k>) {
        t.0.emit(MbarrierArrive { barrier: self.at.address(), bytes: 0 });
    }

    /// Each active thread arrives and announces bytes that copies will bring.
    #[track_caller]
    pub fn arrive_expecting(self, t: Thread<'k>, bytes: u32) {
        t.0.emit(MbarrierArrive { barrier: self.at.address(), bytes });
    }

    /// Waits until the phase of this parity is over.
    #[track_caller]
    pub fn wait(self, t: Thread<'k>, parity: impl Operand<'k, U32>) {
        let number = t.0.register(Width::Pred).index; // any number that is used once
        t.0.emit(MbarrierWait { barrier: self.at.address(), parity: parity.src(), flipped: false, number });
    }
}

/// Stages between bulk copies and readers: [`producer`](BulkRing::producer), [`consumer`](BulkRing::consumer).
#[derive(Clone, Copy, Debug)]
pub struct BulkRing<'k> {
    data: SmemAddr<'k>,
    full: Mbarrier<'k>,
    empty: Mbarrier<'k>,
    stages: u32,
    stage_bytes: u32,
    /// What bulk copies bring of a stage.
    copied_bytes: u32,
    by_lane: ByLane,
}

/// Whether every lane arrives, or one for its warp.
#[derive(Clone, Copy, Debug)]
struct ByLane {
    writers: bool,
    readers: bool,
}

/// A place in the ring: the stage, and the parity that flips whenever the stages have been gone through.
#[derive(Debug)]
struct Position<'k> {
    /// Of several.
    stage: Option<Var<'k, U32>>,
    parity: Var<'k, U32>,
    zero: Val<'k, U32>,
}

impl<'k> Position<'k> {
    #[track_caller]
    fn new(t: Thread<'k>, parity: u32, stages: u32) -> Self {
        let number = |x: u32| Val::new(t.0, Src::Imm(x.into()));
        let stage = (stages > 1).then(|| number(0).var());
        Position { stage, parity: number(parity).var(), zero: number(0) }
    }

    #[track_caller]
    fn stage(&self) -> Val<'k, U32> {
        self.stage.as_ref().map_or(self.zero, Var::get)
    }

    #[track_caller]
    fn advance(&self, stages: u32) {
        let Some(stage) = &self.stage else {
            self.parity.set(self.parity.get() ^ 1u32);
            return;
        };
        let next = stage.get() + 1;
        let wrap = next.eq(stages);
        self.parity.set(self.parity.get() ^ wrap.select(1u32, 0u32));
        stage.set(wrap.select(0u32, next));
    }
}

impl<'k> BulkRing<'k> {
    /// Number `i` of several that were made together.
    #[track_caller]
    pub fn nth(self, i: Val<'k, U32>) -> Self {
        let first = i * self.stages;
        let data = self.data.plus(first * self.stage_bytes);
        BulkRing { data, full: self.full.nth(first), empty: self.empty.nth(first), ..self }
    }

    /// The same, with stages of which bulk copies bring only so many bytes.
    pub fn with_copies_of(self, bytes: u32) -> Self {
        assert!(bytes <= self.stage_bytes, "{bytes} bytes for stages of {}", self.stage_bytes);
        BulkRing { copied_bytes: bytes, ..self }
    }

    /// Where the first stage is.
    pub fn data(self) -> SmemAddr<'k> {
        self.data
    }

    /// For the one thread that fills.
    #[track_caller]
    pub fn producer(self, t: Thread<'k>) -> BulkRingProducer<'k> {
        // A fresh barrier has "just finished" parity 1: the first round of stages is empty.
        BulkRingProducer { ring: self, position: Position::new(t, 1, self.stages) }
    }

    /// For each warp that reads.
    #[track_caller]
    pub fn consumer(self, warp: Warp<'k>) -> BulkRingConsumer<'k> {
        BulkRingConsumer { ring: self, position: Position::new(warp.threads(), 0, self.stages) }
    }
}

/// Fills stages in turn.
#[derive(Debug)]
pub struct BulkRingProducer<'k> {
    ring: BulkRing<'k>,
    position: Position<'k>,
}

impl<'k> BulkRingProducer<'k> {
    /// Waits until the next stage is empty and starts to fill it from one contiguous piece of memory, 16-byte aligned.
    #[track_caller]
    pub fn fill(&mut self, t: Thread<'k>, from: GlobalAddr<'k>) {
        let bytes = self.ring.copied_bytes;
        self.fill_by(t, |filling| filling.load_bytes(t, 0, from, bytes));
    }

    /// Waits until the next stage is empty and starts the copies that `copy` asks for, which together bring as many
    /// bytes as a stage has, or as [`BulkRing::with_copies_of`] says.
    #[track_caller]
    pub fn fill_by(&mut self, t: Thread<'k>, copy: impl FnOnce(Filling<'k>)) {
        let filling = self.begin(t);
        filling.full.arrive_expecting(t, self.ring.copied_bytes);
        copy(filling);
        self.position.advance(self.ring.stages);
    }

    /// The same by a warp that has more to do: all lanes wait, and lane 0 copies.
    #[track_caller]
    pub fn fill_by_warp(&mut self, warp: Warp<'k>, copy: impl FnOnce(Thread<'k>, Filling<'k>)) {
        let t = warp.threads();
        let filling = self.begin(t);
        t.when(t.lane().eq(0), |t| {
            filling.full.arrive_expecting(t, self.ring.copied_bytes);
            copy(t, filling);
        });
        warp.sync();
        self.position.advance(self.ring.stages);
    }

    /// Waits until the next stage of each ring is empty and fills them with the stores of `write`, which is given their
    /// addresses. The warp is one of the writers of each.
    #[track_caller]
    pub fn fill_with_stores(rings: &mut [&mut Self], warp: Warp<'k>, write: impl FnOnce(&[SmemAddr<'k>])) {
        let t = warp.threads();
        let fillings: Vec<Filling<'k>> = rings.iter().map(|ring| ring.begin(t)).collect();
        let stages: Vec<SmemAddr<'k>> = fillings.iter().map(|filling| filling.at).collect();
        assert!(rings.iter().all(|ring| ring.ring.by_lane.writers), "a ring that is filled by bulk copies");
        write(&stages);
        fillings.iter().for_each(|filling| filling.full.arrive(t));
        rings.iter().for_each(|ring| ring.position.advance(ring.ring.stages));
    }

    #[track_caller]
    fn begin(&self, t: Thread<'k>) -> Filling<'k> {
        let (ring, stage) = (self.ring, self.position.stage());
        ring.empty.nth(stage).wait(t, self.position.parity.get());
        Filling { at: ring.data.plus(stage * ring.stage_bytes), full: ring.full.nth(stage) }
    }
}

/// A stage that is being filled.
#[derive(Clone, Copy, Debug)]
pub struct Filling<'k> {
    at: SmemAddr<'k>,
    full: Mbarrier<'k>,
}

impl<'k> Filling<'k> {
    /// Where the data goes.
    pub fn address(&self) -> SmemAddr<'k> {
        self.at
    }

    /// Brings contiguous bytes, a multiple of 16 as their place, to so many bytes behind the stage's start.
    #[track_caller]
    pub fn load_bytes(&self, t: Thread<'k>, offset: u32, from: GlobalAddr<'k>, bytes: u32) {
        let (to, barrier) = (self.at.at(offset).address(), self.barrier());
        t.0.emit(BulkLoad { to, from: from.address(), bytes, barrier });
    }

    pub(super) fn barrier(&self) -> crate::ops::memory::Address {
        self.full.at.address()
    }
}
