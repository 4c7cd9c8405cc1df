//! Ordinary loads and stores.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::{Fault, Machine};
use crate::types::{B32, Reg, Src, U32, U64};

/// Which memory, and so how wide an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

impl Space {
    fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Shared => "shared",
        }
    }
}

/// A register and a constant number of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

impl Address {
    pub(crate) fn text(self) -> String {
        let base = match self.space {
            Space::Global => self.base.text::<U64>(),
            Space::Shared => self.base.text::<U32>(),
        };
        match self.offset {
            0 => format!("[{base}]"),
            offset => format!("[{base}+{offset}]"),
        }
    }

    pub(crate) fn read_shared(self, machine: &Machine<'_>) -> Result<[u32; 32], Fault> {
        Ok(machine.read32(self.base)?.map(|a| a.wrapping_add(self.offset as u32)))
    }

    pub(crate) fn read_global(self, machine: &Machine<'_>) -> Result<[u64; 32], Fault> {
        Ok(machine.read64(self.base)?.map(|a| a.wrapping_add(self.offset as u64)))
    }
}

/// What one register of an access holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 8 bits, in the low byte of a register.
    Byte,
    /// 16 bits, in the low half of a register.
    Half,
    /// 32 bits.
    Word,
}

fn kind(unit: Unit, count: usize) -> &'static str {
    match (unit, count) {
        (Unit::Byte, 1) => "u8",
        (Unit::Half, 1) => "u16",
        (Unit::Word, 1) => "b32",
        (Unit::Word, 2) => "v2.b32",
        (Unit::Word, 4) => "v4.b32",
        _ => panic!("memory is accessed by a byte, a half, a word, two words or four"),
    }
}

fn bytes_of(unit: Unit, count: usize) -> usize {
    match unit {
        Unit::Byte => 1,
        Unit::Half => 2,
        Unit::Word => 4 * count,
    }
}

/// `ld`.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) dst: Vec<Reg>,
    pub(crate) unit: Unit,
    pub(crate) from: Address,
    /// Global data that nobody writes during the launch.
    pub(crate) constant: bool,
}

impl Instruction for Load {
    fn print(&self, ptx: &mut Printer) {
        let nc = if self.constant { ".nc" } else { "" };
        let list = if let [one] = self.dst[..] { one.to_string() } else { braced(&self.dst) };
        let kind = kind(self.unit, self.dst.len());
        ptx.line(format_args!("ld.{}{nc}.{kind} {list}, {}", self.from.space.name(), self.from.text()));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let len = bytes_of(self.unit, self.dst.len());
        let mut values = [[0u32; 32]; 4];
        let mut read = [0u8; 16];
        let (mut shared, mut global) = ([0; 32], [0; 32]);
        match self.from.space {
            Space::Shared => {
                shared = self.from.read_shared(machine)?;
                machine.count_shared(&shared, len);
            }
            Space::Global => global = self.from.read_global(machine)?,
        }
        for lane in machine.warp.lanes() {
            match self.from.space {
                Space::Shared => machine.load_shared(lane, shared[lane], &mut read[..len])?,
                Space::Global => machine.load_global(global[lane], &mut read[..len])?,
            }
            // A byte and a half leave zeros behind them.
            for (value, word) in values[..self.dst.len()].iter_mut().zip(read.chunks_exact(4)) {
                value[lane] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            }
        }
        for (dst, value) in self.dst.iter().zip(&values) {
            machine.write32(*dst, value);
        }
        Ok(Flow::Next)
    }
}

/// `st`.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) src: Vec<Src>,
    pub(crate) unit: Unit,
    pub(crate) to: Address,
}

impl Instruction for Store {
    fn print(&self, ptx: &mut Printer) {
        let words: Vec<String> = self.src.iter().map(|src| src.text::<B32>()).collect();
        let list = if let [one] = &words[..] { one.clone() } else { braced(words.iter()) };
        ptx.line(format_args!(
            "st.{}.{} {}, {list}",
            self.to.space.name(),
            kind(self.unit, self.src.len()),
            self.to.text()
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let len = bytes_of(self.unit, self.src.len());
        let mut values = [[0u32; 32]; 4];
        for (value, src) in values.iter_mut().zip(&self.src) {
            *value = machine.read32(*src)?;
        }
        let (mut shared, mut global) = ([0; 32], [0; 32]);
        match self.to.space {
            Space::Shared => {
                shared = self.to.read_shared(machine)?;
                machine.count_shared(&shared, len);
            }
            Space::Global => global = self.to.read_global(machine)?,
        }
        for lane in machine.warp.lanes() {
            let mut bytes = [0; 16];
            for (word, value) in bytes.chunks_exact_mut(4).zip(&values) {
                word.copy_from_slice(&value[lane].to_le_bytes());
            }
            match self.to.space {
                Space::Shared => machine.store_shared(lane, shared[lane], &bytes[..len])?,
                Space::Global => machine.store_global(global[lane], &bytes[..len])?,
            }
        }
        Ok(Flow::Next)
    }
}
