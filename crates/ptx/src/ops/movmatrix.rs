//! Transposing an 8x8 matrix of 16-bit numbers between the registers of a warp.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine};
use crate::target::Needs;
use crate::types::{B32, Reg, Src};

/// `movmatrix.trans`: lane l holds elements 2 * (l % 4) and the next of row l / 4, and gets those of column l / 4.
#[derive(Debug)]
pub(crate) struct Transpose {
    pub(crate) dst: Reg,
    pub(crate) src: Src,
}

impl Instruction for Transpose {
    fn needs(&self) -> Needs {
        Needs::ptx(7, 8)
    }

    fn print(&self, ptx: &mut Printer) {
        let src = self.src.text::<B32>();
        ptx.line(format_args!("movmatrix.sync.aligned.m8n8.trans.b16 {}, {src}", self.dst));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("movmatrix")?;
        let words = machine.read32(self.src)?;
        let element = |row: usize, col: usize| words[4 * row + col / 2] >> (16 * (col % 2)) & 0xFFFF;
        let out = std::array::from_fn(|lane| {
            let (col, row) = (lane / 4, 2 * (lane % 4));
            element(row, col) | element(row + 1, col) << 16
        });
        machine.write32(self.dst, &out);
        Ok(Flow::Next)
    }
}
