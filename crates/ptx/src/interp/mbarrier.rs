//! Barriers in shared memory, and the bulk copies that complete on them.
use super::clock::Knowledge;
use super::fault::{At, Fault, Rule};
use super::warp::LANES;
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
    gathering: Knowledge,
    released: Knowledge,
    /// The copies that complete here count as accesses by this one, at these times.
    proxy: usize,
    copies: u32,
    init: Init,
}

/// Who initialised a barrier, when, and whether copies know of it.
#[derive(Clone, Copy, Debug)]
struct Init {
    warp: usize,
    lane: usize,
    time: u32,
    fenced: bool,
    at: &'static Location<'static>,
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

    /// A copy that began and did not land.
    pub(crate) fn left_behind(&self) -> Option<&BulkCopy> {
        self.copies.first()
    }

    /// What `warp` has initialised can be used by copies, for whoever learns of it.
    pub(crate) fn fence_init(&mut self, warp: usize) {
        let own = self.barriers.values_mut().filter(|barrier| barrier.init.warp == warp);
        own.for_each(|barrier| barrier.init.fenced = true);
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
        let (offset, bytes) = copy.barrier;
        let name = self.shared.name(offset as usize);
        let barrier = self.mbarriers.get(offset, &name).map_err(|fault| (copy.at, fault))?;
        // The barrier counts as one more warp: whoever waits for it learns of the copy's write, and nobody else.
        barrier.copies += 1;
        let (proxy, time) = (barrier.proxy, barrier.copies);
        barrier.gathering.clock.learn(proxy, time);
        barrier.bytes -= bytes;
        barrier.settle();
        self.shared.land(copy.flight, proxy, time, true);
        Ok(())
    }
}

impl Machine<'_> {
    fn mbarrier_offset(&self, address: u32) -> Result<u32, Fault> {
        Ok(self.block.shared.locate(address, 8, "mbarrier")? as u32)
    }

    pub(crate) fn mbarrier_init(&mut self, lane: usize, address: u32, arrivals: u32) -> Result<(), Fault> {
        let offset = self.mbarrier_offset(address)?;
        if arrivals == 0 {
            let name = self.block.shared.name(offset as usize);
            return Err(Fault::new(Rule::Barrier, format!("{name} is to expect no arrivals")));
        }
        let (warp, time, at) = (self.warp.index, self.warp.now(), self.at);
        let proxy = self.block.shared.warps() + self.block.mbarriers.barriers.len();
        let fresh = Mbarrier {
            expected: arrivals,
            pending: arrivals,
            bytes: 0,
            phase: 0,
            gathering: Knowledge::default(),
            released: Knowledge::default(),
            proxy,
            copies: 0,
            init: Init { warp, lane, time, fenced: false, at },
        };
        self.warp.touched[lane] = time;
        self.block.mbarriers.barriers.insert(offset, fresh);
        Ok(())
    }

    /// A barrier that the active lanes may use: everyone of them knows that it was initialised.
    fn mbarrier(&mut self, address: u32, mask: u32) -> Result<(&mut Mbarrier, String), Fault> {
        let offset = self.mbarrier_offset(address)?;
        let name = self.block.shared.name(offset as usize);
        let barrier = self.block.mbarriers.get(offset, &name)?;
        let Init { warp, lane, time, at, .. } = barrier.init;
        let knows = |user: usize| match warp == self.warp.index {
            true => user == lane || time <= self.warp.met,
            false => self.warp.knows(user, warp, time),
        };
        if (0..LANES).any(|user| mask >> user & 1 == 1 && !knows(user)) {
            let text =
                format!("{name} is used with no barrier after warp {warp} initialised it at {}", At(at));
            return Err(Fault::new(Rule::Race, text));
        }
        Ok((barrier, name))
    }

    /// The lanes of `mask` arrive. Each announces so many bytes; 0 is a plain arrival.
    pub(crate) fn mbarrier_arrive(&mut self, address: u32, mask: u32, bytes: i64) -> Result<(), Fault> {
        let (arrivals, published) = (mask.count_ones(), self.warp.published(mask));
        let (barrier, name) = self.mbarrier(address, mask)?;
        if barrier.pending < arrivals {
            let text = format!(
                "{name}: {arrivals} arrive, but its phase {} expects only {}",
                barrier.phase, barrier.pending
            );
            return Err(Fault::new(Rule::Barrier, text));
        }
        barrier.gathering.join(&published);
        barrier.pending -= arrivals;
        barrier.bytes += bytes * i64::from(arrivals);
        barrier.settle();
        self.warp.tick();
        Ok(())
    }

    /// A copy that this lane starts will complete on the barrier.
    pub(crate) fn mbarrier_expects(
        &mut self,
        lane: usize,
        address: u32,
        copy: BulkCopy,
    ) -> Result<(), Fault> {
        let (barrier, name) = self.mbarrier(address, 1 << lane)?;
        if !barrier.init.fenced {
            let text = format!("{name} counts a copy, but no fence.mbarrier_init follows its initialisation");
            return Err(Fault::new(Rule::MissingFence, text));
        }
        self.block.mbarriers.copies.push(copy);
        Ok(())
    }

    /// Whether the phase of this parity is over. If so the active lanes learn what those knew who completed it.
    pub(crate) fn mbarrier_passed(&mut self, address: u32, parity: u32) -> Result<bool, Fault> {
        let mask = self.warp.mask;
        let (barrier, _) = self.mbarrier(address, mask)?;
        if barrier.phase & 1 == u64::from(parity & 1) {
            return Ok(false);
        }
        let released = barrier.released.clone();
        self.warp.learn(&released);
        Ok(true)
    }

    /// The name of a barrier, for reports.
    pub(crate) fn mbarrier_name(&self, address: u32) -> String {
        self.block.shared.name(address.wrapping_sub(super::shared::SMEM_BASE) as usize)
    }
}
