//! What the choice of kernels depends on about a GPU.
use std::fmt;

/// What a GPU offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gpu {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Dynamic shared memory that one block may ask for.
    pub smem_per_block_bytes: u32,
    /// How many blocks of a kernel that fills a multiprocessor run at once.
    pub sm_count: u32,
}

impl Gpu {
    /// An H100 or H200.
    pub const HOPPER: Gpu = Gpu { compute_capability: (9, 0), smem_per_block_bytes: 232_448, sm_count: 132 };
    /// An A100.
    pub const AMPERE: Gpu = Gpu { compute_capability: (8, 0), smem_per_block_bytes: 166_912, sm_count: 108 };
    /// The least that runs these kernels: Ada, and Ampere's consumer GPUs.
    pub const SMALL: Gpu = Gpu { compute_capability: (8, 6), smem_per_block_bytes: 101_376, sm_count: 84 };

    /// Whether Hopper's own kernels run: those of no other architecture do, earlier or later.
    pub fn is_hopper(&self) -> bool {
        self.compute_capability == (9, 0)
    }

    /// Whether four floats are added to memory at a time.
    pub(crate) fn adds_four_floats(&self) -> bool {
        self.compute_capability >= (9, 0)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((major, minor), kib) = (self.compute_capability, self.smem_per_block_bytes / 1024);
        write!(f, "compute capability {major}.{minor}, {kib} KiB of shared memory a block")
    }
}
