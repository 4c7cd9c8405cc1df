//! Additions to global memory that other blocks make too.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::{Fault, Machine};
use crate::ops::memory::Address;
use crate::target::Needs;
use crate::types::{F32, Src};

/// `red.global.add.f32`, one float or (on Hopper) two or four neighbours. In which order blocks add is not known, so
/// the last bits of a sum differ from run to run.
#[derive(Debug)]
pub(crate) struct AddFloats {
    pub(crate) to: Address,
    pub(crate) src: Vec<Src>,
}

impl Instruction for AddFloats {
    fn needs(&self) -> Needs {
        if self.src.len() == 1 { Needs::SM80 } else { Needs::sm90(8, 1) }
    }

    fn print(&self, ptx: &mut Printer) {
        let words: Vec<String> = self.src.iter().map(|src| src.text::<F32>()).collect();
        match &words[..] {
            [one] => ptx.line(format_args!("red.global.add.f32 {}, {one}", self.to.text())),
            many => {
                let list = braced(many);
                ptx.line(format_args!("red.global.add.v{}.f32 {}, {list}", many.len(), self.to.text()));
            }
        }
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let addresses = self.to.read_global(machine)?;
        let values: Vec<_> = self.src.iter().map(|src| machine.read_f32(*src)).collect::<Result<_, _>>()?;
        for lane in machine.warp.lanes() {
            let own: Vec<f32> = values.iter().map(|value| value[lane]).collect();
            machine.global.add_f32(addresses[lane], &own)?;
        }
        Ok(Flow::Next)
    }
}
