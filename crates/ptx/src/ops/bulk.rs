//! Hopper's bulk copies: one thread moves many bytes, by the asynchronous proxy.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::mbarrier::BulkCopy;
use crate::interp::warp::BulkWrite;
use crate::interp::{Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::ops::memory::Address;
use crate::target::Needs;

/// `cp.async.bulk` from global to shared memory; an mbarrier counts its bytes.
#[derive(Debug)]
pub(crate) struct BulkLoad {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    pub(crate) barrier: Address,
}

impl Instruction for BulkLoad {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (to, from, barrier) = (self.to.text(), self.from.text(), self.barrier.text());
        ptx.line(format_args!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes {to}, {from}, {}, {barrier}",
            self.bytes
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (to, from) = (self.to.read_shared(machine)?, self.from.read_global(machine)?);
        let barriers = self.barrier.read_shared(machine)?;
        for lane in machine.warp.lanes() {
            let mut bytes = vec![0; self.bytes as usize];
            for (i, chunk) in bytes.chunks_mut(16).enumerate() {
                machine.load_global(from[lane] + 16 * i as u64, chunk)?;
            }
            let flight = machine.block.shared.depart(true, lane, machine.at);
            machine.block.shared.hold_for_write(machine.warp, lane, flight, to[lane], bytes, true)?;
            let offset = machine.block.shared.locate(barriers[lane], 8, "mbarrier")? as u32;
            let barrier = (offset, i64::from(self.bytes));
            machine.mbarrier_expects(lane, barriers[lane], BulkCopy { at: machine.at, flight, barrier })?;
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.bulk` from shared to global memory. The data must be fenced for the asynchronous proxy, and may not be
/// overwritten before the group was waited for.
#[derive(Debug)]
pub(crate) struct BulkStore {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// f32 numbers are added to what is there (`cp.reduce.async.bulk`), in no fixed order among blocks.
    pub(crate) add: bool,
}

impl Instruction for BulkStore {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (to, from) = (self.to.text(), self.from.text());
        let (name, what) = if self.add { ("cp.reduce", ".add.f32") } else { ("cp", "") };
        ptx.line(format_args!(
            "{name}.async.bulk.global.shared::cta.bulk_group{what} {to}, {from}, {}",
            self.bytes
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (to, from) = (self.to.read_global(machine)?, self.from.read_shared(machine)?);
        for lane in machine.warp.lanes() {
            let flight = machine.block.shared.depart(false, lane, machine.at);
            let bytes = machine.block.shared.hold_for_read(
                machine.warp,
                lane,
                flight,
                from[lane],
                self.bytes as usize,
            )?;
            machine.block.shared.check_written(from[lane], bytes.len())?;
            for (i, chunk) in bytes.chunks(16).enumerate() {
                let (to, add) = (to[lane] + 16 * i as u64, self.add);
                let write = BulkWrite { to, bytes: chunk.to_vec(), add, at: machine.at };
                machine.warp.bulk_writes.push(write);
            }
            machine.warp.bulk_uncommitted.push(flight);
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.bulk.commit_group`, and `wait_group` for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BulkGroup {
    /// What was issued since the last one is a group.
    Commit,
    /// The sources of all groups may be overwritten, and what they wrote is there.
    Wait,
    /// The sources of all groups but so many of the newest may be overwritten.
    WaitRead(u32),
}

impl Instruction for BulkGroup {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        match self {
            BulkGroup::Commit => ptx.line("cp.async.bulk.commit_group"),
            BulkGroup::Wait => ptx.line("cp.async.bulk.wait_group 0"),
            BulkGroup::WaitRead(newest) => {
                ptx.line(format_args!("cp.async.bulk.wait_group.read {newest}"));
            }
        }
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = vec![Mistake::dropped()];
        if let BulkGroup::WaitRead(newest) = self {
            mistakes.push(Mistake::new("for a group less", BulkGroup::WaitRead(newest + 1)));
        }
        mistakes
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let warp = &mut *machine.warp;
        match self {
            BulkGroup::Commit => warp.bulk_groups.push_back(std::mem::take(&mut warp.bulk_uncommitted)),
            _ if !warp.bulk_uncommitted.is_empty() => {
                let text = "bulk stores are waited for before they are committed";
                return Err(Fault::new(Rule::InFlight, text));
            }
            BulkGroup::Wait | BulkGroup::WaitRead(_) => {
                let newest = if let BulkGroup::WaitRead(newest) = self { *newest as usize } else { 0 };
                let done = warp.bulk_groups.len().saturating_sub(newest);
                let groups: Vec<_> = warp.bulk_groups.drain(..done).collect();
                for flight in groups.into_iter().flatten() {
                    machine.block.shared.land(flight, warp.index, warp.now(), false);
                }
                if *self == BulkGroup::Wait {
                    warp.land_writes(machine.global).map_err(|(_, fault)| fault)?;
                }
            }
        }
        Ok(Flow::Next)
    }
}
