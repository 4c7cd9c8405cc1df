//! Runs kernels on the CPU, and looks for what a GPU would do wrong in silence.
//!
//! A warp is 32 lanes in step. Which warp moves next is drawn from a seed, asynchronous copies land as late as they
//! may, registers and memory are poison until they are written, and vector clocks know which accesses no barrier
//! orders. Whatever breaks a [`Rule`] stops the run with a [`Trap`]: what it was by name, the Rust lines of both
//! parties, and the seed that shows it again.
//!
//! Limits, stated: single instructions are atomic, and memory is sequentially consistent between them, so that a
//! missing `.acquire` on a flag is not seen (a missing barrier is). Blocks run one after the other, in random order;
//! within a block, accesses to global memory are not ordered.

mod clock;
mod fault;
mod global;
pub(crate) mod mbarrier;
mod named;
mod products;
mod record;
pub(crate) mod shared;
pub(crate) mod warp;

use crate::instruction::Flow;
use crate::kernel::{Arg, Kernel};
use crate::types::{Reg, Src};
pub(crate) use fault::At;
pub use fault::{Fault, Rule, Trap};
pub use global::{Global, Pointer};
use mbarrier::Mbarriers;
use named::Named;
pub use shared::Region;
use shared::Shared;
use std::collections::BTreeMap;
use std::panic::Location;
pub use warp::Lanes;
use warp::{ALL, LANES, Warp};

/// How a kernel is run.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Blocks; they are numbered along x.
    pub grid: u32,
    /// One value for each of the kernel's parameters.
    pub args: &'a [Arg],
    /// Draws the order of warps and blocks.
    pub seed: u64,
}

/// What a run did, for those who count instructions.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Instructions, each counted once a warp.
    pub instructions: u64,
    /// For each Rust line that touches shared memory: accesses by warps, and how often the banks were visited for
    /// them. Twice as many visits as necessary means bank conflicts.
    pub shared: BTreeMap<(&'static str, u32), SharedUse>,
}

/// See [`Profile::shared`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedUse {
    /// Instructions, each counted once a warp.
    pub accesses: u64,
    /// Visits of the banks.
    pub wavefronts: u64,
    /// The least visits that could have served as many bytes.
    pub least: u64,
}

/// What the warps of a block share.
pub(crate) struct Block {
    pub(crate) index: u32,
    pub(crate) shared: Shared,
    pub(crate) mbarriers: Mbarriers,
    named: [Named; 16],
    /// Whether it has told other blocks something just now.
    pub(crate) has_told: bool,
}

/// What an instruction may look at and change: one warp and what it can reach.
pub struct Machine<'m> {
    pub(crate) warp: &'m mut Warp,
    pub(crate) block: &'m mut Block,
    pub(crate) global: &'m mut Global,
    /// How each instruction of the kernel has used shared memory.
    uses: &'m mut [SharedUse],
    pub(crate) launch: &'m Launch<'m>,
    pub(crate) at: &'static Location<'static>,
}

impl Machine<'_> {
    /// 32 bits for each lane.
    ///
    /// # Errors
    /// [`Rule::Uninitialised`], as for the others.
    pub fn read32(&self, src: Src) -> Result<Lanes<u32>, Fault> {
        self.warp.read32(src)
    }

    /// A float for each lane.
    pub(crate) fn read_f32(&self, src: Src) -> Result<Lanes<f32>, Fault> {
        Ok(self.warp.read32(src)?.map(f32::from_bits))
    }

    pub(crate) fn read64(&self, src: Src) -> Result<Lanes<u64>, Fault> {
        self.warp.read64(src)
    }

    pub(crate) fn read_pred(&self, src: Src) -> Result<Lanes<bool>, Fault> {
        self.warp.read_pred(src)
    }

    /// Writes the active lanes.
    pub fn write32(&mut self, reg: Reg, values: &Lanes<u32>) {
        self.warp.write32(reg, values);
    }

    pub(crate) fn write_f32(&mut self, reg: Reg, values: &Lanes<f32>) {
        self.warp.write32(reg, &values.map(f32::to_bits));
    }

    pub(crate) fn write64(&mut self, reg: Reg, values: &Lanes<u64>) {
        self.warp.write64(reg, values);
    }

    pub(crate) fn write_pred(&mut self, reg: Reg, values: &Lanes<bool>) {
        self.warp.write_pred(reg, values);
    }

    /// Refuses to go on unless all 32 lanes are here.
    pub(crate) fn whole_warp(&self, what: &str) -> Result<(), Fault> {
        if self.warp.mask == ALL {
            return Ok(());
        }
        let text = format!("{what} needs all 32 lanes, only {:#010x} are here", self.warp.mask);
        Err(Fault::new(Rule::Divergent, text))
    }

    /// One value that all active lanes share.
    pub(crate) fn uniform<T: PartialEq + Copy>(&self, values: &Lanes<T>, what: &str) -> Result<T, Fault> {
        let first = values[self.warp.mask.trailing_zeros() as usize];
        match self.warp.lanes().all(|lane| values[lane] == first) {
            true => Ok(first),
            false => Err(Fault::new(Rule::Divergent, format!("lanes disagree about {what}"))),
        }
    }

    /// Counts an access of the active lanes to shared memory.
    pub(crate) fn count_shared(&mut self, addresses: &Lanes<u32>, len: usize) {
        let lanes = self.warp.mask.count_ones() as usize;
        let least = (lanes * len).div_ceil(128) as u64;
        let visits = u64::from(shared::wavefronts(addresses, self.warp.mask, len));
        let line = &mut self.uses[self.warp.pc];
        line.accesses += 1;
        line.wavefronts += visits;
        line.least += least.min(visits);
    }

    pub(crate) fn load_shared(&mut self, lane: usize, address: u32, out: &mut [u8]) -> Result<(), Fault> {
        self.touch(lane);
        self.block.shared.load(self.warp, lane, address, out)
    }

    pub(crate) fn store_shared(&mut self, lane: usize, address: u32, bytes: &[u8]) -> Result<(), Fault> {
        self.touch(lane);
        self.block.shared.store(self.warp, lane, address, bytes, self.at)
    }

    fn touch(&mut self, lane: usize) {
        let now = self.warp.now();
        match self.warp.touched.get_mut(lane) {
            Some(touched) => *touched = now,
            None => self.warp.touched = [now; LANES],
        }
    }

    pub(crate) fn load_global(&mut self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.global.load(address, out, self.block.index)
    }

    pub(crate) fn store_global(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.global.store(address, bytes, self.block.index)
    }
}

/// A small generator for schedules (SplitMix64): the standard library has none.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Runs a kernel to its end.
pub(crate) fn run(kernel: &Kernel, launch: &Launch<'_>, global: &mut Global) -> Result<Profile, Box<Trap>> {
    let trap = |block, who: &str, at: String, fault| {
        let (kernel, who, seed) = (kernel.name().to_owned(), who.to_owned(), launch.seed);
        Box::new(Trap { kernel, block, who, at, fault, seed })
    };
    kernel.check_args(launch.args).map_err(|fault| trap(0, "the launch", "its call".into(), fault))?;
    global.new_launch();
    let mut random = Random::new(launch.seed);
    let mut profile = Profile::default();
    let mut uses = vec![SharedUse::default(); kernel.lines().len()];
    let mut order: Vec<u32> = (0..launch.grid).collect();
    for left in (1..order.len()).rev() {
        order.swap(left, random.below(left + 1));
    }
    // Blocks that wait for others, which may not have started.
    let mut started: Vec<(Block, Vec<Warp>)> = vec![];
    let mut ended: Vec<Vec<Warp>> = vec![];
    for index in order {
        let warps = kernel.block_threads() as usize / LANES;
        let block = Block {
            index,
            shared: Shared::new(kernel.smem_bytes(), warps, kernel.regions()),
            mbarriers: Mbarriers::default(),
            named: Default::default(),
            has_told: false,
        };
        let warps: Vec<Warp> = match ended.pop() {
            Some(before) => before.into_iter().map(|warp| warp.again(warps)).collect(),
            None => (0..warps).map(|i| Warp::new(i, warps, kernel.registers())).collect(),
        };
        started.push((block, warps));
        let mut schedule = Schedule {
            kernel,
            launch,
            global,
            uses: &mut uses,
            instructions: &mut profile.instructions,
            random: &mut random,
        };
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for (mut block, mut warps) in std::mem::take(&mut started) {
                let came = schedule.run_block(&mut block, &mut warps);
                let came = came.map_err(|stop| trap(block.index, &stop.who, stop.at, stop.fault))?;
                moved |= came != Ended::Stuck;
                match came {
                    Ended::Done => ended.push(warps),
                    _ => started.push((block, warps)),
                }
            }
        }
    }
    if let Some((block, warps)) = started.first() {
        let stop = deadlock(warps);
        return Err(trap(block.index, &stop.who, stop.at, stop.fault));
    }
    for (line, used) in kernel.lines().iter().zip(uses).filter(|(_, used)| used.accesses > 0) {
        let sum = profile.shared.entry((line.at.file(), line.at.line())).or_default();
        sum.accesses += used.accesses;
        sum.wavefronts += used.wavefronts;
        sum.least += used.least;
    }
    Ok(profile)
}

struct Stop {
    who: String,
    at: String,
    fault: Fault,
}

/// How far a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// It has moved, and now waits for another block, or has told others something.
    Waits,
    /// It still waits for another block.
    Stuck,
}

/// Who moves next.
struct Schedule<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch<'a>,
    global: &'a mut Global,
    uses: &'a mut [SharedUse],
    instructions: &'a mut u64,
    random: &'a mut Random,
}

impl Schedule<'_> {
    /// Warps take turns of random length. A parked warp tries again once anything else has moved. When none can and no
    /// asynchronous copy is left to land, it is a deadlock, unless one of them waits for another block.
    fn run_block(&mut self, block: &mut Block, warps: &mut [Warp]) -> Result<Ended, Stop> {
        let mut so_far = Ended::Stuck;
        warps.iter_mut().for_each(|warp| warp.parked = None);
        loop {
            let ready: Vec<usize> =
                (0..warps.len()).filter(|&w| !warps[w].done && warps[w].parked.is_none()).collect();
            let landing = block.mbarriers.copies_under_way();
            let done = warps.iter().all(|w| w.done);
            if let Some(copy) = block.mbarriers.left_behind().filter(|_| done) {
                let fault = Fault::new(Rule::Abandoned, "a bulk copy is in flight when its block ends");
                return Err(Stop { who: "a bulk copy".into(), at: At(copy.at).to_string(), fault });
            }
            if ready.is_empty() && landing == 0 {
                return match done {
                    true => Ok(Ended::Done),
                    false if warps.iter().any(|w| w.awaits_block) => Ok(so_far),
                    false => Err(deadlock(warps)),
                };
            }
            // A copy lands when nobody else can move, or, rarely, before.
            let moved = if landing > 0 && (ready.is_empty() || self.random.below(16) == 0) {
                let which = self.random.below(landing);
                let stop = |(at, fault)| Stop { who: "a bulk copy".into(), at: At(at).to_string(), fault };
                block.land_copy(which).map_err(stop)?;
                true
            } else {
                let who = ready[self.random.below(ready.len())];
                let turns = 1 + self.random.below(64);
                self.run_warp(block, &mut warps[who], turns)?
            };
            if moved {
                so_far = Ended::Waits;
                warps.iter_mut().for_each(|warp| warp.parked = None);
            }
            // Those who were told may go on before this block does.
            if std::mem::take(&mut block.has_told) && self.random.below(2) == 0 {
                return Ok(Ended::Waits);
            }
        }
    }

    /// Says whether it got anywhere.
    fn run_warp(&mut self, block: &mut Block, warp: &mut Warp, turns: usize) -> Result<bool, Stop> {
        for turn in 0..turns {
            if warp.done {
                break;
            }
            let Some(line) = self.kernel.lines().get(warp.pc) else {
                let index = warp.index;
                let stop = |at, fault| Stop { who: format!("warp {index}"), at, fault };
                warp.finish().map_err(|fault| stop("its end".into(), fault))?;
                let landed = warp.land_writes(self.global);
                landed.map_err(|(at, fault)| stop(At(at).to_string(), fault))?;
                break;
            };
            let mut machine = Machine {
                warp: &mut *warp,
                block: &mut *block,
                global: &mut *self.global,
                uses: &mut *self.uses,
                launch: self.launch,
                at: line.at,
            };
            let stepped = line.instruction.step(&mut machine);
            let flow = stepped.and_then(|flow| warp.check_clobbered().map(|()| flow)).map_err(|fault| {
                Stop { who: format!("warp {}", warp.index), at: At(line.at).to_string(), fault }
            })?;
            warp.awaits_block = matches!(flow, Flow::Await(_));
            match flow {
                Flow::Next => warp.pc += 1,
                Flow::Goto(label) => warp.pc = self.kernel.place(label),
                Flow::Exit => warp.pc = self.kernel.lines().len(),
                Flow::Park(why) | Flow::Await(why) => {
                    warp.parked = Some(format!("warp {} waits at {} for {why}", warp.index, At(line.at)));
                    // An arrival that leaves a barrier closed lets nobody else move.
                    return Ok(turn > 0);
                }
            }
            *self.instructions += 1;
        }
        Ok(true)
    }
}

fn deadlock(warps: &[Warp]) -> Stop {
    let parked: Vec<&str> = warps.iter().filter_map(|w| w.parked.as_deref()).collect();
    let fault = Fault::new(Rule::Deadlock, parked.join("; "));
    Stop { who: "all warps".into(), at: "the waits below".into(), fault }
}
