//! Forms of the kernels that every GPU since Ampere runs.
//!
//! Rows say what a block owns and what it walks over. The last row of each head_dim is one that fits the 99 KiB of the
//! smallest GPUs.
use crate::config::{HeadDims, PortableForm};
use crate::gpu::Gpu;
use crate::sm80;
use signflash_core::Problem;

/// A row of a table: for padded head_dims up to `head_dim`, the larger if v has one of its own.
#[derive(Clone, Copy, Debug)]
struct Row {
    head_dim: u32,
    /// Only with dropout, or only without.
    dropout: Option<bool>,
    form: PortableForm,
}

impl Row {
    const fn when(self, dropout: bool) -> Row {
        Row { dropout: Some(dropout), ..self }
    }

    /// dq of a step is added a step later.
    const fn late_dq(self) -> Row {
        Row { form: PortableForm { late_dq: true, ..self.form }, ..self }
    }

    /// The rows that a warp owns stay in its registers.
    const fn in_registers(self) -> Row {
        Row { form: PortableForm { in_registers: true, ..self.form }, ..self }
    }
}

const fn row(head_dim: u32, [warps, row_tiles, step, slots, blocks_per_sm]: [u32; 5]) -> Row {
    keys_row(head_dim, [warps, row_tiles, 1, step, slots, blocks_per_sm])
}

const fn keys_row(head_dim: u32, [warps, row_tiles, split, step, slots, blocks_per_sm]: [u32; 6]) -> Row {
    let (late_dq, in_registers) = (false, false);
    let form = PortableForm { warps, row_tiles, split, step, slots, blocks_per_sm, late_dq, in_registers };
    Row { head_dim, dropout: None, form }
}

/// Columns: head_dim up to, [warps, 16-row tiles a warp, keys a step, slots, blocks an SM].
const FORWARD: &[Row] = &[
    row(32, [4, 2, 64, 2, 2]).in_registers(),
    row(64, [4, 2, 128, 2, 2]).when(false),
    row(64, [4, 2, 64, 2, 2]).in_registers(),
    row(96, [4, 2, 64, 2, 2]),
    row(128, [4, 2, 64, 2, 2]),
    row(128, [4, 2, 32, 2, 2]),
    row(192, [8, 1, 64, 2, 1]),
    row(192, [4, 1, 32, 2, 2]),
    row(256, [8, 1, 64, 2, 1]),
    row(256, [8, 1, 32, 2, 1]),
    row(256, [4, 1, 32, 2, 1]),
];

/// The same columns: warps own queries, and walk over keys.
const QUERIES: &[Row] = &[
    row(64, [4, 1, 64, 2, 2]),
    row(128, [4, 1, 64, 2, 1]),
    row(128, [4, 1, 32, 2, 1]),
    row(192, [4, 1, 32, 2, 1]),
    row(192, [4, 1, 32, 1, 1]),
    row(256, [4, 1, 32, 2, 1]),
    row(256, [4, 1, 32, 1, 1]),
    row(256, [2, 1, 32, 1, 1]),
];

/// The same columns: warps own queries of a tile of a bias, and a step has all of its keys.
const DBIAS: &[Row] = &[
    row(64, [8, 1, 64, 2, 2]),
    row(64, [8, 1, 64, 1, 2]),
    row(128, [8, 1, 64, 2, 1]),
    row(128, [4, 1, 32, 2, 1]),
    row(192, [4, 1, 64, 2, 1]),
    row(192, [4, 1, 64, 1, 1]),
    row(192, [4, 1, 32, 1, 1]),
    row(256, [4, 1, 64, 1, 1]),
    row(256, [2, 1, 32, 1, 1]),
];

/// Warps own keys, and walk over queries: [warps, 16-row tiles a warp, warps on the same keys, queries a step, slots,
/// blocks an SM].
const KEYS: &[Row] = &[
    keys_row(64, [4, 2, 1, 32, 2, 2]).late_dq(),
    keys_row(128, [8, 2, 2, 64, 2, 1]),
    keys_row(128, [8, 1, 1, 64, 2, 1]),
    keys_row(128, [4, 1, 1, 32, 2, 1]),
    keys_row(192, [8, 1, 2, 32, 2, 1]).late_dq(),
    keys_row(192, [4, 1, 2, 32, 1, 1]).late_dq(),
    keys_row(256, [8, 1, 2, 32, 1, 1]).late_dq(),
    keys_row(256, [4, 1, 2, 32, 1, 1]).late_dq(),
];

/// If either head_dim is above this, two warps share the columns of dk and dv, so that both are padded to twice 16.
const SPLIT_HEAD_DIM: u32 = 128;

/// Columns a head in shared memory.
pub(crate) fn padded(problem: &Problem) -> HeadDims {
    let real = HeadDims::of(problem);
    let multiple = if real.max() > SPLIT_HEAD_DIM { 32 } else { 16 };
    let [q, v] = real.map(|columns| columns.next_multiple_of(multiple));
    HeadDims { q, v }
}

/// Bytes of shared memory that a block of a form asks for, at padded head_dims.
pub(crate) type SmemBytes = fn(HeadDims, &PortableForm) -> u32;

/// What a table is asked with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Padded.
    pub(crate) dims: HeadDims,
    pub(crate) dropout: bool,
    pub(crate) gpu: Gpu,
}

impl Asked {
    pub(crate) fn of(problem: &Problem, gpu: Gpu) -> Self {
        Asked { dims: padded(problem), dropout: problem.keep_rule().is_some(), gpu }
    }

    /// Of the kernel of a forward.
    pub(crate) fn forward(self) -> PortableForm {
        self.first(FORWARD, sm80::forward::smem_bytes)
    }

    /// Of the kernel that writes probs.
    pub(crate) fn probs(self) -> PortableForm {
        // It is for looking: as many blocks a multiprocessor as there is room for, none asked for. It reads no v.
        let of_q = Asked { dims: HeadDims { v: self.dims.q, ..self.dims }, ..self };
        PortableForm { slots: 2, blocks_per_sm: 1, ..of_q.first(QUERIES, sm80::probs::smem_bytes) }
    }

    /// Of the pass over keys.
    pub(crate) fn keys(self) -> PortableForm {
        self.first(KEYS, sm80::backward_keys::smem_bytes)
    }

    /// Of the pass over queries.
    pub(crate) fn queries(self) -> PortableForm {
        self.first(QUERIES, sm80::backward_queries::smem_bytes)
    }

    /// Of the pass over tiles of a bias.
    pub(crate) fn dbias(self) -> PortableForm {
        self.first(DBIAS, sm80::dbias::smem_bytes)
    }

    fn first(self, table: &[Row], smem_bytes: SmemBytes) -> PortableForm {
        let Asked { dims, dropout, gpu } = self;
        let fits = |row: &&Row| {
            row.head_dim >= dims.max()
                && row.dropout.is_none_or(|of| of == dropout)
                && dims.map(|columns| columns.is_multiple_of(16 * row.form.split)) == [true; 2]
                && smem_bytes(dims, &row.form) <= gpu.smem_per_block_bytes
        };
        table.iter().find(fits).expect("the last row fits every GPU since Ampere").form
    }
}
