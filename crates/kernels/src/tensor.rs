//! Tensors in a GPU's memory, as calls describe them.
use crate::config::Layout;
use signflash_core::contiguous_strides;
use signflash_ptx::TensorMap;

/// In which order the two middle dimensions of a tensor are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// (batch, row, head, column): operands, results and gradients.
    RowsFirst,
    /// (batch, head, row, column): probs, and whatever is stored so.
    HeadsFirst,
}

/// A tensor that has a number for each query and key, as kernels are told of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScoreTensor {
    pub(crate) ptr: u64,
    /// Of (batch, head, query, key); 0 where there is one for all.
    pub(crate) strides_bytes: [u64; 4],
    /// Queries and keys that it has numbers for.
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

/// A tensor (batch, seqlen, heads, columns) in device memory, its last stride 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTensor {
    /// Address of its first element.
    pub ptr: u64,
    /// Elements from one batch to the next.
    pub batch_stride: u64,
    /// Elements from one row (query, key) to the next.
    pub row_stride: u64,
    /// Elements from one head to the next.
    pub head_stride: u64,
}

impl DeviceTensor {
    /// A tensor at an address, of which the elements are so far apart; its last stride must be 1.
    ///
    /// ```
    /// use signflash_kernels::{DeviceTensor, Order};
    /// let rows_first = DeviceTensor::of(4096, [600, 20, 10, 1], Order::RowsFirst);
    /// assert_eq!((rows_first.row_stride, rows_first.head_stride), (20, 10));
    /// let heads_first = DeviceTensor::of(4096, [600, 20, 10, 1], Order::HeadsFirst);
    /// assert_eq!((heads_first.row_stride, heads_first.head_stride), (10, 20));
    /// ```
    pub fn of(ptr: u64, strides: [usize; 4], order: Order) -> Self {
        let [batch_stride, first, second, _] = strides.map(|stride| stride as u64);
        let [row_stride, head_stride] = match order {
            Order::RowsFirst => [first, second],
            Order::HeadsFirst => [second, first],
        };
        DeviceTensor { ptr, batch_stride, row_stride, head_stride }
    }

    /// A tensor of these sizes, listed in this order and stored in it without gaps.
    ///
    /// ```
    /// use signflash_kernels::{DeviceTensor, Order};
    /// let tensor = DeviceTensor::dense(4096, [2, 30, 4, 16], Order::RowsFirst);
    /// assert_eq!((tensor.batch_stride, tensor.row_stride, tensor.head_stride), (1920, 64, 16));
    /// ```
    pub fn dense(ptr: u64, sizes: [usize; 4], order: Order) -> Self {
        Self::of(ptr, contiguous_strides(sizes), order)
    }

    /// Whether every row starts at a multiple of 16 bytes, for elements of 2 bytes.
    pub fn is_aligned(&self) -> bool {
        let strides = [self.batch_stride, self.row_stride, self.head_stride];
        self.ptr.is_multiple_of(16) && strides.iter().all(|stride| stride.is_multiple_of(8))
    }

    /// The same with strides that count elements of 2 bytes, if its own are f32.
    pub(crate) fn in_halves(self, is_f32: bool) -> Self {
        let halves = if is_f32 { 2 } else { 1 };
        DeviceTensor {
            batch_stride: halves * self.batch_stride,
            row_stride: halves * self.row_stride,
            head_stride: halves * self.head_stride,
            ..self
        }
    }

    /// The tensor, of these sizes, for the copy engine, in boxes of so many rows.
    pub(crate) fn map(
        &self,
        [batch, seqlen, heads, columns]: [usize; 4],
        box_rows: u32,
        layout: Layout,
    ) -> TensorMap {
        let dims = [columns, seqlen, heads, batch].map(|dim| dim as u64);
        let strides = [self.row_stride, self.head_stride, self.batch_stride];
        // What there is only one of has a stride that nobody reads, and that may be anything.
        let used = |i: usize| if dims[i + 1] > 1 { 2 * strides[i] } else { 16 };
        if layout.is_packed() {
            let sizes = [dims[0], dims[1], dims[2]];
            return TensorMap::packed(self.ptr, sizes, [used(0), used(1)], box_rows);
        }
        TensorMap { base: self.ptr, dims, strides_bytes: [used(0), used(1), used(2)], box_rows, wraps: false }
    }
}
