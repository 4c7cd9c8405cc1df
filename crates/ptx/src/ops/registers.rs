//! Registers moved between the roles of a block.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine};
use crate::target::Needs;

/// `setmaxnreg`: from here on each thread of the warpgroup has so many registers. Those that ask for more wait until
/// others have given theirs back.
#[derive(Clone, Debug)]
pub(crate) struct SetRegisters {
    pub(crate) count: u32,
    pub(crate) more: bool,
}

impl Instruction for SetRegisters {
    fn needs(&self) -> Needs {
        Needs::sm90a(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let way = if self.more { "inc" } else { "dec" };
        ptx.line(format_args!("setmaxnreg.{way}.sync.aligned.u32 {}", self.count));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("setmaxnreg")?;
        Ok(Flow::Next)
    }
}
