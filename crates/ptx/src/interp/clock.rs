//! Vector clocks: what each warp knows to have happened in the others.
//!
//! An access by warp `w` at its time `t` happened before now exactly if our clock's entry for `w` is at least `t`.
//! Barriers join clocks. Happens-before race detection in this form is Lamport's and Mattern's; FastTrack (Flanagan,
//! Freund 2009) is the variant that keeps one epoch per location, as [`Shared`](super::shared::Shared) does for writes.

/// Times of all warps of a block, as far as somebody knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(pub(crate) Vec<u32>);

impl Clock {
    pub(crate) fn new(warps: usize) -> Clock {
        Clock(vec![0; warps])
    }

    /// Learns what `other` knows.
    pub(crate) fn join(&mut self, other: &Clock) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    pub(crate) fn knows(&self, warp: usize, time: u32) -> bool {
        self.0[warp] >= time
    }
}
