//! Tensors that Hopper's copy engine knows, and boxes of them.
use super::mbarrier::Filling;
use super::memory::SmemAddr;
use super::scope::{Cta, Thread};
use super::value::Val;
use crate::kernel::Param;
use crate::ops::bulk::BulkGroup;
use crate::ops::tensor::{Place, TensorAddress, TensorLoad, TensorStore};
use crate::tensor_map::TensorMap;
use crate::types::{Src, U32, U64, Width};

/// A tensor that is a parameter of the kernel: see [`TensorMap`](crate::TensorMap).
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'k>(Val<'k, U64>);

impl<'k> Cta<'k> {
    /// The next parameter of the kernel: a tensor.
    #[track_caller]
    pub fn param_tensor(self, name: &'static str) -> Tensor<'k> {
        let index = self.0.add_param(Param { name, ty: Param::TENSOR });
        let dst = self.0.register(Width::W64);
        self.0.emit(TensorAddress { dst, index, name });
        Tensor(Val::new(self.0, Src::Reg(dst)))
    }
}

/// Where a box begins in dimensions 1 to 3, which may be outside: a negative row is a huge number here.
#[derive(Clone, Copy, Debug)]
pub struct BoxStart<'k> {
    others: [Val<'k, U32>; 3],
    wraps: bool,
}

impl<'k> From<[Val<'k, U32>; 3]> for BoxStart<'k> {
    fn from(others: [Val<'k, U32>; 3]) -> Self {
        BoxStart { others, wraps: false }
    }
}

impl<'k> BoxStart<'k> {
    /// Row `row` of a sequence of `len` rows behind `first` others: see [`TensorMap::packed`](crate::TensorMap::packed).
    #[track_caller]
    pub fn packed([first, len]: [Val<'k, U32>; 2], row: Val<'k, U32>, third: Val<'k, U32>) -> Self {
        BoxStart { others: [row - len + TensorMap::PACKED_END, third, first + len], wraps: true }
    }
}

impl<'k> Tensor<'k> {
    /// As [`at`](Self::at), from a column that is known on the GPU alone.
    pub fn at_columns(self, column: Val<'k, U32>, start: impl Into<BoxStart<'k>>) -> TensorBox {
        self.place(column.src, start.into())
    }

    /// The box that begins there.
    pub fn at(self, column: u32, start: impl Into<BoxStart<'k>>) -> TensorBox {
        self.place(Src::Imm(column.into()), start.into())
    }

    fn place(self, column: Src, BoxStart { others: [row, third, fourth], wraps }: BoxStart<'k>) -> TensorBox {
        let coordinates = [column, row.src, third.src, fourth.src];
        TensorBox(Place { tensor: self.0.src, coordinates, wraps })
    }
}

/// A box of a tensor.
#[derive(Clone, Debug)]
pub struct TensorBox(Place);

impl<'k> Filling<'k> {
    /// Brings a box to so many bytes behind the stage's start, a multiple of 1024.
    #[track_caller]
    pub fn load(&self, t: Thread<'k>, offset: u32, from: TensorBox) {
        let (to, barrier) = (self.address().at(offset).address(), self.barrier());
        t.0.emit(TensorLoad { to, from: from.0, barrier });
    }
}

impl<'k> Thread<'k> {
    /// Starts to copy boxes from shared to global memory, as one group. What was stored there must be fenced for the
    /// asynchronous proxy; it may be overwritten after [`wait_stored`](Self::wait_stored).
    #[track_caller]
    pub fn store_boxes(self, boxes: impl IntoIterator<Item = (SmemAddr<'k>, TensorBox)>) {
        for (from, to) in boxes {
            self.0.emit(TensorStore { to: to.0, from: from.address() });
        }
        self.0.emit(BulkGroup::Commit);
    }

    /// Waits until all boxes that this thread stores have been read.
    #[track_caller]
    pub fn wait_stored(self) {
        self.0.emit(BulkGroup::WaitRead(0));
    }

    /// Waits until all that this thread stores or adds in bulk is there, for other blocks that
    /// [wait](Self::wait_counter) for this one.
    #[track_caller]
    pub fn wait_written(self) {
        self.0.emit(BulkGroup::Wait);
    }
}
