//! The builder: Rust code that runs once and leaves a kernel behind.
//!
//! Two times, which look different: plain Rust `if` and `for` happen while building (a choice made, a loop unrolled);
//! what happens on the GPU is a method that takes a closure ([`Thread::when`], [`Cta::while_`]).

mod bulk;
mod control;
mod fragment;
mod mbarrier;
mod memory;
mod operators;
mod ring;
mod scope;
mod tensor;
mod tile;
mod value;
mod warpgroup;

pub use fragment::Acc;
pub use mbarrier::{BulkRing, BulkRingConsumer, BulkRingProducer, Filling, FullStage, Mbarrier};
pub use memory::{GlobalAddr, SmemAddr};
pub use ring::{CopyRing, FullSlot, PendingCopy};
pub use scope::{Cta, Thread, Warp};
pub use tensor::{BoxStart, Tensor, TensorBox};
pub use tile::{Order, TileLanes, TileLayout, TileThread};
pub use value::{Operand, Val, Var};
pub use warpgroup::{BoxTile, Columns, PendingProduct, Product, Rows, Warpgroup};

use crate::instruction::{Instruction, Label, Line};
use crate::interp::Region;
use crate::kernel::{Kernel, Param};
use crate::types::{Reg, Width};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::panic::Location;

/// What a kernel is launched with, besides its arguments.
///
/// ```
/// use signflash_ptx::{Builder, LaunchBounds};
/// let kernel = Builder::build("nothing", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |_| {});
/// assert!(kernel.ptx().contains(".visible .entry nothing("));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBounds {
    /// Threads a block, a multiple of 32.
    pub block_threads: u32,
    /// How many blocks a multiprocessor should hold at once: the driver's compiler limits registers to that.
    pub min_blocks_per_sm: u32,
}

/// Collects a kernel's instructions. Values hand it on; nobody names it.
#[derive(Debug)]
pub struct Builder {
    bounds: LaunchBounds,
    lines: RefCell<Vec<Line>>,
    labels: RefCell<Vec<usize>>,
    registers: [Cell<u32>; 3],
    params: RefCell<Vec<Param>>,
    regions: RefCell<Vec<Region>>,
    smem_bytes: Cell<u32>,
    smem_gaps: RefCell<Vec<Range<u32>>>,
    copies: RefCell<ring::Copies>,
    products: RefCell<warpgroup::InFlight>,
}

impl Builder {
    /// Runs `body` once and keeps what it emitted.
    ///
    /// # Panics
    /// On a mistake in the kernel that can be seen while building: a ring's slot that is never released, a loop that
    /// changes how many copies are in flight, a block of 33 threads.
    pub fn build(name: &str, bounds: LaunchBounds, body: impl FnOnce(Cta<'_>)) -> Kernel {
        assert!(
            bounds.block_threads.is_multiple_of(32) && bounds.block_threads > 0,
            "a block is made of whole warps"
        );
        let builder = Builder {
            bounds,
            lines: RefCell::default(),
            labels: RefCell::default(),
            registers: [Cell::new(0), Cell::new(0), Cell::new(0)],
            params: RefCell::default(),
            regions: RefCell::default(),
            smem_bytes: Cell::new(0),
            smem_gaps: RefCell::default(),
            copies: RefCell::default(),
            products: RefCell::default(),
        };
        body(Cta::new(&builder));
        builder.copies.borrow().check_end(name);
        Kernel {
            name: name.to_owned(),
            block_threads: bounds.block_threads,
            min_blocks_per_sm: bounds.min_blocks_per_sm,
            params: builder.params.take(),
            regions: builder.regions.take(),
            smem_bytes: builder.smem_bytes.get(),
            registers: builder.registers.map(|count| count.get().max(1)),
            lines: builder.lines.take(),
            labels: builder.labels.take(),
        }
    }

    #[track_caller]
    pub(crate) fn emit(&self, instruction: impl Instruction + 'static) {
        let at = Location::caller();
        self.lines.borrow_mut().push(Line { instruction: Box::new(instruction), at });
    }

    pub(crate) fn register(&self, width: Width) -> Reg {
        let count = &self.registers[width as usize];
        count.set(count.get() + 1);
        Reg { width, index: count.get() - 1 }
    }

    /// A label that will be placed later.
    pub(crate) fn label(&self) -> Label {
        let mut labels = self.labels.borrow_mut();
        labels.push(usize::MAX);
        Label(labels.len() as u32 - 1)
    }

    /// The label stands before the next instruction.
    pub(crate) fn place(&self, label: Label) {
        self.labels.borrow_mut()[label.0 as usize] = self.lines.borrow().len();
    }

    pub(crate) fn add_param(&self, param: Param) -> usize {
        let mut params = self.params.borrow_mut();
        assert!(params.iter().all(|p| p.name != param.name), "two parameters are called `{}`", param.name);
        params.push(param);
        params.len() - 1
    }

    /// Lays `bytes` out in a gap that alignment has left, or behind what is there.
    pub(crate) fn add_region(&self, name: &str, bytes: u32, align: u32) -> u32 {
        let mut gaps = self.smem_gaps.borrow_mut();
        let start_in = |gap: &Range<u32>| gap.start.next_multiple_of(align);
        let offset = match gaps.iter_mut().find(|gap| start_in(gap) + bytes <= gap.end) {
            Some(gap) => {
                let offset = start_in(gap);
                gap.start = offset + bytes;
                offset
            }
            None => {
                let end = self.smem_bytes.get();
                let offset = end.next_multiple_of(align);
                gaps.push(end..offset);
                self.smem_bytes.set(offset + bytes);
                offset
            }
        };
        self.regions.borrow_mut().push(Region { name: name.to_owned(), offset, bytes });
        offset
    }
}
