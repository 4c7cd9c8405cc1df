//! Barriers in shared memory, and the bulk copies that complete on them.
use super::clock::Clock;
use super::fault::{Fault, Rule};
use super::{Block, Machine};
use std::collections::BTreeMap;
use std::panic::Location;

/// One `mbarrier`: it changes phase when all expected arrivals and all expected bytes have come.
#[derive(Debug)]
struct Mbarrier {
    expected: u32,
    pending: u32,
    bytes: i64,
    phase: u64,
    gathering: (Clock, Clock),
    released: (Clock, Clock),
}

impl Mbarrier {
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.released = self.gathering.clone();
        }
    }
}

/// A bulk copy that has been issued and has not landed.
#[derive(Debug)]
pub(crate) struct BulkCopy {
    pub(crate) at: &'static Location<'static>,
    pub(crate) flight: u32,
    /// Offset of the barrier that counts its bytes, and how many.
    pub(crate) barrier: (u32, i64),
}

/// All barriers of a block by their offset in shared memory, and the copies under way.
#[derive(Debug, Default)]
pub(crate) struct Mbarriers {
    barriers: BTreeMap<u32, Mbarrier>,
    copies: Vec<BulkCopy>,
}

impl Mbarriers {
    pub(crate) fn copies_under_way(&self) -> usize {
        self.copies.len()
    }

    pub(crate) fn issue(&mut self, copy: BulkCopy) {
        self.copies.push(copy);
    }

    fn get(&mut self, offset: u32, name: &str) -> Result<&mut Mbarrier, Fault> {
        let missing =
            || Fault::new(Rule::Barrier, format!("the mbarrier {name} is used before mbarrier.init"));
        self.barriers.get_mut(&offset).ok_or_else(missing)
    }
}

impl Block {
    /// One copy's data is there, and its barrier knows.
    pub(crate) fn land_copy(&mut self, which: usize) -> Result<(), (&'static Location<'static>, Fault)> {
        let copy = self.mbarriers.copies.swap_remove(which);
        // The asynchronous proxy counts as one more warp: whoever waits for the barrier learns of its write.
        let (offset, bytes) = copy.barrier;
        let name = self.shared.name(offset as usize);
        self.proxy_time += 1;
        let (proxy, time) = (self.shared.proxy(), self.proxy_time);
        self.shared.land(copy.flight, proxy, time, u32::MAX, true);
        let barrier = self.mbarriers.get(offset, &name).map_err(|fault| (copy.at, fault))?;
        barrier.gathering.0.0[proxy] = time;
        barrier.bytes -= bytes;
        barrier.settle();
        Ok(())
    }
}

impl Machine<'_> {
    fn mbarrier_offset(&self, address: u32) -> Result<u32, Fault> {
        Ok(self.block.shared.locate(address, 8, "mbarrier")? as u32)
    }

    pub(crate) fn mbarrier_init(&mut self, address: u32, arrivals: u32) -> Result<(), Fault> {
        let offset = self.mbarrier_offset(address)?;
        let clocks = (Clock::new(self.warp.clock.0.len()), Clock::new(self.warp.clock.0.len()));
        let fresh = Mbarrier {
            expected: arrivals,
            pending: arrivals,
            bytes: 0,
            phase: 0,
            gathering: clocks.clone(),
            released: clocks,
        };
        self.block.mbarriers.barriers.insert(offset, fresh);
        Ok(())
    }

    /// `bytes` are expected on top of the arrivals; 0 is a plain arrival.
    pub(crate) fn mbarrier_arrive(&mut self, address: u32, arrivals: u32, bytes: i64) -> Result<(), Fault> {
        let offset = self.mbarrier_offset(address)?;
        let name = self.block.shared.name(offset as usize);
        let barrier = self.block.mbarriers.get(offset, &name)?;
        if barrier.pending < arrivals {
            let text = format!(
                "{name}: {arrivals} arrive, but its phase {} expects only {}",
                barrier.phase, barrier.pending
            );
            return Err(Fault::new(Rule::Barrier, text));
        }
        barrier.gathering.0.join(&self.warp.clock);
        barrier.gathering.1.join(&self.warp.fenced);
        barrier.pending -= arrivals;
        barrier.bytes += bytes;
        barrier.settle();
        self.warp.tick();
        Ok(())
    }

    /// Whether the phase of this parity is over. If so the warp learns what those knew who completed it.
    pub(crate) fn mbarrier_passed(&mut self, address: u32, parity: u32) -> Result<bool, Fault> {
        let offset = self.mbarrier_offset(address)?;
        let name = self.block.shared.name(offset as usize);
        let barrier = self.block.mbarriers.get(offset, &name)?;
        if barrier.phase & 1 == u64::from(parity & 1) {
            return Ok(false);
        }
        self.warp.clock.join(&barrier.released.0);
        self.warp.fenced.join(&barrier.released.1);
        self.warp.tick();
        Ok(true)
    }

    /// The name of a barrier, for reports.
    pub(crate) fn mbarrier_name(&self, address: u32) -> String {
        self.block.shared.name(address.wrapping_sub(super::shared::SMEM_BASE) as usize)
    }
}
