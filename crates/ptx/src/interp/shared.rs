//! Shared memory of one block, with a record of who touched each word last.
use super::fault::{At, Fault, Rule};
pub(crate) use super::record::NO_LANE;
use super::record::{NEVER, Read, Write};
use super::warp::Warp;
use std::panic::Location;

/// Where a block's shared memory starts; 0 stays an error.
pub(crate) const SMEM_BASE: u32 = 1024;
/// Records (`record.rs`) are kept for words of four bytes: two warps that write the two halves of one word are reported.
const WORD: usize = 4;
const BANKS: usize = 32;

/// A named part of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub name: String,
    /// First byte.
    pub offset: u32,
    /// Size.
    pub bytes: u32,
}

/// An asynchronous copy that owns shared words until somebody waits for it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) at: &'static Location<'static>,
    /// `true`: it writes shared memory. `false`: it reads.
    pub(crate) writes: bool,
    lane: usize,
    pub(crate) words: Vec<(u32, u32)>,
    pub(crate) bytes: Vec<(u32, Vec<u8>)>,
    pub(crate) live: bool,
}

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    written: Vec<bool>,
    writes: Vec<Write>,
    /// For each word, how each warp last read it.
    reads: Vec<Read>,
    /// For each word, the flight that owns it, plus one.
    owner: Vec<u32>,
    pub(crate) flights: Vec<Flight>,
    regions: Vec<Region>,
    warps: usize,
}

impl Shared {
    pub(crate) fn new(bytes: u32, warps: usize, regions: &[Region]) -> Shared {
        let words = (bytes as usize).div_ceil(WORD);
        Shared {
            bytes: vec![0; words * WORD],
            written: vec![false; words * WORD],
            writes: vec![NEVER; words],
            reads: vec![Read::default(); words * warps],
            owner: vec![0; words],
            flights: Vec::new(),
            regions: regions.to_vec(),
            warps,
        }
    }

    /// How many warps there are.
    pub(crate) fn warps(&self) -> usize {
        self.warps
    }

    /// `k + 64`, from an offset.
    pub(crate) fn name(&self, offset: usize) -> String {
        let holds = |r: &&Region| (r.offset..r.offset + r.bytes).contains(&(offset as u32));
        match self.regions.iter().find(holds) {
            Some(region) => format!("shared `{}` + {}", region.name, offset - region.offset as usize),
            None => format!("shared memory + {offset}, which has no name,"),
        }
    }

    /// The offset of an access, if it is inside one region and aligned.
    pub(crate) fn locate(&self, address: u32, len: usize, what: &str) -> Result<usize, Fault> {
        let offset = address.wrapping_sub(SMEM_BASE) as usize;
        if address as usize & (len - 1) != 0 {
            // Sizes are powers of two.
            return Err(Fault::new(
                Rule::Misaligned,
                format!("{what} of {len} bytes at {}", self.name(offset)),
            ));
        }
        let holds = |r: &Region| offset >= r.offset as usize && offset + len <= (r.offset + r.bytes) as usize;
        if address < SMEM_BASE || offset + len > self.bytes.len() || !self.regions.iter().any(holds) {
            let text = format!("{what} of {len} bytes at shared address {address}, in {}", self.name(offset));
            return Err(Fault::new(Rule::OutOfBounds, text));
        }
        Ok(offset)
    }

    fn words(offset: usize, len: usize) -> std::ops::Range<usize> {
        offset / WORD..(offset + len).div_ceil(WORD)
    }

    #[inline]
    fn check_flight(&self, word: usize, writing: bool, how: &str) -> Result<(), Fault> {
        let Some(index) = self.owner[word].checked_sub(1) else { return Ok(()) };
        let flight = &self.flights[index as usize];
        if !flight.live || (!writing && !flight.writes) {
            return Ok(());
        }
        let (name, at) = (self.name(word * WORD), At(flight.at));
        Err(Fault::new(Rule::InFlight, format!("{name} is {how} while the copy issued at {at} is in flight")))
    }

    /// The last write of a word is before what this lane does now. For halves of a word, which two lanes may write,
    /// only other warps matter: `lane_matters` is false.
    #[inline]
    fn check_written_before(
        &self,
        warp: &Warp,
        lane: usize,
        lane_matters: bool,
        word: usize,
        how: &str,
    ) -> Result<(), Fault> {
        let write = self.writes[word];
        let Some(at) = write.at else { return Ok(()) };
        let other = write.warp as usize;
        let ordered = if other == warp.index {
            write.time <= warp.met || !lane_matters || (lane != NO_LANE && lane == write.lane.into())
        } else {
            warp.knows(lane, other, write.time)
        };
        if ordered { Ok(()) } else { Err(self.unordered(warp, word, how, at)) }
    }

    #[cold]
    fn unordered(&self, warp: &Warp, word: usize, how: &str, at: &'static Location<'static>) -> Fault {
        let write = self.writes[word];
        let who = match write.warp as usize {
            _ if write.proxy => "an asynchronous copy".to_owned(),
            _ if usize::from(write.lane) == NO_LANE => {
                "an asynchronous copy, or the warp together,".to_owned()
            }
            other if other == warp.index => format!("lane {}", write.lane),
            other => format!("warp {other}"),
        };
        let name = self.name(word * WORD);
        Fault::new(Rule::Race, format!("{name} is {how} with no barrier after {who} wrote it at {}", At(at)))
    }

    /// An ordinary load by one lane; by `NO_LANE`, for all of them.
    #[inline]
    pub(crate) fn load(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u32,
        out: &mut [u8],
    ) -> Result<(), Fault> {
        let offset = self.locate(address, out.len(), "load")?;
        let now = warp.now();
        for word in Self::words(offset, out.len()) {
            self.check_flight(word, false, "read")?;
            self.check_written_before(warp, lane, true, word, "read")?;
            let read = &mut self.reads[word * self.warps + warp.index];
            *read = read.and(now, lane, warp.met);
        }
        self.copy_out(offset, out)
    }

    fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<(), Fault> {
        let range = offset..offset + out.len();
        if !self.written[range.clone()].iter().all(|&written| written) {
            self.check_written(offset as u32 + SMEM_BASE, out.len())?;
        }
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn check_store(&self, warp: &Warp, lane: usize, lane_matters: bool, word: usize) -> Result<(), Fault> {
        self.check_flight(word, true, "written")?;
        self.check_written_before(warp, lane, lane_matters, word, "written")?;
        let reads = &self.reads[word * self.warps..(word + 1) * self.warps];
        for (other, read) in reads.iter().enumerate() {
            let time = read.time();
            if time == 0 || warp.known.clock.knows(other, time) && other != warp.index {
                continue;
            }
            let (ordered, who) = match other == warp.index {
                true => (
                    time <= warp.met || !lane_matters || read.lane() == lane && lane != NO_LANE,
                    "another lane".into(),
                ),
                false => (warp.knows(lane, other, time), format!("warp {other}")),
            };
            if !ordered {
                let name = self.name(word * WORD);
                let text = format!("{name} is overwritten while {who} may still read it");
                return Err(Fault::new(Rule::Race, text));
            }
        }
        Ok(())
    }

    /// An ordinary store by one lane.
    pub(crate) fn store(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u32,
        bytes: &[u8],
        at: &'static Location<'static>,
    ) -> Result<(), Fault> {
        let offset = self.locate(address, bytes.len(), "store")?;
        let write =
            Write { warp: warp.index as u16, lane: lane as u8, proxy: false, time: warp.now(), at: Some(at) };
        for word in Self::words(offset, bytes.len()) {
            // The halves of one word may be written by two lanes of one warp.
            self.check_store(warp, lane, bytes.len() >= WORD, word)?;
            self.writes[word] = write;
        }
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.written[offset..offset + bytes.len()].fill(true);
        Ok(())
    }

    /// A new asynchronous copy.
    pub(crate) fn depart(&mut self, writes: bool, lane: usize, at: &'static Location<'static>) -> u32 {
        self.flights.push(Flight { at, writes, lane, words: Vec::new(), bytes: Vec::new(), live: true });
        self.flights.len() as u32 - 1
    }

    /// A flight takes hold of shared memory that it will write, through the asynchronous proxy or not.
    pub(crate) fn hold_for_write(
        &mut self,
        warp: &Warp,
        lane: usize,
        flight: u32,
        address: u32,
        bytes: Vec<u8>,
        proxy: bool,
    ) -> Result<(), Fault> {
        let offset = self.locate(address, 16, "copy")?;
        self.check_end(offset, bytes.len())?;
        for word in Self::words(offset, bytes.len()) {
            self.check_store(warp, lane, true, word)?;
            if proxy {
                self.check_fenced(warp, lane, word, "overwritten")?;
            }
            self.owner[word] = flight + 1;
        }
        let words = Self::words(offset, bytes.len());
        self.flights[flight as usize].words.push((words.start as u32, words.end as u32));
        self.flights[flight as usize].bytes.push((offset as u32, bytes));
        Ok(())
    }

    /// A copy of many bytes ends inside the region where it starts.
    fn check_end(&self, offset: usize, len: usize) -> Result<(), Fault> {
        let starts = |r: &&Region| (r.offset as usize..(r.offset + r.bytes) as usize).contains(&offset);
        let inside = |r: &Region| offset + len <= (r.offset + r.bytes) as usize;
        if self.regions.iter().find(starts).is_some_and(inside) {
            return Ok(());
        }
        let text = format!("copy of {len} bytes at {}, past its end", self.name(offset));
        Err(Fault::new(Rule::OutOfBounds, text))
    }

    /// Ordinary stores to a word are visible to the asynchronous proxy.
    fn check_fenced(&self, warp: &Warp, lane: usize, word: usize, how: &str) -> Result<(), Fault> {
        let write = self.writes[word];
        let Some(at) = write.at else { return Ok(()) };
        if write.proxy || warp.knows_fenced(lane, write.warp.into(), write.time) {
            return Ok(());
        }
        let text = format!(
            "{} was written at {} and is {how} by the asynchronous proxy with no fence.proxy.async after it",
            self.name(word * WORD),
            At(at)
        );
        Err(Fault::new(Rule::MissingFence, text))
    }

    /// A flight takes hold of shared memory that it reads through the asynchronous proxy: its bytes, of which those
    /// that are used must [have been written](Self::check_written).
    pub(crate) fn hold_for_read(
        &mut self,
        warp: &Warp,
        lane: usize,
        flight: u32,
        address: u32,
        len: usize,
    ) -> Result<Vec<u8>, Fault> {
        let offset = self.locate(address, 16, "copy")?;
        self.check_end(offset, len)?;
        for word in Self::words(offset, len) {
            self.check_flight(word, false, "read")?;
            self.check_written_before(warp, lane, true, word, "read")?;
            self.check_fenced(warp, lane, word, "read")?;
            self.owner[word] = flight + 1;
        }
        let words = Self::words(offset, len);
        self.flights[flight as usize].words.push((words.start as u32, words.end as u32));
        Ok(self.bytes[offset..offset + len].to_vec())
    }

    /// Refuses bytes that nobody has written.
    pub(crate) fn check_written(&self, address: u32, len: usize) -> Result<(), Fault> {
        let offset = address.wrapping_sub(SMEM_BASE) as usize;
        match (offset..offset + len).find(|&byte| !self.written[byte]) {
            None => Ok(()),
            Some(byte) => {
                let text = format!("{} is read before it is written", self.name(byte));
                Err(Fault::new(Rule::Uninitialised, text))
            }
        }
    }

    /// A product reads 16 bytes through the asynchronous proxy until [`end_product_reads`](Self::end_product_reads);
    /// others may read them too. Their offset, and what they are.
    pub(crate) fn read_for_product(&mut self, warp: &Warp, address: u32) -> Result<(u32, [u8; 16]), Fault> {
        let offset = self.locate(address, 16, "operand")?;
        for word in Self::words(offset, 16) {
            self.check_flight(word, false, "read")?;
            self.check_written_before(warp, NO_LANE, true, word, "read")?;
            self.check_fenced(warp, NO_LANE, word, "read")?;
            self.reads[word * self.warps + warp.index] = Read::PENDING;
        }
        let mut out = [0; 16];
        self.copy_out(offset, &mut out)?;
        Ok((offset as u32, out))
    }

    /// Products of a warp have read the pieces `ended`; others of it still read those of `held`.
    pub(crate) fn end_product_reads(&mut self, warp: usize, ended: &[u32], held: &[u32], time: u32) {
        for (pieces, read) in [(ended, Read::new(time, NO_LANE)), (held, Read::PENDING)] {
            for word in pieces.iter().flat_map(|offset| Self::words(*offset as usize, 16)) {
                self.reads[word * self.warps + warp] = read;
            }
        }
    }

    /// A flight is over, as if `warp` (of a bulk load, its mbarrier) had made its accesses now; `proxy` if the
    /// asynchronous proxy wrote.
    pub(crate) fn land(&mut self, flight: u32, warp: usize, time: u32, proxy: bool) {
        let flight = &mut self.flights[flight as usize];
        if !flight.live {
            return;
        }
        flight.live = false;
        let lane = flight.lane;
        let record = Write { warp: warp as u16, lane: NO_LANE as u8, proxy, time, at: Some(flight.at) };
        for (start, end) in std::mem::take(&mut flight.words) {
            let words = start as usize..end as usize;
            match flight.writes {
                true => self.writes[words].fill(record),
                false => words.for_each(|word| self.reads[word * self.warps + warp] = Read::new(time, lane)),
            }
        }
        for (offset, bytes) in std::mem::take(&mut flight.bytes) {
            let offset = offset as usize;
            self.written[offset..offset + bytes.len()].fill(true);
            self.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// How often the 32 banks must be visited to serve the lanes of `mask`: 1 is best for words, 4 for 16 bytes a lane,
/// which are served to 8 lanes at a time.
pub(crate) fn wavefronts(addresses: &[u32; 32], mask: u32, len: usize) -> u32 {
    // An access is aligned, so that it takes one of so many groups of banks, and as many lanes are served at once.
    let unit = len.max(WORD);
    let groups = BANKS * WORD / unit;
    let visits = |first: usize| {
        // What each group of banks is asked for: the first piece, and behind it, in one list for all, those that
        // conflict.
        let (mut firsts, mut others) = ([u32::MAX; BANKS], [0; BANKS]);
        let (mut load, mut conflicts) = ([0u32; BANKS], 0);
        for lane in (first..first + groups).filter(|lane| mask >> lane & 1 == 1) {
            let piece = addresses[lane] / unit as u32;
            let group = piece as usize % groups;
            // Several lanes may want one piece: that costs nothing.
            if firsts[group] == piece || others[..conflicts].contains(&piece) {
                continue;
            }
            load[group] += 1;
            if load[group] == 1 {
                firsts[group] = piece;
            } else {
                others[conflicts] = piece;
                conflicts += 1;
            }
        }
        load.into_iter().max().unwrap_or(0)
    };
    (0..32).step_by(groups).map(visits).sum()
}
