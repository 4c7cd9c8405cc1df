//! Values from other lanes of a warp.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine};
use crate::mutation::Mistake;
use crate::ops::alu::{Apply, MOV32};
use crate::types::{B32, Reg, Src};

/// From which lane each lane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The lane whose number differs in these bits.
    Xor(u32),
    /// One lane for all.
    Lane(u32),
}

/// `shfl.sync`.
#[derive(Debug)]
pub(crate) struct Shuffle {
    pub(crate) dst: Reg,
    pub(crate) src: Src,
    pub(crate) from: From,
}

impl Instruction for Shuffle {
    fn print(&self, ptx: &mut Printer) {
        let (mode, arg) = match self.from {
            From::Xor(bits) => ("bfly", bits),
            From::Lane(lane) => ("idx", lane),
        };
        let (dst, src) = (self.dst, self.src.text::<B32>());
        ptx.line(format_args!("shfl.sync.{mode}.b32 {dst}, {src}, {arg}, 31, 0xFFFFFFFF"));
    }

    fn slips(&self) -> Vec<Mistake> {
        vec![Mistake::new("forgotten", Apply { op: MOV32, dst: self.dst, src: [self.src; 3] })]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("shfl")?;
        let values = machine.read32(self.src)?;
        let out = std::array::from_fn(|lane| match self.from {
            From::Xor(bits) => values[lane ^ bits as usize],
            From::Lane(lane) => values[lane as usize],
        });
        machine.write32(self.dst, &out);
        Ok(Flow::Next)
    }
}
