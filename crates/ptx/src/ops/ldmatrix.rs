//! Four 8x8 matrices of 16-bit numbers from shared memory to the registers of a warp.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::shared::NO_LANE;
use crate::interp::{Fault, Machine};
use crate::ops::memory::Address;
use crate::types::Reg;

/// `ldmatrix.x4`: lane l gives the address of row l % 8 of matrix l / 8. Lane l gets, of each matrix, elements
/// 2 * (l % 4) and the next of row l / 4; transposed, of column l / 4.
#[derive(Debug)]
pub(crate) struct LoadMatrices {
    pub(crate) dst: [Reg; 4],
    pub(crate) from: Address,
    pub(crate) transposed: bool,
}

impl Instruction for LoadMatrices {
    fn print(&self, ptx: &mut Printer) {
        let trans = if self.transposed { ".trans" } else { "" };
        let (dst, from) = (braced(self.dst), self.from.text());
        ptx.line(format_args!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {dst}, {from}"));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("ldmatrix")?;
        let addresses = self.from.read_shared(machine)?;
        machine.count_shared(&addresses, 16);
        for (matrix, dst) in self.dst.iter().enumerate() {
            let mut rows = [[0u8; 16]; 8];
            for (row, bytes) in rows.iter_mut().enumerate() {
                // The data goes to other lanes than the one that gives the address.
                machine.load_shared(NO_LANE, addresses[8 * matrix + row], bytes)?;
            }
            let element = |row: usize, col: usize| {
                u32::from(u16::from_le_bytes([rows[row][2 * col], rows[row][2 * col + 1]]))
            };
            let words = std::array::from_fn(|lane| {
                let (group, pair) = (lane / 4, 2 * (lane % 4));
                match self.transposed {
                    false => element(group, pair) | element(group, pair + 1) << 16,
                    true => element(pair, group) | element(pair + 1, group) << 16,
                }
            });
            machine.write32(*dst, &words);
        }
        Ok(Flow::Next)
    }
}
