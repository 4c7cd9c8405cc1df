//! Hopper's tensor-core product: four warps multiply tiles that stay in shared memory, while they do something else.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::{Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::target::Needs;
use crate::types::{B32, Half, Reg, Src, U32};

/// Depth of one instruction.
pub(crate) const DEPTH: usize = 16;

/// Which dimension of an operand in shared memory lies side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    /// The depth: rows of the tile are rows of a, columns of b.
    Depth,
    /// The other one: rows of the tile are steps of the depth.
    Other,
}

/// An operand in shared memory with 128-byte rows, permuted as the copy engine leaves them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Address of the tile in units of 16 bytes.
    pub(crate) start: Src,
    /// Units further on.
    pub(crate) offset: u32,
    /// Units from one piece of 64 columns to the next, where columns are not the depth.
    pub(crate) piece: u32,
    pub(crate) major: Major,
}

/// Bytes from 8 rows to the next 8.
const EIGHT_ROWS: u32 = 1024;
/// The 128-byte permutation.
const SWIZZLE_128: u32 = 1 << 30;

impl Tile {
    fn high(&self) -> u32 {
        SWIZZLE_128 | (EIGHT_ROWS / 16)
    }

    fn low(&self) -> u32 {
        // Where columns are the depth, the hardware ignores the distance of pieces.
        let piece = if self.major == Major::Depth { 1 } else { self.piece };
        self.offset + (piece << 16)
    }

    /// Makes the descriptor in a register called `name`.
    fn print(&self, ptx: &mut Printer, name: &str) {
        ptx.line(format_args!("add.u32 %{name}_low, {}, {}", self.start.text::<U32>(), self.low()));
        ptx.line(format_args!("mov.b64 %{name}, {{%{name}_low, {}}}", self.high()));
    }

    fn transposed(&self) -> u8 {
        u8::from(self.major == Major::Other)
    }

    /// Rows `first..first + rows` of the operand (columns, of b), 16 of the depth each.
    fn read(
        &self,
        machine: &mut Machine<'_>,
        half: Half,
        first: usize,
        rows: usize,
    ) -> Result<Vec<[f32; DEPTH]>, Fault> {
        let start = machine.uniform(&machine.read32(self.start)?, "a tile's address")?;
        let start = start.wrapping_add(self.offset) * 16;
        let mut out = vec![[0f32; DEPTH]; rows];
        let value =
            |bytes: &[u8; 16], i: usize| half.to_f32(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
        match self.major {
            Major::Depth => {
                for (i, out) in out.iter_mut().enumerate() {
                    let row = (first + i) as u32;
                    for k8 in 0..2 {
                        let at = start + row / 8 * EIGHT_ROWS + row % 8 * 128 + 16 * k8;
                        let bytes = machine.read_operand(permuted(at))?;
                        (0..8).for_each(|x| out[8 * k8 as usize + x] = value(&bytes, x));
                    }
                }
            }
            Major::Other => {
                let pieces = (0..DEPTH).flat_map(|k| (0..rows).step_by(8).map(move |i8| (k, i8)));
                for (k, i8) in pieces {
                    let column = (first + i8) as u32;
                    let piece = column / 64 * self.piece * 16;
                    let row = k as u32 / 8 * EIGHT_ROWS + k as u32 % 8 * 128;
                    let bytes = machine.read_operand(permuted(start + piece + row + column % 64 * 2))?;
                    for (x, out) in out[i8..i8 + 8].iter_mut().enumerate() {
                        out[k] = value(&bytes, x);
                    }
                }
            }
        }
        Ok(out)
    }
}

/// What the 128-byte permutation makes of an address.
fn permuted(address: u32) -> u32 {
    address ^ (address >> 7 & 7) << 4
}

/// The left operand.
#[derive(Clone, Debug)]
pub(crate) enum Left {
    Tile(Tile),
    /// 16 columns, as [`Mma`](super::mma::Mma)'s.
    Registers([Src; 4]),
}

/// `wgmma.mma_async`: acc (64 x n, f32) = or += a (64 x 16) * b (16 x n), by four warps with 16 rows each. The result
/// may be touched, and so may operands be overwritten, after a wait.
///
/// As for [`Mma`](super::mma::Mma) the order of additions is not specified; the interpreter rounds each sum of 16 and
/// the accumulator once. It runs warps one by one and does not check that all four come to the same product.
#[derive(Clone, Debug)]
pub(crate) struct Wgmma {
    pub(crate) acc: Vec<Reg>,
    pub(crate) a: Left,
    pub(crate) b: Tile,
    pub(crate) half: Half,
    /// `false`: what the accumulator holds is forgotten.
    pub(crate) add: bool,
}

impl Wgmma {
    fn columns(&self) -> usize {
        2 * self.acc.len()
    }

    /// This warp's 16 rows of a.
    fn left(&self, machine: &mut Machine<'_>) -> Result<Vec<[f32; DEPTH]>, Fault> {
        let registers = match &self.a {
            Left::Tile(tile) => {
                let first = machine.warp.index % 4 * 16;
                return tile.read(machine, self.half, first, 16);
            }
            Left::Registers(registers) => registers,
        };
        let mut rows = vec![[0f32; DEPTH]; 16];
        for (i, src) in registers.iter().enumerate() {
            for (lane, word) in machine.read32(*src)?.into_iter().enumerate() {
                let row = &mut rows[lane / 4 + 8 * (i % 2)];
                let k = 8 * (i / 2) + 2 * (lane % 4);
                row[k] = self.half.to_f32(word as u16);
                row[k + 1] = self.half.to_f32((word >> 16) as u16);
            }
        }
        Ok(rows)
    }

    fn sources(&self) -> Vec<Reg> {
        let Left::Registers(registers) = &self.a else { return vec![] };
        let reg = |src: &Src| if let Src::Reg(reg) = src { Some(*reg) } else { None };
        registers.iter().filter_map(reg).collect()
    }
}

impl Instruction for Wgmma {
    fn needs(&self) -> Needs {
        Needs::sm90a(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (n, half, add) = (self.columns(), self.half.name(), u8::from(self.add));
        ptx.text.push_str("\t{\n\t.reg .b32 %a_low, %b_low;\n\t.reg .b64 %a, %b;\n");
        self.b.print(ptx, "b");
        let (a, transposed_a) = match &self.a {
            Left::Tile(tile) => {
                tile.print(ptx, "a");
                ("%a".to_owned(), format!(" {},", tile.transposed()))
            }
            Left::Registers(registers) => (braced(registers.map(|s| s.text::<B32>())), String::new()),
        };
        let acc = braced(&self.acc);
        ptx.line(format_args!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{half}.{half} {acc}, {a}, %b, {add}, 1, 1,{transposed_a} {}",
            self.b.transposed()
        ));
        ptx.text.push_str("\t}\n");
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("wgmma")?;
        let sources = self.sources();
        machine.warp.check_fenced_registers(self.acc.iter().filter(|_| self.add).chain(&sources))?;
        machine.warp.begin_product(&self.acc, &sources, machine.at);
        let (a, b) = (self.left(machine)?, self.b.read(machine, self.half, 0, self.columns())?);
        let sums = sums(&a, &b);
        for (group, registers) in self.acc.chunks(4).enumerate() {
            for (i, reg) in registers.iter().enumerate() {
                let mut values = if self.add { *machine.warp.product_value(*reg)? } else { [0; 32] };
                for (lane, value) in values.iter_mut().enumerate() {
                    let (row, column) = (lane / 4 + 8 * (i / 2), 8 * group + 2 * (lane % 4) + i % 2);
                    let sum = f64::from(f32::from_bits(*value)) + sums[row * self.columns() + column];
                    *value = (sum as f32).to_bits();
                }
                machine.warp.set_product(*reg, values);
            }
        }
        Ok(Flow::Next)
    }
}

/// Each row of a times each column of b: all columns of a row side by side, since that is a loop of vectors.
fn sums(a: &[[f32; DEPTH]], b: &[[f32; DEPTH]]) -> Vec<f64> {
    let columns = b.len();
    let b: Vec<f32> = (0..DEPTH).flat_map(|k| b.iter().map(move |column| column[k])).collect();
    let mut sums = vec![-0.0; a.len() * columns];
    for (a, sums) in a.iter().zip(sums.chunks_exact_mut(columns)) {
        for (factor, b) in a.iter().zip(b.chunks_exact(columns)) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += f64::from(factor * b));
        }
    }
    sums
}

/// What orders products: `wgmma.fence`, `commit_group`, `wait_group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WgmmaOrder {
    /// Registers written before may be used by products from here on.
    Fence,
    /// What was started since the last one is a group.
    Commit,
    /// All groups but so many of the newest are done.
    Wait(u32),
}

impl Instruction for WgmmaOrder {
    fn needs(&self) -> Needs {
        Needs::sm90a(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        match self {
            WgmmaOrder::Fence => ptx.line("wgmma.fence.sync.aligned"),
            WgmmaOrder::Commit => ptx.line("wgmma.commit_group.sync.aligned"),
            WgmmaOrder::Wait(newest) => ptx.line(format_args!("wgmma.wait_group.sync.aligned {newest}")),
        }
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = vec![Mistake::dropped()];
        if let WgmmaOrder::Wait(newest) = self {
            mistakes.push(Mistake::new("for a group less", WgmmaOrder::Wait(newest + 1)));
        }
        mistakes
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("an instruction of wgmma")?;
        match self {
            WgmmaOrder::Fence => machine.warp.fence_registers(),
            WgmmaOrder::Commit => machine.warp.commit_products(),
            WgmmaOrder::Wait(newest) => machine.wait_products(*newest as usize),
        }
        Ok(Flow::Next)
    }
}

impl Machine<'_> {
    fn read_operand(&mut self, address: u32) -> Result<[u8; 16], Fault> {
        let (offset, bytes) = self.block.shared.read_for_product(self.warp, address)?;
        self.warp.hold_operand(offset);
        Ok(bytes)
    }

    fn wait_products(&mut self, newest: usize) {
        let (ended, held) = self.warp.end_products(newest);
        let (warp, now) = (self.warp.index, self.warp.now());
        self.block.shared.end_product_reads(warp, &ended, &held, now);
    }
}

/// Refuses a use of a register that a product under way uses.
pub(crate) fn in_flight(reg: u32, how: &str, at: impl std::fmt::Display) -> Fault {
    Fault::new(
        Rule::InFlight,
        format!("register %r{reg} is {how} while the product issued at {at} is in flight"),
    )
}
