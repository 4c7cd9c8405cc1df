//! A tensor as Hopper's copy engine sees it.

/// A tensor of 16-bit numbers in four dimensions, which bulk copies take boxes from and put boxes to: 64 columns (of
/// the first dimension) by `box_rows` rows (of the second).
///
/// What a box has outside of the tensor is zero when read and left alone when written, where rows are multiples of 8
/// columns: an H200 stores whole pieces of 16 bytes, so that the interpreter refuses to store other rows. In shared
/// memory a row of a box has 128 bytes, whose 16-byte chunks are permuted by the row's number modulo 8
/// (SWIZZLE_128B), as [`TileLayout`](crate::TileLayout) of 64 columns says; the box starts at a multiple of 1024
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of its first element, a multiple of 16.
    pub base: u64,
    /// Sizes: columns first, which lie side by side; each at least 1.
    pub dims: [u64; 4],
    /// Bytes from one to the next in dimensions 1 to 3: multiples of 16, below 2^40.
    pub strides_bytes: [u64; 3],
    /// Rows of a box: 1 to 256.
    pub box_rows: u32,
}

impl TensorMap {
    /// Columns of a box.
    pub const BOX_COLUMNS: u32 = 64;

    /// Bytes of a box, in shared memory and for the barrier that counts them.
    ///
    /// ```
    /// use signflash_ptx::TensorMap;
    /// let map = TensorMap { base: 256, dims: [40, 9, 1, 1], strides_bytes: [80, 720, 720], box_rows: 16 };
    /// assert_eq!(map.box_bytes(), 16 * 128); // also where the box sticks out
    /// assert!(map.is_valid());
    /// ```
    pub fn box_bytes(&self) -> u32 {
        2 * Self::BOX_COLUMNS * self.box_rows
    }

    /// Whether the hardware takes it.
    pub fn is_valid(&self) -> bool {
        self.base.is_multiple_of(16)
            && self.dims.iter().all(|dim| (1..=1 << 32).contains(dim))
            && self.strides_bytes.iter().all(|stride| stride.is_multiple_of(16) && *stride < 1 << 40)
            && (1..=256).contains(&self.box_rows)
    }

    /// The address of a row's first element, if the row is inside.
    pub(crate) fn row(&self, [row, c2, c3]: [i32; 3]) -> Option<u64> {
        let coordinates = [row, c2, c3];
        let inside = |(c, dim): (&i32, &u64)| *c >= 0 && (*c as u64) < *dim;
        let offset = || coordinates.iter().zip(self.strides_bytes).map(|(c, s)| *c as u64 * s).sum::<u64>();
        coordinates.iter().zip(&self.dims[1..]).all(inside).then(|| self.base + offset())
    }
}
