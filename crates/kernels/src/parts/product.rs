//! Products of tiles on tensor cores, in the forms that attention needs.
//!
//! A warp's rows come in tiles of 16; each b-operand that is read serves all of them.
use signflash_ptx::{Acc, B32, Half, Order, SmemAddr, TileLanes, TileLayout, U32, Val, Warp};

/// An a-operand: 16 rows by 16 columns.
pub(crate) type FragmentA<'k> = [Val<'k, B32>; 4];

/// A warp's ways to read tiles of one layout.
#[derive(Debug)]
pub(crate) struct Lanes<'k> {
    down: TileLanes<'k>,
    across: TileLanes<'k>,
}

impl<'k> Lanes<'k> {
    #[track_caller]
    pub(crate) fn new(warp: Warp<'k>, layout: TileLayout) -> Self {
        Lanes { down: warp.tile_lanes(layout, Order::Down), across: warp.tile_lanes(layout, Order::Across) }
    }

    /// The layout of the tiles.
    pub(crate) fn layout(&self) -> TileLayout {
        self.down.layout()
    }

    /// With the address of a tile of a-operands added, see [`TileLanes::from_origin`].
    #[track_caller]
    pub(crate) fn with_a_at(self, origin: SmemAddr<'k>) -> Self {
        Lanes { down: self.down.from_origin(origin), across: self.across }
    }

    /// For 16 * `count` columns from 16 * `first16` on.
    #[track_caller]
    pub(crate) fn part(warp: Warp<'k>, layout: TileLayout, first16: Val<'k, U32>, count: u32) -> Self {
        let lanes = |order| warp.tile_lanes_from(layout, order, first16, count);
        Lanes { down: lanes(Order::Down), across: lanes(Order::Across) }
    }

    /// For b-operands of 16 columns that are chosen on the GPU, from a tile that holds k as rows.
    #[track_caller]
    pub(crate) fn b_column(&self, warp: Warp<'k>, tile: SmemAddr<'k>, col16: Val<'k, U32>) -> SmemAddr<'k> {
        tile.plus(self.down.column(warp, col16))
    }

    /// For a-operands of 16 columns that are chosen on the GPU.
    #[track_caller]
    pub(crate) fn a_rows(&self, warp: Warp<'k>, tile: SmemAddr<'k>, col16: Val<'k, U32>) -> SmemAddr<'k> {
        tile.plus(self.down.column(warp, col16))
    }

    /// For a-operands whose rows are 16 columns that are chosen on the GPU.
    #[track_caller]
    pub(crate) fn a_column(&self, warp: Warp<'k>, tile: SmemAddr<'k>, col16: Val<'k, U32>) -> SmemAddr<'k> {
        tile.plus(self.across.column(warp, col16))
    }
}

/// A tile in shared memory, and this warp's way to read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a, 'k> {
    pub(crate) lanes: &'a Lanes<'k>,
    pub(crate) tile: SmemAddr<'k>,
}

impl<'k> Operand<'_, 'k> {
    /// Rows `row..row + 16`, columns `16 * col16..` as an a-operand.
    #[track_caller]
    pub(crate) fn a(&self, warp: Warp<'k>, row: u32, col16: u32) -> FragmentA<'k> {
        warp.load_matrices(&self.lanes.down, self.tile, row, col16)
    }
}

/// acc += a * b^T, where b's rows `0..8 * groups` are in shared memory. `a(tile, col16)` gives operands of the depth's
/// 16-column pieces.
#[track_caller]
pub(crate) fn mma_abt<'k>(
    warp: Warp<'k>,
    acc: &mut [Acc<'k>],
    depth: u32,
    half: Half,
    a: impl Fn(usize, u32) -> FragmentA<'k>,
    b: Operand<'_, 'k>,
) {
    for k16 in 0..depth / 16 {
        let load = |pair: u32| warp.load_matrices(&b.lanes.across, b.tile, 16 * pair, k16);
        multiply(warp, acc, half, |i| a(i, k16), load);
    }
}

/// acc += a * b, where b's rows `0..depth` are in shared memory.
#[track_caller]
pub(crate) fn mma_ab<'k>(
    warp: Warp<'k>,
    acc: &mut [Acc<'k>],
    depth: u32,
    half: Half,
    a: impl Fn(usize, u32) -> FragmentA<'k>,
    b: Operand<'_, 'k>,
) {
    for k16 in 0..depth / 16 {
        let load = |pair: u32| warp.load_transposed(&b.lanes.down, b.tile, 16 * k16, pair);
        multiply(warp, acc, half, |i| a(i, k16), load);
    }
}

/// One piece of 16 of the depth: each pair of b-operands that is read serves all rows of the warp.
#[track_caller]
fn multiply<'k>(
    warp: Warp<'k>,
    acc: &mut [Acc<'k>],
    half: Half,
    a: impl Fn(usize) -> FragmentA<'k>,
    b: impl Fn(u32) -> FragmentA<'k>,
) {
    let a: Vec<FragmentA<'k>> = (0..acc.len()).map(a).collect();
    for pair in 0..acc[0].groups() / 2 {
        let m = b(pair as u32);
        for (acc, a) in acc.iter_mut().zip(&a) {
            warp.mma(acc, 2 * pair, *a, [m[0], m[1]], half);
            warp.mma(acc, 2 * pair + 1, *a, [m[2], m[3]], half);
        }
    }
}

/// An accumulator as 16-bit a-operands for a product over its columns: a register identity, no exchange between lanes.
#[track_caller]
pub(crate) fn pack<'k>(acc: &Acc<'k>, half: Half, relu: bool) -> Vec<FragmentA<'k>> {
    let pair =
        |group, row: usize| acc.at(group, 2 * row).get().pack(acc.at(group, 2 * row + 1).get(), half, relu);
    (0..acc.groups() / 2)
        .map(|k| [pair(2 * k, 0), pair(2 * k, 1), pair(2 * k + 1, 0), pair(2 * k + 1, 1)])
        .collect()
}
