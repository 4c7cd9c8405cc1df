//! What a kernel is given: parameters and special registers.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine};
use crate::types::{Reg, Width};

/// Reads a kernel parameter.
#[derive(Debug)]
pub(crate) struct LoadParam {
    pub(crate) dst: Reg,
    pub(crate) index: usize,
    pub(crate) name: &'static str,
    pub(crate) ty: &'static str,
}

impl Instruction for LoadParam {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("ld.param.{} {}, [{}]", self.ty, self.dst, self.name));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let bits = machine.launch.args[self.index].bits();
        match self.dst.width {
            Width::W64 => machine.write64(self.dst, &[bits; 32]),
            _ => machine.write32(self.dst, &[bits as u32; 32]),
        }
        Ok(Flow::Next)
    }
}

/// A register that the hardware fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread,
    Block,
    Blocks,
    Clock,
}

/// Reads a special register.
#[derive(Debug)]
pub(crate) struct LoadSpecial {
    pub(crate) dst: Reg,
    pub(crate) special: Special,
}

impl Instruction for LoadSpecial {
    fn print(&self, ptx: &mut Printer) {
        let name = match self.special {
            Special::Thread => "%tid.x",
            Special::Block => "%ctaid.x",
            Special::Blocks => "%nctaid.x",
            Special::Clock => "%clock",
        };
        ptx.line(format_args!("mov.u32 {}, {name}", self.dst));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let first = 32 * machine.warp.index as u32;
        let values = match self.special {
            Special::Thread => std::array::from_fn(|lane| first + lane as u32),
            Special::Block => [machine.block.index; 32],
            Special::Blocks => [machine.launch.grid; 32],
            // The interpreter has no time.
            Special::Clock => [0; 32],
        };
        machine.write32(self.dst, &values);
        Ok(Flow::Next)
    }
}

/// The address of the block's shared memory.
#[derive(Debug)]
pub(crate) struct SmemBase {
    pub(crate) dst: Reg,
}

impl Instruction for SmemBase {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("mov.u32 {}, smem", self.dst));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.write32(self.dst, &[crate::interp::shared::SMEM_BASE; 32]);
        Ok(Flow::Next)
    }
}
