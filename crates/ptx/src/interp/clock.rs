//! Vector clocks: what each warp knows to have happened in the others.
//!
//! An access by warp `w` at its time `t` happened before now exactly if our clock's entry for `w` is at least `t`.
//! Barriers join clocks. Happens-before race detection in this form is Lamport's and Mattern's; FastTrack (Flanagan,
//! Freund 2009) is the variant that keeps one epoch per location, as [`Shared`](super::shared::Shared) does for writes.

/// Times of all warps of a block, as far as somebody knows them. Behind the warps come the mbarriers: the copies that
/// complete on one count as accesses by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(pub(crate) Vec<u32>);

impl Clock {
    pub(crate) fn new(warps: usize) -> Clock {
        Clock(vec![0; warps])
    }

    /// Learns what `other` knows.
    pub(crate) fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Learns of one time.
    pub(crate) fn learn(&mut self, who: usize, time: u32) {
        if self.0.len() <= who {
            self.0.resize(who + 1, 0);
        }
        self.0[who] = self.0[who].max(time);
    }

    #[inline]
    pub(crate) fn knows(&self, who: usize, time: u32) -> bool {
        self.0.get(who).copied().unwrap_or(0) >= time
    }
}

/// What somebody knows: accesses that are before its next one, and those that are visible to the asynchronous proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Knowledge {
    pub(crate) clock: Clock,
    pub(crate) fenced: Clock,
}

impl Knowledge {
    pub(crate) fn join(&mut self, other: &Knowledge) {
        self.clock.join(&other.clock);
        self.fenced.join(&other.fenced);
    }
}
