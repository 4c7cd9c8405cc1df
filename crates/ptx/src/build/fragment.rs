//! Tensor-core operands in the registers of a warp.
use super::Builder;
use super::memory::SmemAddr;
use super::scope::Warp;
use super::tile::TileLanes;
use super::value::{Val, Var};
use crate::ops::alu::Apply;
use crate::ops::alu::MOV32;
use crate::ops::ldmatrix::LoadMatrices;
use crate::ops::mma::Mma;
use crate::ops::movmatrix::Transpose;
use crate::ops::stmatrix::StoreMatrices;
use crate::types::{B32, F32, Half, Reg, Src, Width};

/// A 16-row accumulator of a warp in f32, `8 * groups` columns wide.
///
/// With g = lane / 4 and c = lane % 4, register `2 * h + x` of group `j` is row g + 8 h, column 8 j + 2 c + x.
#[derive(Debug)]
pub struct Acc<'k> {
    builder: &'k Builder,
    groups: Vec<[Reg; 4]>,
}

impl<'k> Acc<'k> {
    /// How many groups of 8 columns.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// One of the thread's numbers.
    pub fn at(&self, group: usize, register: usize) -> Var<'k, F32> {
        Var::of(self.builder, self.groups[group][register])
    }

    /// Makes all numbers zero.
    #[track_caller]
    pub fn clear(&self) {
        for dst in self.groups.iter().flatten() {
            self.builder.emit(Apply { op: MOV32, dst: *dst, src: [Src::Imm(0); 3] });
        }
    }
}

impl<'k> Warp<'k> {
    /// An accumulator that is not written yet; see [`Acc::clear`].
    pub fn acc(self, columns: u32) -> Acc<'k> {
        assert!(columns.is_multiple_of(8), "an accumulator has groups of 8 columns");
        let group = |_| [(); 4].map(|()| self.0.register(Width::W32));
        Acc { builder: self.0, groups: (0..columns / 8).map(group).collect() }
    }

    /// acc's group += a (16x16) * b (16x8). `a` is in the order of [`Acc`]'s registers: rows first, then columns.
    #[track_caller]
    pub fn mma(
        self,
        acc: &mut Acc<'k>,
        group: usize,
        a: [Val<'k, B32>; 4],
        b: [Val<'k, B32>; 2],
        half: Half,
    ) {
        self.0.emit(Mma { acc: acc.groups[group], a: a.map(|v| v.src), b: b.map(|v| v.src), half });
    }

    /// Four 8x8 matrices: those of 16 rows from `row` and 16 columns from `16 * col16` of a tile, in the order of
    /// `lanes`. With [`Order::Down`](super::Order) they are an a-operand; with `Across` two b-operands, `[m[0], m[1]]`
    /// and `[m[2], m[3]]`, of a tile that holds columns as rows.
    #[track_caller]
    pub fn load_matrices(
        self,
        lanes: &TileLanes<'k>,
        tile: SmemAddr<'k>,
        row: u32,
        col16: u32,
    ) -> [Val<'k, B32>; 4] {
        self.load_matrices_at(lanes.matrices(tile, row, col16), false)
    }

    /// The same four, each transposed. With [`Order::Down`](super::Order) they are two b-operands, `[m[0], m[1]]` and
    /// `[m[2], m[3]]`, of a tile that holds k as rows; with `Across` an a-operand of the transposed tile.
    #[track_caller]
    pub fn load_transposed(
        self,
        lanes: &TileLanes<'k>,
        tile: SmemAddr<'k>,
        row: u32,
        col16: u32,
    ) -> [Val<'k, B32>; 4] {
        self.load_matrices_at(lanes.matrices(tile, row, col16), true)
    }

    /// The four matrices of each lane's own address.
    #[track_caller]
    pub fn load_matrices_at(self, from: SmemAddr<'k>, transposed: bool) -> [Val<'k, B32>; 4] {
        let dst = [(); 4].map(|()| self.0.register(Width::W32));
        let from = from.address();
        self.0.emit(LoadMatrices { dst, from, transposed });
        dst.map(|reg| Val::new(self.0, Src::Reg(reg)))
    }

    /// Stores what [`load_matrices`](Self::load_matrices) of the same place would load.
    #[track_caller]
    pub fn store_matrices(
        self,
        lanes: &TileLanes<'k>,
        tile: SmemAddr<'k>,
        row: u32,
        col16: u32,
        matrices: [Val<'k, B32>; 4],
    ) {
        self.store_matrices_at(lanes.matrices(tile, row, col16), false, matrices);
    }

    /// Stores four matrices, lane l giving the address of row l % 8 of matrix l / 8. A lane holds two neighbours of row
    /// lane / 4 of each; transposed, of column lane / 4. As all stores it needs a barrier before other lanes read.
    #[track_caller]
    pub fn store_matrices_at(self, to: SmemAddr<'k>, transposed: bool, matrices: [Val<'k, B32>; 4]) {
        let to = to.address();
        self.0.emit(StoreMatrices { src: matrices.map(|v| v.src), to, transposed });
    }

    /// An 8x8 matrix of 16-bit numbers, a lane holding two neighbours of row lane / 4: its transpose.
    #[track_caller]
    pub fn transpose(self, matrix: Val<'k, B32>) -> Val<'k, B32> {
        let dst = self.0.register(Width::W32);
        self.0.emit(Transpose { dst, src: matrix.src });
        Val::new(self.0, Src::Reg(dst))
    }
}
