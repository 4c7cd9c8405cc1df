//! Ampere's asynchronous copies from global to shared memory.
//!
//! The interpreter reads the source at once and marks the destination: until the warp has waited for the group, any
//! access is [`InFlight`](crate::Rule::InFlight). After the wait the data counts as written by this warp, so that
//! other warps need a barrier.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::shared::NO_LANE;
use crate::interp::{Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::ops::memory::Address;
use crate::types::{Src, U32};

/// `cp.async.cg`, 16 bytes a lane past L1. `bytes` (0 or 16) are read, the rest is zeros.
#[derive(Debug)]
pub(crate) struct CopyAsync {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: Src,
}

impl Instruction for CopyAsync {
    fn print(&self, ptx: &mut Printer) {
        let (to, from, bytes) = (self.to.text(), self.from.text(), self.bytes.text::<U32>());
        ptx.line(format_args!("cp.async.cg.shared.global.L2::128B {to}, {from}, 16, {bytes}"));
    }

    fn needs(&self) -> crate::Needs {
        crate::Needs::ptx(7, 4) // L2::128B
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (to, from) = (self.to.read_shared(machine)?, self.from.read_global(machine)?);
        let sizes = machine.read32(self.bytes)?;
        machine.count_shared(&to, 16);
        let flight = machine.block.shared.depart(true, NO_LANE, machine.at);
        for lane in machine.warp.lanes() {
            let mut bytes = vec![0; 16];
            match sizes[lane] {
                0 => {}
                16 => machine.load_global(from[lane], &mut bytes)?,
                other => {
                    let text = format!("cp.async of {other} bytes; this builder uses 0 or 16");
                    return Err(Fault::new(Rule::OutOfBounds, text));
                }
            }
            machine.block.shared.hold_for_write(machine.warp, lane, flight, to[lane], bytes, false)?;
        }
        machine.warp.uncommitted.push(flight);
        Ok(Flow::Next)
    }
}

/// `cp.async.commit_group`: what was issued since the last one is a group.
#[derive(Debug)]
pub(crate) struct CommitGroup;

impl Instruction for CommitGroup {
    fn print(&self, ptx: &mut Printer) {
        ptx.line("cp.async.commit_group");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("cp.async.commit_group")?;
        let group = std::mem::take(&mut machine.warp.uncommitted);
        machine.warp.groups.push_back(group);
        Ok(Flow::Next)
    }
}

/// `cp.async.wait_group`: all but the newest `newer` groups have landed.
#[derive(Debug)]
pub(crate) struct WaitGroup {
    pub(crate) newer: u32,
}

impl Instruction for WaitGroup {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("cp.async.wait_group {}", self.newer));
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped(), Mistake::new("for one group less", WaitGroup { newer: self.newer + 1 })]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("cp.async.wait_group")?;
        while machine.warp.groups.len() > self.newer as usize {
            let group = machine.warp.groups.pop_front().expect("longer than `newer`");
            let (warp, now) = (machine.warp.index, machine.warp.now());
            for flight in group {
                machine.block.shared.land(flight, warp, now, false);
            }
        }
        Ok(Flow::Next)
    }
}
