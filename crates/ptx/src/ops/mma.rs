//! Ampere's tensor-core product.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::{Fault, Lanes, Machine};
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
    /// Both numbers of each register of each lane.
    fn operand<const N: usize>(
        &self,
        machine: &Machine<'_>,
        src: [Src; N],
    ) -> Result<[Lanes<[f64; 2]>; N], Fault> {
        let mut out = [[[0.0; 2]; 32]; N];
        for (out, src) in out.iter_mut().zip(src) {
            let words = machine.read32(src)?;
            let value = |bits: u32| f64::from(self.half.to_f32(bits as u16));
            *out = words.map(|word| [value(word & 0xFFFF), value(word >> 16)]);
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
        let mut sums = [[0f64; 8]; 16];
        for (i, reg) in self.acc.iter().enumerate() {
            let acc = machine.read_f32(Src::Reg(*reg))?;
            for (lane, acc) in acc.into_iter().enumerate() {
                sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = f64::from(acc);
            }
        }
        for k in 0..16 {
            let (j, c, x) = (k / 8, k % 8 / 2, k % 2);
            // Row k of b: eight columns, side by side.
            let columns: [f64; 8] = std::array::from_fn(|g| b[j][4 * g + c][x]);
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = a[row / 8 + 2 * j][4 * (row % 8) + c][x];
                sums.iter_mut().zip(columns).for_each(|(sum, b)| *sum += factor * b);
            }
        }
        for (i, reg) in self.acc.iter().enumerate() {
            let own = |lane: usize| sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] as f32;
            machine.write_f32(*reg, &std::array::from_fn(own));
        }
        Ok(Flow::Next)
    }
}
