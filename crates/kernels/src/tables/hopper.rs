//! Forms of Hopper's own kernels.
use crate::config::{
    BandKind, Common, HeadDims, HopperCommon, HopperForm, HopperKeysForm, Operands, Product, Scores,
};
use crate::gpu::Gpu;
use crate::parts::overlays::BOX_KEYS;
use crate::parts::scores::Folding;
use signflash_core::{Problem, Window};

/// A row of the forward's table.
#[derive(Clone, Copy, Debug)]
struct Row {
    head_dim: u32,
    head_dim_v: u32,
    /// Only for this one.
    band: Option<BandKind>,
    dropout: bool,
    /// For biases and masks of which a step reads no more registers for each 8 columns.
    overlay_registers: u32,
    /// For no more keys than these.
    up_to_keys: usize,
    /// Registers of who multiplies if more than a product is part of an exponent.
    folding_registers: Option<u32>,
    form: HopperForm,
}

impl Row {
    const fn band(self, band: BandKind) -> Row {
        Row { band: Some(band), ..self }
    }

    /// For fewer columns of v than of q and k.
    const fn v(self, head_dim_v: u32) -> Row {
        Row { head_dim_v, ..self }
    }

    /// Also with a bias or a mask. What is read of it takes registers while a product is under way.
    const fn overlays(self, registers: u32) -> Row {
        Row { overlay_registers: registers, ..self }
    }

    const fn up_to_keys(self, up_to_keys: usize) -> Row {
        Row { up_to_keys, ..self }
    }

    /// With so many registers where scores need some.
    const fn folding(self, registers: u32) -> Row {
        Row { folding_registers: Some(registers), ..self }
    }

    /// Warpgroups start their products in turns.
    const fn turns(self) -> Row {
        Row { form: HopperForm { turns: true, ..self.form }, ..self }
    }

    /// So many pieces of the softmax go beside the product with values.
    const fn early(self, early: u32) -> Row {
        Row { form: HopperForm { early, ..self.form }, ..self }
    }

    /// The output leaves by way of the queries' shared memory.
    const fn out_in_q(self) -> Row {
        Row { form: HopperForm { out_in_q: true, ..self.form }, ..self }
    }

    /// With dropout: so many warpgroups draw flags, so many steps ahead.
    const fn drop(self, drawers: u32, flag_stages: u32) -> Row {
        Row { dropout: true, form: HopperForm { drawers, flag_stages, ..self.form }, ..self }
    }
}

const fn row(head_dim: u32, [warpgroups, step, stages, registers]: [u32; 4]) -> Row {
    let (drawers, flag_stages, turns, early, out_in_q) = (0, 0, false, 0, false);
    let form =
        HopperForm { warpgroups, drawers, step, stages, flag_stages, registers, turns, early, out_in_q };
    Row {
        head_dim,
        head_dim_v: head_dim,
        band: None,
        dropout: false,
        overlay_registers: 0,
        up_to_keys: usize::MAX,
        folding_registers: None,
        form,
    }
}

/// Head_dim up to (the larger if v has one of its own), [warpgroups that multiply, keys a step, stages, registers]. With
/// dropout steps are multiples of 32.
const FORWARD: &[Row] = &[
    // Tiles of 192 rows are too few, and end too unevenly, for short causal problems.
    row(64, [2, 128, 2, 232]).turns().band(BandKind::Right).up_to_keys(2048),
    // In a window, tiles of 192 rows see more steps of which they need a part only.
    row(64, [2, 128, 2, 232]).turns().band(BandKind::Both),
    row(64, [3, 128, 2, 160]).turns(),
    row(64, [2, 128, 3, 168]).folding(176).early(4).drop(1, 4),
    row(128, [2, 128, 2, 232]).turns().early(4),
    row(128, [2, 128, 2, 200]).folding(208).turns().early(4).drop(1, 2),
    // With boxes of a bias there is room for the output in the queries' place alone.
    row(128, [2, 128, 2, 200]).folding(208).turns().early(4).out_in_q().drop(1, 2),
    row(192, [2, 128, 2, 232]).v(128).turns().early(4).out_in_q(),
    row(192, [2, 96, 2, 200]).v(128).turns().early(3).drop(1, 2),
    row(192, [2, 112, 2, 232]).turns().out_in_q(),
    row(192, [2, 64, 2, 216]).turns().out_in_q().drop(1, 3),
    row(256, [2, 80, 2, 232]).turns().out_in_q(),
    row(256, [2, 64, 2, 216]).turns().out_in_q().drop(1, 3),
    row(64, [2, 128, 2, 232]).turns().overlays(2),
    row(64, [2, 96, 3, 200]).turns().drop(1, 4).overlays(2),
    row(128, [2, 96, 2, 232]).turns().overlays(2),
    row(128, [2, 64, 3, 232]).turns().overlays(8),
    row(128, [2, 64, 3, 200]).turns().drop(1, 4).overlays(8),
    row(256, [2, 64, 2, 232]).turns().out_in_q().overlays(8),
    row(256, [2, 32, 2, 216]).turns().out_in_q().drop(1, 3).overlays(8),
];

/// Of the forward, for so many keys; none if no row fits the GPU's shared memory.
pub(crate) fn forward(common: &HopperCommon, seqlen_k: usize, gpu: Gpu) -> Option<HopperForm> {
    let (Scores { band, dropout, .. }, dims) = (common.scores, common.operands.dims());
    let boxed = common.scores.overlays.has_boxes();
    let fits = |row: &&Row| {
        row.head_dim >= dims.q
            && row.head_dim_v >= dims.v
            && row.dropout == dropout
            && row.overlay_registers >= common.scores.overlays.registers()
            && row.up_to_keys >= seqlen_k
            && row.band.is_none_or(|of| of == band)
            && (!boxed || (row.form.step.is_multiple_of(BOX_KEYS) && row.form.warpgroups == 2))
            && row.form.smem_bytes(common) <= gpu.smem_per_block_bytes
    };
    let folding = Folding::of(&common.scores);
    FORWARD.iter().find(fits).map(|row| {
        let is_wide = row.head_dim > 64;
        // Those who draw get what is left: with a softcap fewer pieces are better than more registers.
        let folds_with_more = |of: Folding| of != Folding::Softcap || !is_wide;
        let more = row.folding_registers.filter(|_| folding.is_some_and(folds_with_more));
        let registers = more.unwrap_or(row.form.registers);
        let early = match folding {
            // What is read of boxes takes registers, too.
            _ if boxed && dropout => row.form.early.min(1),
            Some(Folding::Softcap | Folding::Alibi) if dropout && is_wide => row.form.early.min(2),
            _ => row.form.early,
        };
        HopperForm { registers, early, ..row.form }
    })
}

/// Of the kernel that writes probs.
pub(crate) fn probs(common: &HopperCommon) -> HopperForm {
    let dropout = common.scores.dropout;
    let (drawers, registers) = if dropout { (2, 168) } else { (0, 232) };
    HopperForm {
        warpgroups: 2,
        drawers,
        step: if common.operands.head_dim > 128 { 64 } else { 128 },
        stages: 2,
        flag_stages: if dropout { 2 } else { 0 },
        registers,
        turns: false,
        early: 0,
        out_in_q: false,
    }
}

/// Columns a head in the pass over keys, which moves whole boxes. Where v's take so many registers that two warpgroups
/// share their keys, each has some columns of dq.
pub(crate) fn keys_dims(padded: HeadDims) -> HeadDims {
    let [q, v] = padded.map(|columns| columns.next_multiple_of(64));
    HeadDims { q: if v > 128 { q.max(128) } else { q }, v }
}

/// What its kernel has in common with others.
pub(crate) fn keys_common(common: &Common) -> HopperCommon {
    let HeadDims { q: head_dim, v } = keys_dims(common.operands.dims());
    let operands = Operands { head_dim, head_dim_v: Some(v), ..common.operands };
    Common { operands, ..*common }.hopper()
}

/// What a block of the pass over keys walks over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    pub(crate) length: WalkLength,
    /// Whether whoever comes first to some queries should begin their sums of dq: in a short window, where it is known who
    /// that is, and in which each query sees a key, so that somebody does.
    begins: bool,
}

/// How many queries a key is seen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkLength {
    Long,
    /// So few, or of packed sequences so uneven, that blocks should take several tiles.
    Short,
    /// So few that longer steps would be of hidden queries for the most part.
    VeryShort,
}

/// The most of each, as measured (`docs/hopper-backward.md`).
const SHORT: usize = 1024;
const VERY_SHORT: usize = 512;
/// With head_dim up to 64, and above, where steps take longer, so that who waits for others loses less of them.
const BEGINS: [usize; 2] = [320, 512];

impl Walk {
    /// Of a problem.
    pub(crate) fn of(problem: &Problem) -> Self {
        Walk { length: WalkLength::of(problem), begins: begins(problem) }
    }
}

/// As [`Walk::begins`] says.
fn begins(problem: &Problem) -> bool {
    let (band, last) = (problem.visibility(), problem.visibility().queries - 1);
    // The later the query, the later the keys.
    let all_see = [0, last].map(|query| band.keys_of(query)).iter().all(|keys| keys.begin < keys.end);
    let most = BEGINS[usize::from(HeadDims::of(problem).max() > 64)];
    !problem.is_packed() && last >= 0 && all_see && window(problem).is_some_and(|queries| queries <= most)
}

/// How many queries see a key of a window.
fn window(problem: &Problem) -> Option<usize> {
    let Window { left, right } = problem.sides();
    left.zip(right).map(|(left, right)| left.saturating_add(right).saturating_add(1))
}

impl WalkLength {
    /// In a problem whose scores are products alone: as many as its window has, and no more than a packed sequence, of
    /// whose lengths nothing is known but their sum, has on average.
    fn of(problem: &Problem) -> Self {
        // What becomes of a score takes registers, of which several tiles need some: ptxas spills.
        let plain = problem.bias().is_none()
            && problem.mask().is_none()
            && problem.alibi().is_none()
            && problem.softcap().is_none();
        if !plain {
            return WalkLength::Long;
        }
        let average = || problem.shape().seqlen_q.div_ceil(problem.sequence_count().max(1));
        let sequence = problem.is_packed().then(average);
        match window(problem).into_iter().chain(sequence).min() {
            Some(..=VERY_SHORT) => WalkLength::VeryShort,
            Some(..=SHORT) => WalkLength::Short,
            _ if problem.is_packed() => WalkLength::Short,
            _ => WalkLength::Long,
        }
    }
}

/// Of the pass over keys, at head_dims of whole boxes.
/// `by_query`: with a bias or a mask that has other numbers for each query, which take registers, or, if `boxed`, shared memory.
pub(crate) fn keys(
    dims: HeadDims,
    (product, by_query, boxed): (Product, bool, bool),
    (dropout, ordered): (bool, bool),
    walk: Walk,
) -> HopperKeysForm {
    let (keys, step, ds_stages) = match dims.max() {
        ..=64 if walk.length == WalkLength::VeryShort && !ordered => (128, 64, 3),
        // Of capped scores p is packed while dp is there, for which 128 queries leave no registers.
        ..=64 if product != Product::Capped && !by_query => (128, 128, 2),
        65..=128 if boxed => (128, 64, 2),
        ..=128 => (128, 64, 3),
        _ => (64, 64, 1),
    };
    let flag_stages = if dropout { 2 } else { 0 };
    let persistent = walk.length != WalkLength::Long && !ordered && keys > 64;
    let registers = if dropout && keys > 64 && product != Product::Capped { 232 } else { 240 };
    let key_stages = if persistent && dims.max() <= 64 && step == 64 { [2; 2] } else { [1; 2] };
    HopperKeysForm {
        keys,
        key_stages,
        step,
        stages: if key_stages == [2; 2] { 3 } else { 2 },
        ds_stages,
        flag_stages,
        registers,
        ordered,
        persistent,
        begins_sums: persistent && walk.begins,
    }
}
