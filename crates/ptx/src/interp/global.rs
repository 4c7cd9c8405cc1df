//! Global memory: named buffers with gaps between them, so that no address past one is inside another.
use super::fault::{Fault, Rule};

const FIRST: u64 = 1 << 40;
const GAP: u64 = 1 << 20;
const WORD: u64 = 4;
const NOBODY: u32 = 0;
const ATOMIC: u32 = u32::MAX;

/// A pointer that a kernel can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer(pub u64);

#[derive(Debug)]
struct Buffer {
    name: String,
    base: u64,
    bytes: Vec<u8>,
    written: Vec<bool>,
    /// For each word, the block that wrote it in this launch, plus one.
    owner: Vec<u32>,
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
            owner: vec![NOBODY; len.div_ceil(WORD as usize)],
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
        }
    }

    fn find(&mut self, address: u64, len: usize, what: &str) -> Result<(&mut Buffer, usize), Fault> {
        if !address.is_multiple_of(len as u64) {
            return Err(Fault::new(
                Rule::Misaligned,
                format!("global {what} of {len} bytes at {address:#x}"),
            ));
        }
        let after = self.buffers.partition_point(|b| b.base <= address);
        let near =
            after.checked_sub(1).map(|i| (self.buffers[i].name.clone(), address - self.buffers[i].base));
        if let Some((name, offset)) = &near {
            let buffer = &mut self.buffers[after - 1];
            if *offset as usize + len <= buffer.bytes.len() {
                return Ok((buffer, *offset as usize));
            }
            let size = buffer.bytes.len();
            let text = format!("global {what} of {len} bytes at {name} + {offset}, which has {size} bytes");
            return Err(Fault::new(Rule::OutOfBounds, text));
        }
        Err(Fault::new(
            Rule::OutOfBounds,
            format!("global {what} of {len} bytes at {address:#x}, before every buffer"),
        ))
    }

    /// Reads `out.len()` bytes.
    pub(crate) fn load(&mut self, address: u64, out: &mut [u8], block: u32) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, out.len(), "load")?;
        let range = at..at + out.len();
        if let Some(byte) = range.clone().find(|&i| !buffer.written[i]) {
            return Err(Fault::new(
                Rule::Uninitialised,
                format!("{} + {byte} is read before it is written", buffer.name),
            ));
        }
        for word in at / 4..=(range.end - 1) / 4 {
            let owner = buffer.owner[word];
            if owner != NOBODY && owner != block + 1 {
                let text = format!(
                    "{} + {} is read, but another block writes it in this launch",
                    buffer.name,
                    word * 4
                );
                return Err(Fault::new(Rule::BlockRace, text));
            }
        }
        out.copy_from_slice(&buffer.bytes[range]);
        Ok(())
    }

    /// Writes `bytes`.
    pub(crate) fn store(&mut self, address: u64, bytes: &[u8], block: u32) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, bytes.len(), "store")?;
        // A word of which two blocks write a half each is no conflict, so halves are not tracked.
        if bytes.len() >= 4 {
            for word in at / 4..(at + bytes.len()).div_ceil(4) {
                let owner = &mut buffer.owner[word];
                if *owner != NOBODY && *owner != block + 1 {
                    let text = format!("{} + {} is written by two blocks", buffer.name, word * 4);
                    return Err(Fault::new(Rule::BlockRace, text));
                }
                *owner = block + 1;
            }
        }
        buffer.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        buffer.written[at..at + bytes.len()].fill(true);
        Ok(())
    }

    /// Adds to one float, as no other access in between could.
    pub(crate) fn add_f32(&mut self, address: u64, value: f32) -> Result<(), Fault> {
        let (buffer, at) = self.find(address, 4, "reduction")?;
        let owner = &mut buffer.owner[at / 4];
        if !matches!(*owner, NOBODY | ATOMIC) {
            let text = format!("{} + {at} is written by a store and by a reduction", buffer.name);
            return Err(Fault::new(Rule::BlockRace, text));
        }
        *owner = ATOMIC;
        if !buffer.written[at..at + 4].iter().all(|&w| w) {
            return Err(Fault::new(
                Rule::Uninitialised,
                format!("{} + {at} is added to before it is zeroed", buffer.name),
            ));
        }
        let cell: &mut [u8; 4] = (&mut buffer.bytes[at..at + 4]).try_into().expect("four bytes");
        *cell = (f32::from_le_bytes(*cell) + value).to_le_bytes();
        Ok(())
    }
}
