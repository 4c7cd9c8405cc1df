//! Shared memory of one block, with a record of who touched each word last.
use super::fault::{At, Fault, Rule};
use super::warp::Warp;
use std::panic::Location;

/// Where a block's shared memory starts; 0 stays an error.
pub(crate) const SMEM_BASE: u32 = 1024;
/// Records are kept for words of four bytes: two warps that write the two halves of one word are reported.
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

#[derive(Clone, Copy, Debug)]
struct Write {
    warp: u8,
    lane: u8,
    /// Written by the asynchronous proxy.
    proxy: bool,
    time: u32,
    meeting: u32,
    at: Option<&'static Location<'static>>,
}

const NEVER: Write = Write { warp: 0, lane: 0, proxy: false, time: 0, meeting: 0, at: None };

/// An asynchronous copy that owns shared words until somebody waits for it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) at: &'static Location<'static>,
    /// `true`: it writes shared memory. `false`: it reads.
    pub(crate) writes: bool,
    pub(crate) words: Vec<(u32, u32)>,
    pub(crate) bytes: Vec<(u32, Vec<u8>)>,
    pub(crate) live: bool,
}

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    written: Vec<bool>,
    writes: Vec<Write>,
    /// For each word, when each warp last read it.
    reads: Vec<u32>,
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
            reads: vec![0; words * warps],
            owner: vec![0; words],
            flights: Vec::new(),
            regions: regions.to_vec(),
            warps,
        }
    }

    /// The asynchronous proxy's place in clocks: behind all warps.
    pub(crate) fn proxy(&self) -> usize {
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
        if !(address as usize).is_multiple_of(len) {
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

    fn check_flight(&self, word: usize, writing: bool, how: &str) -> Result<(), Fault> {
        let Some(index) = self.owner[word].checked_sub(1) else { return Ok(()) };
        let flight = &self.flights[index as usize];
        if !flight.live || (!writing && !flight.writes) {
            return Ok(());
        }
        let (name, at) = (self.name(word * WORD), At(flight.at));
        Err(Fault::new(Rule::InFlight, format!("{name} is {how} while the copy issued at {at} is in flight")))
    }

    fn check_written_before(
        &self,
        warp: &Warp,
        lane: Option<u8>,
        word: usize,
        how: &str,
    ) -> Result<(), Fault> {
        let write = self.writes[word];
        let Some(at) = write.at else { return Ok(()) };
        let other = write.warp as usize;
        let unordered = if other == warp.index && !write.proxy {
            write.meeting == warp.meeting && lane.is_some_and(|lane| lane != write.lane)
        } else {
            !warp.clock.knows(other, write.time)
        };
        if !unordered {
            return Ok(());
        }
        let who = match other {
            _ if other == self.warps => "an asynchronous copy".to_owned(),
            _ if other == warp.index => format!("lane {}", write.lane),
            _ => format!("warp {other}"),
        };
        let text =
            format!("{} is {how} with no barrier after {who} wrote it at {}", self.name(word * WORD), At(at));
        Err(Fault::new(Rule::Race, text))
    }

    /// An ordinary load by one lane.
    pub(crate) fn load(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u32,
        out: &mut [u8],
    ) -> Result<(), Fault> {
        let offset = self.locate(address, out.len(), "load")?;
        for word in Self::words(offset, out.len()) {
            self.check_flight(word, false, "read")?;
            self.check_written_before(warp, Some(lane as u8), word, "read")?;
            self.reads[word * self.warps + warp.index] = warp.now();
        }
        self.copy_out(offset, out)
    }

    fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<(), Fault> {
        let range = offset..offset + out.len();
        if let Some(byte) = range.clone().find(|&byte| !self.written[byte]) {
            return Err(Fault::new(
                Rule::Uninitialised,
                format!("{} is read before it is written", self.name(byte)),
            ));
        }
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn check_store(&self, warp: &Warp, lane: Option<u8>, word: usize) -> Result<(), Fault> {
        self.check_flight(word, true, "written")?;
        self.check_written_before(warp, lane, word, "written")?;
        for other in (0..self.warps).filter(|&other| other != warp.index) {
            let time = self.reads[word * self.warps + other];
            if time != 0 && !warp.clock.knows(other, time) {
                let name = self.name(word * WORD);
                return Err(Fault::new(
                    Rule::Race,
                    format!("{name} is overwritten while warp {other} may still read it"),
                ));
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
        let (time, meeting) = (warp.now(), warp.meeting);
        for word in Self::words(offset, bytes.len()) {
            // The halves of one word may be written by two lanes of one warp.
            let lane_of_word = (bytes.len() >= WORD).then_some(lane as u8);
            self.check_store(warp, lane_of_word, word)?;
            self.writes[word] =
                Write { warp: warp.index as u8, lane: lane as u8, proxy: false, time, meeting, at: Some(at) };
        }
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.written[offset..offset + bytes.len()].fill(true);
        Ok(())
    }

    /// A new asynchronous copy.
    pub(crate) fn depart(&mut self, writes: bool, at: &'static Location<'static>) -> u32 {
        self.flights.push(Flight { at, writes, words: Vec::new(), bytes: Vec::new(), live: true });
        self.flights.len() as u32 - 1
    }

    /// A flight takes hold of shared memory that it will write.
    pub(crate) fn hold_for_write(
        &mut self,
        warp: &Warp,
        flight: u32,
        address: u32,
        bytes: Vec<u8>,
    ) -> Result<(), Fault> {
        let offset = self.locate(address, bytes.len().min(16), "copy")?;
        for word in Self::words(offset, bytes.len()) {
            self.check_store(warp, None, word)?;
            self.owner[word] = flight + 1;
        }
        let words = Self::words(offset, bytes.len());
        self.flights[flight as usize].words.push((words.start as u32, words.end as u32));
        self.flights[flight as usize].bytes.push((offset as u32, bytes));
        Ok(())
    }

    /// A flight takes hold of shared memory that it reads through the asynchronous proxy.
    pub(crate) fn hold_for_read(
        &mut self,
        warp: &Warp,
        flight: u32,
        address: u32,
        len: usize,
    ) -> Result<Vec<u8>, Fault> {
        let offset = self.locate(address, 16, "copy")?;
        for word in Self::words(offset, len) {
            self.check_flight(word, false, "read")?;
            self.check_written_before(warp, None, word, "read")?;
            let write = self.writes[word];
            if let Some(at) =
                write.at.filter(|_| !write.proxy && !warp.fenced.knows(write.warp as usize, write.time))
            {
                let text = format!(
                    "{} was written at {} and is read by the asynchronous proxy with no fence.proxy.async after it",
                    self.name(word * WORD),
                    At(at)
                );
                return Err(Fault::new(Rule::MissingFence, text));
            }
            self.owner[word] = flight + 1;
        }
        let words = Self::words(offset, len);
        self.flights[flight as usize].words.push((words.start as u32, words.end as u32));
        let mut out = vec![0; len];
        self.copy_out(offset, &mut out)?;
        Ok(out)
    }

    /// What a flight brings is there, as if `warp` had written it now; `proxy` if the asynchronous proxy did.
    pub(crate) fn land(&mut self, flight: u32, warp: usize, time: u32, meeting: u32, proxy: bool) {
        let flight = &mut self.flights[flight as usize];
        if !flight.live {
            return;
        }
        flight.live = false;
        let record = Write { warp: warp as u8, lane: 255, proxy, time, meeting, at: Some(flight.at) };
        for &(start, end) in flight.words.iter().filter(|_| flight.writes) {
            self.writes[start as usize..end as usize].fill(record);
        }
        for (offset, bytes) in std::mem::take(&mut flight.bytes) {
            let offset = offset as usize;
            self.written[offset..offset + bytes.len()].fill(true);
            self.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// How often the 32 banks must be visited to serve the lanes' addresses: 1 is best.
pub(crate) fn wavefronts(addresses: impl Iterator<Item = u32>, len: usize) -> u32 {
    let mut words: Vec<u32> =
        addresses.flat_map(|a| (0..len.div_ceil(WORD) as u32).map(move |i| a / WORD as u32 + i)).collect();
    words.sort_unstable();
    words.dedup();
    let mut load = [0u32; BANKS];
    for word in words {
        load[word as usize % BANKS] += 1;
    }
    load.into_iter().max().unwrap_or(0)
}
