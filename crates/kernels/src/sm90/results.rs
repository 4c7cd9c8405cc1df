//! Where results go: by the copy engine in 16 bits, or as they are in f32.
use super::forward::WG_ROWS;
use crate::config::{Access, Operands};
use crate::parts::args::{Passed, TensorVals};
use crate::parts::copy::TileRows;
use crate::parts::epilogue::{Before, store_wide};
use crate::parts::sequence::RowsOf;
use crate::tensor::DeviceTensor;
use signflash_ptx::{Acc, Arg, Cta, Tensor, TensorMap, U32, Val, Warpgroup};

/// A tensor of results, as the host describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Results {
    /// Boxes of 64 rows.
    Boxes(TensorMap),
    /// f32, and how many columns it has.
    Wide(DeviceTensor, u32),
}

/// The same on the device.
#[derive(Clone, Copy, Debug)]
pub(super) enum ResultVals<'k> {
    Boxes(Tensor<'k>),
    Wide(WideVals<'k>),
}

/// An f32 tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct WideVals<'k> {
    tensor: TensorVals<'k>,
    columns: Val<'k, U32>,
}

/// Rows of a head of an f32 tensor: from where on, and how many the sequence has.
pub(super) struct WideRows<'k> {
    pub(super) rows: RowsOf<'k>,
    pub(super) head: Val<'k, U32>,
    pub(super) first: Val<'k, U32>,
}

impl Results {
    /// Of a tensor of these sizes, whose strides count halves.
    pub(crate) fn of(tensor: DeviceTensor, sizes: [usize; 4], operands: Operands) -> Self {
        match operands.stored.is_wide() {
            false => Results::Boxes(tensor.map(sizes, WG_ROWS, operands.layout)),
            true => Results::Wide(tensor, sizes[3] as u32),
        }
    }

    pub(crate) fn push(self, list: &mut Vec<Arg>) {
        match self {
            Results::Boxes(map) => map.push(list),
            Results::Wide(tensor, columns) => {
                tensor.push(list);
                columns.push(list);
            }
        }
    }
}

/// Names of a tensor's parameters: of a map, and of an f32 tensor.
pub(super) type Names = [&'static str; 6];

/// Those of a tensor of this name.
macro_rules! names {
    ($name:literal) => {
        [
            $name,
            concat!($name, "_ptr"),
            concat!($name, "_batch_bytes"),
            concat!($name, "_row_bytes"),
            concat!($name, "_head_bytes"),
            concat!($name, "_columns"),
        ]
    };
}
pub(super) use names;

impl<'k> ResultVals<'k> {
    /// At this place of the parameters.
    pub(super) fn declare(cta: Cta<'k>, names: Names, operands: Operands) -> Self {
        match operands.stored.is_wide() {
            false => ResultVals::Boxes(TensorMap::declare(cta, &names)),
            true => ResultVals::Wide(WideVals {
                tensor: DeviceTensor::declare(cta, &names),
                columns: u32::declare(cta, &names[5..]),
            }),
        }
    }
}

impl<'k> WideVals<'k> {
    /// Writes a warpgroup's 64 rows, as far as they are in the tensor.
    #[track_caller]
    pub(super) fn store(&self, wg: Warpgroup<'k>, acc: &Acc<'k>, to: WideRows<'k>, before: Before<'k>) {
        let warp = wg.warps();
        let target = TileRows {
            rows: self.tensor.head(to.rows, to.head),
            first: to.first + ((warp.index() & 3) << 4u32),
            seqlen: to.rows.seqlen(),
            head_dim: self.columns,
        };
        store_wide(warp, acc, (Access::Pieces, warp.threads().u32(0)), target, before);
    }
}
