//! Tensors that Hopper's copy engine knows, and boxes of them.
use super::mbarrier::Filling;
use super::memory::SmemAddr;
use super::scope::{Cta, Thread};
use super::value::Val;
use crate::kernel::Param;
use crate::ops::bulk::BulkGroup;
use crate::ops::tensor::{Place, TensorAddress, TensorLoad, TensorStore};
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

impl<'k> Tensor<'k> {
    /// As [`at`](Self::at), from a column that is known on the GPU alone.
    pub fn at_columns(self, column: Val<'k, U32>, [row, third, fourth]: [Val<'k, U32>; 3]) -> TensorBox {
        TensorBox(Place { tensor: self.0.src, coordinates: [column.src, row.src, third.src, fourth.src] })
    }

    /// The box whose first element has these coordinates, which may be outside: a negative row is a huge number here.
    pub fn at(self, column: u32, [row, third, fourth]: [Val<'k, U32>; 3]) -> TensorBox {
        let coordinates = [Src::Imm(column.into()), row.src, third.src, fourth.src];
        TensorBox(Place { tensor: self.0.src, coordinates })
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
