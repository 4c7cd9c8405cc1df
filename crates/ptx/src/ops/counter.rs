//! Counters in global memory, by which blocks wait for each other.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{At, Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::ops::memory::Address;
use crate::target::Needs;
use crate::types::{Reg, Src, U32};

/// `red.release.gpu.global.add.u32` of 1: what this thread wrote before is there for who sees the count.
#[derive(Debug)]
pub(crate) struct CounterAdvance {
    pub(crate) counter: Address,
}

impl Instruction for CounterAdvance {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("red.release.gpu.global.add.u32 {}, 1", self.counter.text()));
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let addresses = self.counter.read_global(machine)?;
        if let Some(write) = machine.warp.bulk_writes.first() {
            let text = format!("others are told of what is on its way since {}", At(write.at));
            return Err(Fault::new(Rule::InFlight, text));
        }
        for lane in machine.warp.lanes() {
            machine.global.advance(addresses[lane])?;
        }
        machine.block.has_told = true;
        Ok(Flow::Next)
    }
}

/// Waits, looking again and again, until a counter is at least so much. What was written before it was is there, for
/// bulk copies too.
#[derive(Debug)]
pub(crate) struct CounterWait {
    pub(crate) counter: Address,
    pub(crate) at_least: Src,
    /// Makes the loop's label unique.
    pub(crate) number: u32,
}

impl Instruction for CounterWait {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (at, at_least, n) = (self.counter.text(), self.at_least.text::<U32>(), self.number);
        ptx.text.push_str("\t{\n\t.reg .pred %behind;\n\t.reg .b32 %count;\n");
        ptx.label(format_args!("$count{n}"));
        ptx.line(format_args!("ld.acquire.gpu.global.u32 %count, {at}"));
        ptx.line(format_args!("setp.lt.u32 %behind, %count, {at_least}"));
        ptx.line(format_args!("@%behind bra $count{n}"));
        ptx.line("fence.proxy.async.global");
        ptx.text.push_str("\t}\n");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (addresses, at_least) = (self.counter.read_global(machine)?, machine.read32(self.at_least)?);
        for lane in machine.warp.lanes() {
            let count = machine.global.count(addresses[lane])?;
            if count < at_least[lane] {
                return Ok(Flow::Await(format!("a counter that is {count} to be {}", at_least[lane])));
            }
        }
        Ok(Flow::Next)
    }
}

/// `atom.relaxed.gpu.global.add.u32` of 1: what the counter was before, which no other thread gets.
#[derive(Debug)]
pub(crate) struct CounterTake {
    pub(crate) dst: Reg,
    pub(crate) counter: Address,
}

impl Instruction for CounterTake {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("atom.relaxed.gpu.global.add.u32 {}, {}, 1", self.dst, self.counter.text()));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let addresses = self.counter.read_global(machine)?;
        let mut taken = [0; 32];
        for lane in machine.warp.lanes() {
            taken[lane] = machine.global.count(addresses[lane])?;
            machine.global.advance(addresses[lane])?;
        }
        machine.write32(self.dst, &taken);
        Ok(Flow::Next)
    }
}
