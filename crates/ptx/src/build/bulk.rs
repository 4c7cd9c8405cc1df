//! Bulk copies out of shared memory, which no ring waits for.
use super::memory::{GlobalAddr, SmemAddr};
use super::scope::Thread;
use crate::ops::barrier::ProxyFence;
use crate::ops::bulk::{BulkGroup, BulkStore};

impl<'k> Thread<'k> {
    /// This thread's ordinary stores to shared memory can be read by bulk copies and by wgmma, by whoever meets this
    /// thread at a barrier afterwards.
    #[track_caller]
    pub fn fence_proxy_async(self) {
        self.0.emit(ProxyFence);
    }

    /// Starts to copy contiguous bytes, a multiple of 16, from shared to global memory.
    /// [`wait_stored`](Self::wait_stored) before they are overwritten there, and [`wait_written`](Self::wait_written)
    /// before another block is told that it may add to them here.
    #[track_caller]
    pub fn bulk_store(self, to: GlobalAddr<'k>, from: SmemAddr<'k>, bytes: u32) {
        self.bulk(to, from, bytes, false);
    }

    /// Starts to add contiguous f32 numbers, a multiple of 16 bytes, in shared memory to those in global memory. In
    /// which order blocks add is not known. [`wait_stored`](Self::wait_stored) before they are overwritten.
    #[track_caller]
    pub fn bulk_add(self, to: GlobalAddr<'k>, from: SmemAddr<'k>, bytes: u32) {
        self.bulk(to, from, bytes, true);
    }

    #[track_caller]
    fn bulk(self, to: GlobalAddr<'k>, from: SmemAddr<'k>, bytes: u32, add: bool) {
        assert!(
            bytes > 0 && bytes.is_multiple_of(16),
            "bulk copies are of whole pieces of 16 bytes, not {bytes}"
        );
        self.0.emit(BulkStore { to: to.address(), from: from.address(), bytes, add });
        self.0.emit(BulkGroup::Commit);
    }
}
