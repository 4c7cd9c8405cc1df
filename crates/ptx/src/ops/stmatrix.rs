//! Four 8x8 matrices of 16-bit numbers from the registers of a warp to shared memory.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::shared::NO_LANE;
use crate::interp::{Fault, Machine};
use crate::ops::memory::Address;
use crate::target::Needs;
use crate::types::{B32, Src};

/// `stmatrix.x4`: lane l gives the address of row l % 8 of matrix l / 8. Lane l holds, of each matrix, elements
/// 2 * (l % 4) and the next of row l / 4; transposed, of column l / 4.
#[derive(Debug)]
pub(crate) struct StoreMatrices {
    pub(crate) src: [Src; 4],
    pub(crate) to: Address,
    pub(crate) transposed: bool,
}

impl Instruction for StoreMatrices {
    fn needs(&self) -> Needs {
        Needs::sm90(7, 8)
    }

    fn print(&self, ptx: &mut Printer) {
        let trans = if self.transposed { ".trans" } else { "" };
        let (src, to) = (braced(self.src.map(|src| src.text::<B32>())), self.to.text());
        ptx.line(format_args!("stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {to}, {src}"));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("stmatrix")?;
        let addresses = self.to.read_shared(machine)?;
        machine.count_shared(&addresses, 16);
        for (matrix, src) in self.src.iter().enumerate() {
            let words = machine.read32(*src)?;
            let element = |row: usize, col: usize| {
                let (group, pair) = if self.transposed { (col, row) } else { (row, col) };
                (words[4 * group + pair / 2] >> (16 * (pair % 2))) as u16
            };
            for row in 0..8 {
                let mut bytes = [0u8; 16];
                for (col, pair) in bytes.chunks_exact_mut(2).enumerate() {
                    pair.copy_from_slice(&element(row, col).to_le_bytes());
                }
                // The data comes from other lanes than the one that gives the address.
                machine.store_shared(NO_LANE, addresses[8 * matrix + row], &bytes)?;
            }
        }
        Ok(Flow::Next)
    }
}
