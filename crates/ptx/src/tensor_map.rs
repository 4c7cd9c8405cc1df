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
    /// Whether there is a dimension 4, as [`packed`](Self::packed) says.
    pub wraps: bool,
}

impl TensorMap {
    /// Columns of a box.
    pub const BOX_COLUMNS: u32 = 64;

    /// Of packed sequences, the coordinate of dimension 1 at which each ends, and also that of dimension 4.
    pub const PACKED_END: u32 = 1 << 30;

    /// What the coordinate of dimension 4 adds is a multiple of 2^64, which is nothing, and takes rows away again: these
    /// must be nearer to each other.
    pub const WRAP_BYTES: u64 = 1 << 34;

    /// Sequences of rows one behind the other, each row `row_bytes` behind the one before it: a tensor of which a box can
    /// begin anywhere and ends with its sequence.
    ///
    /// Row i of a sequence of `len` rows that begins at row `first` has the coordinates `PACKED_END - len + i` in
    /// dimension 1 and `first + len` in dimension 3, which has the rows' stride, too; so what lies behind the sequence's
    /// end lies behind that of dimension 1. Dimension 4, whose coordinate is always `PACKED_END`, takes away the
    /// `PACKED_END` rows that these add, by addresses of 64 bits that wrap around. (A base set off by as much would need no
    /// such dimension; but on an H100 loads from a tensor whose base is not in memory end in an illegal access. Triton's
    /// ragged tensors have the same two dimensions.)
    ///
    /// ```
    /// use signflash_ptx::TensorMap;
    /// let map = TensorMap::packed(4096, [64, 10, 2], [256, 128], 16);
    /// assert!(map.wraps && map.is_valid());
    /// let end = u64::from(TensorMap::PACKED_END);
    /// let at = |dim1: u64, dim3: u64| {
    ///     let rows = 256 * (dim1 + dim3);
    ///     map.base.wrapping_add(rows).wrapping_add(end.wrapping_mul((1 << 34) - 256))
    /// };
    /// let (first, len) = (3, 4);
    /// assert_eq!(at(end - len + 2, first + len), 4096 + 256 * (3 + 2)); // row 2 of the sequence
    /// assert_eq!(map.dims[1], end); // row 4 would have this coordinate, and is outside
    /// ```
    pub fn packed(
        ptr: u64,
        [columns, total, heads]: [u64; 3],
        [row_bytes, head_bytes]: [u64; 2],
        box_rows: u32,
    ) -> Self {
        TensorMap {
            base: ptr,
            dims: [columns, Self::PACKED_END.into(), heads, total + 1],
            strides_bytes: [row_bytes, head_bytes, row_bytes],
            box_rows,
            wraps: true,
        }
    }

    /// How many dimensions the hardware is told: 4, or 5.
    pub fn rank(&self) -> usize {
        if self.wraps { 5 } else { 4 }
    }

    /// The sizes of the first [`rank`](Self::rank) dimensions; behind them nothing is asked for.
    pub fn sizes(&self) -> [u64; 5] {
        let [d0, d1, d2, d3] = self.dims;
        [d0, d1, d2, d3, u64::from(Self::PACKED_END) + 1]
    }

    /// From one to the next in the dimensions behind the first, likewise.
    pub fn all_strides_bytes(&self) -> [u64; 4] {
        let [row_bytes, s2, s3] = self.strides_bytes;
        [row_bytes, s2, s3, if self.wraps { Self::WRAP_BYTES.wrapping_sub(row_bytes) } else { 0 }]
    }

    /// Bytes of a box, in shared memory and for the barrier that counts them.
    ///
    /// ```
    /// use signflash_ptx::TensorMap;
    /// let map = TensorMap { base: 256, dims: [40, 9, 1, 1], strides_bytes: [80, 720, 720], box_rows: 16, wraps: false };
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
            && (!self.wraps || self.strides_bytes[0] < Self::WRAP_BYTES)
            && (1..=256).contains(&self.box_rows)
    }

    /// The address of a row's first element, if the row is inside.
    pub(crate) fn row(&self, [row, c2, c3]: [i32; 3]) -> Option<u64> {
        let coordinates = [row, c2, c3];
        let inside = |(c, dim): (&i32, &u64)| *c >= 0 && (*c as u64) < *dim;
        let address = || {
            let all = coordinates.iter().map(|c| *c as u64).chain([Self::PACKED_END.into()]);
            let pairs = all.zip(self.all_strides_bytes());
            pairs.fold(self.base, |at, (c, stride)| at.wrapping_add(c.wrapping_mul(stride)))
        };
        coordinates.iter().zip(&self.dims[1..]).all(inside).then(address)
    }
}
