//! Products of tiles on tensor cores, in the forms that attention needs.
//!
//! A warp's rows come in tiles of 16; each b-operand that is read serves all of them.
use signflash_ptx::{Acc, B32, Half, SmemAddr, TileLanes, Val, Warp};

/// An a-operand: 16 rows by 16 columns.
pub(crate) type FragmentA<'k> = [Val<'k, B32>; 4];

/// A tile in shared memory, and this warp's way to read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a, 'k> {
    pub(crate) lanes: &'a TileLanes<'k>,
    pub(crate) tile: SmemAddr<'k>,
}

impl<'k> Operand<'_, 'k> {
    /// Rows `row..row + 16`, columns `16 * col16..` as an a-operand.
    #[track_caller]
    pub(crate) fn a(&self, warp: Warp<'k>, row: u32, col16: u32) -> FragmentA<'k> {
        warp.load_matrices(self.lanes, self.tile, row, col16)
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
        let a: Vec<FragmentA<'k>> = (0..acc.len()).map(|tile| a(tile, k16)).collect();
        for pair in 0..acc[0].groups() / 2 {
            let m = warp.load_matrices(b.lanes, b.tile, 16 * pair as u32, k16);
            for (acc, a) in acc.iter_mut().zip(&a) {
                warp.mma(acc, 2 * pair, *a, [m[0], m[2]], half);
                warp.mma(acc, 2 * pair + 1, *a, [m[1], m[3]], half);
            }
        }
    }
}

/// acc += a * b, where b's rows `0..depth` are in shared memory, and its columns from `16 * first_col16` on.
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
        let a: Vec<FragmentA<'k>> = (0..acc.len()).map(|tile| a(tile, k16)).collect();
        for pair in 0..acc[0].groups() / 2 {
            let m = warp.load_transposed(b.lanes, b.tile, 16 * k16, pair as u32);
            for (acc, a) in acc.iter_mut().zip(&a) {
                warp.mma(acc, 2 * pair, *a, [m[0], m[1]], half);
                warp.mma(acc, 2 * pair + 1, *a, [m[2], m[3]], half);
            }
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
