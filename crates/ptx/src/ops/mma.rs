//! Ampere's tensor-core product.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::{Fault, Machine};
use crate::types::{B32, Half, Reg, Src};

/// `mma.m16n8k16`: acc (16x8, f32) += a (16x16) * b (16x8), both 16-bit, by one warp.
///
/// With g = lane / 4 and c = lane % 4: acc[2 * h + x] is row g + 8 h, column 2 c + x; a[h + 2 j] holds row g + 8 h,
/// k = 8 j + 2 c and the next; b[j] holds k = 8 j + 2 c and the next, column g.
///
/// The order of additions inside is not specified. The interpreter adds in f64 and rounds once, which is within half
/// an ulp of the exact sum; hardware truncates more.
#[derive(Debug)]
pub(crate) struct Mma {
    pub(crate) acc: [Reg; 4],
    pub(crate) a: [Src; 4],
    pub(crate) b: [Src; 2],
    pub(crate) half: Half,
}

impl Mma {
    fn operand<const N: usize>(
        &self,
        machine: &Machine<'_>,
        src: [Src; N],
    ) -> Result<[[[f32; 2]; 32]; N], Fault> {
        let mut out = [[[0.0; 2]; 32]; N];
        for (out, src) in out.iter_mut().zip(src) {
            let words = machine.read32(src)?;
            *out = words.map(|w| [self.half.to_f32(w as u16), self.half.to_f32((w >> 16) as u16)]);
        }
        Ok(out)
    }
}

impl Instruction for Mma {
    fn print(&self, ptx: &mut Printer) {
        let (half, acc) = (self.half.name(), braced(self.acc));
        let (a, b) = (braced(self.a.map(|s| s.text::<B32>())), braced(self.b.map(|s| s.text::<B32>())));
        ptx.line(format_args!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {acc}, {a}, {b}, {acc}"
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("mma")?;
        let (a, b) = (self.operand(machine, self.a)?, self.operand(machine, self.b)?);
        // Rows of a and columns of b, unpacked once.
        let (mut rows, mut cols) = ([[0f64; 16]; 16], [[0f64; 16]; 8]);
        for lane in 0..32 {
            let (g, c) = (lane / 4, lane % 4);
            for (i, x) in (0..8).map(|i| (i / 2, i % 2)) {
                rows[g + 8 * (i % 2)][8 * (i / 2) + 2 * c + x] = f64::from(a[i][lane][x]);
            }
            for (j, x) in (0..4).map(|i| (i / 2, i % 2)) {
                cols[g][8 * j + 2 * c + x] = f64::from(b[j][lane][x]);
            }
        }
        for (i, reg) in self.acc.iter().enumerate() {
            let mut acc = machine.read_f32(Src::Reg(*reg))?;
            for (lane, acc) in acc.iter_mut().enumerate() {
                let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let sum = rows[row].iter().zip(&cols[col]).fold(f64::from(*acc), |sum, (a, b)| sum + a * b);
                *acc = sum as f32;
            }
            machine.write_f32(*reg, &acc);
        }
        Ok(Flow::Next)
    }
}
