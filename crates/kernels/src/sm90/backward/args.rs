//! Arguments of the pass over keys.
use crate::parts::args::kernel_args;
use signflash_ptx::TensorMap;

kernel_args! {
    /// Arguments of the pass over keys. Then come dk and dv.
    KeysArgs / KeysVals {
        /// Queries, boxes of a step's rows.
        q: TensorMap,
        /// Keys, boxes of a block's rows.
        k: TensorMap,
        /// Values, likewise.
        v: TensorMap,
        /// Gradient of the output, boxes of a step's rows.
        dout: TensorMap,
    }
}

kernel_args! {
    /// What follows dk and dv.
    SumsArgs / SumsVals {
        /// Of `rows/statistics.rs`; delta divided by [`ds_scale`](super::ds_scale).
        stats: u64,
        /// Sums of dq divided by [`ds_scale`](super::ds_scale), see `rows/dq_sums.rs`; zeroed before, unless a block begins each.
        dq_sums: u64,
        /// For each step of queries and each warp that adds, how many blocks have (u32), zeroed before; if in order, or
        /// if one begins.
        dq_counters: u64,
        /// Heads whose blocks alternate in the grid.
        heads_at_once: u32,
    }
}
