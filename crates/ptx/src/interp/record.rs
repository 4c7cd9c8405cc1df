//! Who touched a word of shared memory last.
use std::panic::Location;

/// In place of a lane's number: all of them, or none in particular.
pub(crate) const NO_LANE: usize = 32;

/// Who wrote a word last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    /// The warp; for a bulk copy, the mbarrier that it completed on.
    pub(super) warp: u16,
    pub(super) lane: u8,
    /// Written by the asynchronous proxy.
    pub(super) proxy: bool,
    pub(super) time: u32,
    pub(super) at: Option<&'static Location<'static>>,
}

pub(super) const NEVER: Write = Write { warp: 0, lane: 0, proxy: false, time: 0, at: None };

/// When a warp last read a word, and which lane, or `NO_LANE` for several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read(u32);

const LANE_BITS: u32 = 6;

impl Read {
    pub(super) fn new(time: u32, lane: usize) -> Read {
        debug_assert!(time < 1 << (32 - LANE_BITS), "a block that synchronises 67 million times");
        Read(time << LANE_BITS | lane as u32)
    }

    pub(super) fn time(self) -> u32 {
        self.0 >> LANE_BITS
    }

    pub(super) fn lane(self) -> usize {
        (self.0 & ((1 << LANE_BITS) - 1)) as usize
    }

    /// By a product that is under way: before nothing that anybody does.
    pub(super) const PENDING: Read = Read(u32::MAX << LANE_BITS | NO_LANE as u32);

    /// With one more read. An earlier one by another lane counts until the lanes have met.
    pub(super) fn and(self, time: u32, lane: usize, met: u32) -> Read {
        if self.0 == Read::PENDING.0 {
            return self;
        }
        Read::new(time, if self.time() > met && self.lane() != lane { NO_LANE } else { lane })
    }
}
