//! Global memory: named buffers with gaps between them, so that no address past one is inside another.
use super::fault::{Fault, Rule};

const FIRST: u64 = 1 << 40;
const GAP: u64 = 1 << 20;
/// Who touched what is recorded for pieces of 16 bits, the least that a kernel accesses.
const PIECE: usize = 2;
const NOBODY: u32 = 0;
/// In place of a writer's number: reductions, of any block.
const ATOMIC: u32 = u32::MAX;
/// In place of a reader's number: several blocks.
const SEVERAL: u32 = u32::MAX;

/// A pointer that a kernel can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer(pub u64);

#[derive(Debug)]
struct Buffer {
    name: String,
    base: u64,
    bytes: Vec<u8>,
    written: Vec<bool>,
    /// For each piece, the block that wrote it in this launch and that which read it, plus one.
    owner: Vec<u32>,
    reader: Vec<u32>,
}

/// The memory that kernels share with their caller.
///
/// ```
/// use signflash_ptx::Global;
/// let mut memory = Global::default();
/// let x = memory.upload("x", &[1, 2, 3, 4]);
/// let y = memory.reserve("y", 4);
/// assert_eq!(memory.bytes(x), &[1, 2, 3, 4]);
/// assert_eq!(memory.unwritten(y), Some(0)); // nobody wrote y yet
/// ```
#[derive(Debug, Default)]
pub struct Global {
    buffers: Vec<Buffer>,
}

impl Global {
    /// A buffer that holds `bytes`.
    pub fn upload(&mut self, name: &str, bytes: &[u8]) -> Pointer {
        let pointer = self.reserve(name, bytes.len());
        let buffer = self.buffers.last_mut().expect("just made");
        buffer.bytes.copy_from_slice(bytes);
        buffer.written.fill(true);
        pointer
    }

    /// A buffer of `len` bytes, none of which may be read before it is written.
    pub fn reserve(&mut self, name: &str, len: usize) -> Pointer {
        let last = self.buffers.last();
        let base = last.map_or(FIRST, |b| (b.base + b.bytes.len() as u64 + GAP).next_multiple_of(256));
        self.buffers.push(Buffer {
            name: name.to_owned(),
            base,
            bytes: vec![0; len],
            written: vec![false; len],
            owner: vec![NOBODY; len.div_ceil(PIECE)],
            reader: vec![NOBODY; len.div_ceil(PIECE)],
        });
        Pointer(base)
    }

    /// Zeroes `len` bytes, as a memset between launches would.
    ///
    /// # Panics
    /// Unless they are inside one buffer.
    pub fn zero(&mut self, address: u64, len: usize) {
        let buffer =
            self.buffers.iter_mut().rev().find(|b| b.base <= address).expect("an address of this memory");
        let at = (address - buffer.base) as usize;
        buffer.bytes[at..at + len].fill(0);
        buffer.written[at..at + len].fill(true);
    }

    /// What a buffer holds. `pointer` is one that [`upload`](Self::upload) or [`reserve`](Self::reserve) gave.
    pub fn bytes(&self, pointer: Pointer) -> &[u8] {
        &self.at_base(pointer).bytes
    }

    /// The first byte of a buffer that nobody wrote.
    pub fn unwritten(&self, pointer: Pointer) -> Option<usize> {
        self.at_base(pointer).written.iter().position(|written| !written)
    }

    fn at_base(&self, pointer: Pointer) -> &Buffer {
        self.buffers.iter().find(|b| b.base == pointer.0).expect("a pointer of this memory")
    }

    /// Blocks of the next launch may read what those of the last wrote.
    pub(crate) fn new_launch(&mut self) {
        for buffer in &mut self.buffers {
            buffer.owner.fill(NOBODY);
            buffer.reader.fill(NOBODY);
        }
    }

    /// The buffer that holds all of an access, and where in it. `len` is a power of two.
    #[inline]
    fn find(&mut self, address: u64, len: usize, what: &str) -> Result<(&mut Buffer, usize), Fault> {
        let after = self.buffers.partition_point(|b| b.base <= address);
        let inside = |b: &Buffer| address - b.base + len as u64 <= b.bytes.len() as u64;
        if address & (len as u64 - 1) != 0 || after == 0 || !inside(&self.buffers[after - 1]) {
            return Err(self.outside(address, len, what, after));
        }
        let buffer = &mut self.buffers[after - 1];
        let at = (address - buffer.base) as usize;
        Ok((buffer, at))
    }

    /// Whether there is memory here, whatever it holds.
    pub(crate) fn has(&mut self, address: u64, what: &str) -> Result<(), Fault> {
        self.find(address, 1, what).map(drop)
    }

    #[cold]
    fn outside(&self, address: u64, len: usize, what: &str, after: usize) -> Fault {
        if !address.is_multiple_of(len as u64) {
            return Fault::new(Rule::Misaligned, format!("global {what} of {len} bytes at {address:#x}"));
        }
        let text = match after.checked_sub(1).map(|i| &self.buffers[i]) {
            None => format!("global {what} of {len} bytes at {address:#x}, before every buffer"),
            Some(Buffer { name, base, bytes, .. }) => {
                let (offset, size) = (address - base, bytes.len());
                format!("global {what} of {len} bytes at {name} + {offset}, which has {size} bytes")
            }
        };
        Fault::new(Rule::OutOfBounds, text)
    }

    /// Reads `out.len()` bytes.
    pub(crate) fn load(&mut self, address: u64, out: &mut [u8], block: u32) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, out.len(), "load")?;
        let range = at..at + out.len();
        if !buffer.written[range.clone()].iter().all(|&written| written) {
            let byte = at + buffer.written[range].iter().position(|written| !written).expect("one of them");
            let text = format!("{} + {byte} is read before it is written", buffer.name);
            return Err(Fault::new(Rule::Uninitialised, text));
        }
        let own = block + 1;
        let pieces = at / PIECE..range.end / PIECE;
        if let Some(piece) =
            pieces.clone().find(|&p| !matches!(buffer.owner[p], NOBODY) && buffer.owner[p] != own)
        {
            let at = piece * PIECE;
            let text = format!("{} + {at} is read, but another block writes it in this launch", buffer.name);
            return Err(Fault::new(Rule::BlockRace, text));
        }
        for reader in &mut buffer.reader[pieces] {
            *reader = if *reader == NOBODY || *reader == own { own } else { SEVERAL };
        }
        out.copy_from_slice(&buffer.bytes[range]);
        Ok(())
    }

    /// Writes `bytes`.
    pub(crate) fn store(&mut self, address: u64, bytes: &[u8], block: u32) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, bytes.len(), "store")?;
        let own = block + 1;
        for piece in at / PIECE..(at + bytes.len()) / PIECE {
            let (owner, reader) = (&mut buffer.owner[piece], buffer.reader[piece]);
            if *owner != NOBODY && *owner != own {
                let text = format!("{} + {} is written by two blocks", buffer.name, piece * PIECE);
                return Err(Fault::new(Rule::BlockRace, text));
            }
            if reader != NOBODY && reader != own {
                let text = format!(
                    "{} + {} is written, but another block reads it in this launch",
                    buffer.name,
                    piece * PIECE
                );
                return Err(Fault::new(Rule::BlockRace, text));
            }
            *owner = own;
        }
        buffer.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        buffer.written[at..at + bytes.len()].fill(true);
        Ok(())
    }

    /// Writes `bytes`, to which any block may add from now on, and nobody before.
    pub(crate) fn begin(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, bytes.len(), "store")?;
        let pieces = at / PIECE..(at + bytes.len()) / PIECE;
        let touched = |by: &[u32]| by[pieces.clone()].iter().any(|block| *block != NOBODY);
        if touched(&buffer.owner) || touched(&buffer.reader) {
            let text =
                format!("{} + {at} is written in bulk, but was used before in this launch", buffer.name);
            return Err(Fault::new(Rule::BlockRace, text));
        }
        buffer.owner[pieces].fill(ATOMIC);
        buffer.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        buffer.written[at..at + bytes.len()].fill(true);
        Ok(())
    }

    /// Counts one more, as no other access in between could.
    pub(crate) fn advance(&mut self, address: u64) -> Result<(), Fault> {
        let count = self.count(address)?.wrapping_add(1);
        let (buffer, at) = self.find(address, 4, "reduction")?;
        buffer.owner[at / PIECE..(at + 4) / PIECE].fill(ATOMIC);
        buffer.bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    /// What a counter says, which other blocks may advance.
    pub(crate) fn count(&mut self, address: u64) -> Result<u32, Fault> {
        let (buffer, at) = self.find(address, 4, "counter")?;
        if !buffer.written[at..at + 4].iter().all(|&written| written) {
            let text = format!("{} + {at} counts before it is zeroed", buffer.name);
            return Err(Fault::new(Rule::Uninitialised, text));
        }
        let owners = &buffer.owner[at / PIECE..(at + 4) / PIECE];
        if owners.iter().any(|owner| !matches!(*owner, NOBODY | ATOMIC)) {
            let text = format!("{} + {at} is written by a store and is a counter", buffer.name);
            return Err(Fault::new(Rule::BlockRace, text));
        }
        Ok(u32::from_le_bytes(buffer.bytes[at..at + 4].try_into().expect("four bytes")))
    }

    /// Adds to neighbouring floats, as no other access in between could.
    pub(crate) fn add_f32(&mut self, address: u64, values: &[f32]) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, 4 * values.len(), "reduction")?;
        for (value, at) in values.iter().zip((at..).step_by(4)) {
            let pieces = at / PIECE..(at + 4) / PIECE;
            if buffer.owner[pieces.clone()].iter().any(|owner| !matches!(*owner, NOBODY | ATOMIC)) {
                let text = format!("{} + {at} is written by a store and by a reduction", buffer.name);
                return Err(Fault::new(Rule::BlockRace, text));
            }
            if buffer.reader[pieces.clone()].iter().any(|reader| *reader != NOBODY) {
                let text = format!("{} + {at} is added to, but read in the same launch", buffer.name);
                return Err(Fault::new(Rule::BlockRace, text));
            }
            buffer.owner[pieces].fill(ATOMIC);
            if !buffer.written[at..at + 4].iter().all(|&w| w) {
                let text = format!("{} + {at} is added to before it is zeroed", buffer.name);
                return Err(Fault::new(Rule::Uninitialised, text));
            }
            let cell: &mut [u8; 4] = (&mut buffer.bytes[at..at + 4]).try_into().expect("four bytes");
            *cell = (f32::from_le_bytes(*cell) + value).to_le_bytes();
        }
        Ok(())
    }
}
