//! p and ds of one tile of queries and one block of keys: where the sign bit says what is dropped, and chooses.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, TILE_ROWS, Work};
use crate::gemm::{Left, NV, Right, product, step_keys};
use crate::pack::panel_width;
use crate::score_stage::{HIDDEN, Panel, ScoreStage, TableMut};
use crate::simd::Simd;
use crate::visible::{Bounds, Overlap, Visible};
use signflash_core::Span;

/// Scores are products, and p and ds are for dq, dk and dv.
const PLAIN: u8 = 0;
/// Scores are in memory; the rest as with [`PLAIN`].
const CHANGED: u8 = 1;
/// Scores are in memory, and what they give is for dbias: ds before softcap's slope.
const TO_BIAS: u8 = 2;
/// As [`CHANGED`], and what they give to dbias takes their place.
const TO_BOTH: u8 = 3;

/// A bit above the numbers that are subnormal, or become so when they are multiplied.
const SUBNORMAL: f32 = 1e-33;

/// Which panel of a tile, what it sees, and how far into the chunk its block lies.
#[derive(Clone, Copy)]
struct At {
    panel: usize,
    visible: Visible,
    sums: usize,
}

/// What the weights of one vector of rows depend on.
#[derive(Clone, Copy)]
struct Row<S: Simd> {
    base: S::V,
    minus_lse: S::V,
    delta: S::V,
    /// The dropped rows of each key, and the bit of the first lane.
    bits: Option<(*const u16, u32)>,
}

impl<S: Simd> Row<S> {
    /// The weights with their sign bit set where the key is dropped.
    #[inline(always)]
    unsafe fn sign(&self, p: S::V, key: usize) -> S::V {
        match self.bits {
            Some((bits, shift)) => S::sign_where(p, bits.add(key), shift),
            None => p,
        }
    }
}

/// The scores of `MR` keys and a panel of queries, from memory.
#[inline(always)]
unsafe fn load_micro_tile<S: Simd, const MR: usize>(from: *const f32) -> [[S::V; NV]; MR] {
    let mut scores = [[S::splat(0.0); NV]; MR];
    for (m, scores) in scores.iter_mut().enumerate() {
        for (n, score) in scores.iter_mut().enumerate() {
            *score = S::load(from.add(m * panel_width::<S>() + n * S::LANES));
        }
    }
    scores
}

/// Adds what `MR` keys and a panel of queries give to dbias to its sums.
#[inline(always)]
unsafe fn add_micro_tile<S: Simd, const MR: usize>(sums: *mut f32, ds: &[[S::V; NV]; MR]) {
    for (m, ds) in ds.iter().enumerate() {
        for (n, ds) in ds.iter().enumerate() {
            let at = sums.add(m * TILE_ROWS + n * S::LANES);
            S::store(at, S::add(S::load(at), *ds));
        }
    }
}

impl Work<'_> {
    /// p and ds of one block, which begins `at` keys into the chunk, and of which of its keys and panels; `None` if no row
    /// of the tile sees a key of it. With `BIAS` what they give to dbias instead; with an `own` dbias that as well.
    #[inline(always)]
    pub(super) unsafe fn weights<S: Simd, const MR: usize, const BIAS: bool>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
        (at, own): (usize, Option<&TableMut<'_>>),
    ) -> Option<Overlap> {
        let step = step_keys::<S, MR>();
        let overlap = Overlap::new::<S>(&self.sequence, &queries.tile, block.first, block.count, step)?;
        let overlap = self.shown::<S>(overlap, block, queries)?;
        if let Some(drop) = &mut scratch.drop {
            drop.draw::<S>(block.first, block.count, overlap.lanes::<S>(), 0);
        }
        for panel in overlap.panels.begin..overlap.panels.end {
            let lane = panel * panel_width::<S>();
            let visible =
                Visible::computing::<S>(&self.sequence, &queries.tile, lane, block.first, overlap.keys);
            let is_plain = self.backward.call.stage.is_plain(|| {
                let keys = block.first + visible.keys.begin..block.first + visible.keys.end;
                let lanes = lane..lane + panel_width::<S>();
                let operands = &self.backward.call.operands;
                operands.show_all(&self.sequence, queries.head, (&queries.tile, lanes), keys)
            });
            if !is_plain {
                self.change::<S, MR>(scratch, block, queries, panel, visible);
            }
            let place = At { panel, visible, sums: at };
            if let (false, Some(dbias)) = (BIAS, own) {
                match scratch.drop.is_some() {
                    true => self.panel_weights::<S, MR, true, TO_BOTH>(scratch, block, queries, place),
                    false => self.panel_weights::<S, MR, false, TO_BOTH>(scratch, block, queries, place),
                }
                self.write_panel::<S>(dbias, scratch, (block, queries), panel, visible.keys);
                continue;
            }
            match (scratch.drop.is_some(), is_plain) {
                (true, _) if BIAS => {
                    self.panel_weights::<S, MR, true, TO_BIAS>(scratch, block, queries, place)
                }
                (false, _) if BIAS => {
                    self.panel_weights::<S, MR, false, TO_BIAS>(scratch, block, queries, place)
                }
                (true, true) => self.panel_weights::<S, MR, true, PLAIN>(scratch, block, queries, place),
                (false, true) => self.panel_weights::<S, MR, false, PLAIN>(scratch, block, queries, place),
                (true, false) => self.panel_weights::<S, MR, true, CHANGED>(scratch, block, queries, place),
                (false, false) => self.panel_weights::<S, MR, false, CHANGED>(scratch, block, queries, place),
            }
        }
        Some(overlap)
    }

    /// Without the first and the last panels to which a mask shows none of the keys; `None` if it shows none to any.
    fn shown<S: Simd>(&self, overlap: Overlap, block: Keys, queries: Queries) -> Option<Overlap> {
        let Overlap { keys, panels } = overlap;
        let (width, operands) = (panel_width::<S>(), &self.backward.call.operands);
        let keys = block.first + keys.begin..block.first + keys.end;
        let is_shown = |panel: &usize| {
            let lanes = panel * width..(panel + 1) * width;
            operands.show(&self.sequence, queries.head, (&queries.tile, lanes), keys.clone())
        };
        let mut shown = panels.begin..panels.end;
        let begin = shown.find(is_shown)?;
        let end = shown.rfind(is_shown).unwrap_or(begin) + 1;
        Some(Overlap { panels: Span { begin, end }, ..overlap })
    }

    /// The scores of one panel where they are not products, in memory.
    #[inline(always)]
    unsafe fn change<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
        panel: usize,
        visible: Visible,
    ) {
        let (call, width) = (&self.backward.call, panel_width::<S>());
        let words = self.dims.qk_padded / S::UNIT;
        let q = Right { p: scratch.q.words().add(panel * words * width), step: width };
        let scores = scratch.scores.floats();
        ScoreStage::scores_to::<S, MR>(call, words, (block.k, visible.keys), q, scores);
        let place = Panel {
            sequence: &self.sequence,
            head: queries.head,
            tile: &queries.tile,
            lane: panel * width,
            first_key: block.first,
            keys: visible.keys,
            scores,
            slopes: scratch.slopes.floats(),
        };
        (self.entries.change)(call, &place, &mut scratch.stage);
    }

    #[inline(always)]
    unsafe fn panel_weights<S: Simd, const MR: usize, const DROP: bool, const KIND: u8>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
        At { panel, visible, sums }: At,
    ) {
        let call = &self.backward.call;
        let width = panel_width::<S>();
        let (qk_words, v_words) = (self.dims.qk_padded / S::UNIT, self.dims.v_padded / S::UNIT);
        let lane = panel * width;
        let q = Right { p: scratch.q.words().add(panel * qk_words * width), step: width };
        let dout = Right { p: scratch.dout.words().add(panel * v_words * width), step: width };
        let (factor, zero) = (call.stage.factor::<S>(), S::splat(0.0));
        let bounds =
            if visible.hides { visible.bounds::<S>(&self.sequence, &queries.tile) } else { Bounds::none() };
        let large = self.backward.references.is_some();
        let careful = call.careful && !S::PAIRS; // never with pairs
        let (hides, has_slope) = (call.stage.hides(), call.stage.has_slope());
        let (with_slope, keep_scale) = (has_slope && KIND != TO_BIAS, S::splat(call.keep_scale as f32));
        let mut rows = [Row::<S> { base: zero, minus_lse: zero, delta: zero, bits: None }; NV];
        for (n, row) in rows.iter_mut().enumerate() {
            let lane = lane + n * S::LANES;
            row.base = S::load(scratch.base.floats().add(lane));
            row.minus_lse = S::load(scratch.minus_lse_log2.floats().add(lane));
            row.delta = S::load(scratch.delta.floats().add(lane));
            row.bits = if DROP { scratch.drop.as_ref().map(|drop| drop.lanes(lane)) } else { None };
        }
        if S::TILES {
            if KIND == PLAIN {
                let scores = scratch.scores.floats();
                ScoreStage::scores_to::<S, MR>(call, qk_words, (block.k, visible.keys), q, scores);
            }
            let dp = scratch.dp.floats();
            ScoreStage::scores_to::<S, MR>(call, v_words, (block.v, visible.keys), dout, dp);
        }
        for key in (visible.keys.begin..visible.keys.end).step_by(MR) {
            scratch.ahead.ask();
            let a = Left { p: block.k.p.add(key * block.k.ld), row: block.k.ld, step: 1 };
            let mut p = if KIND == PLAIN && !S::TILES {
                call.stage.scores::<S, MR>(qk_words, a, q)
            } else {
                load_micro_tile::<S, MR>(scratch.scores.floats().add(key * width))
            };
            if large {
                for p in &mut p {
                    for (p, row) in p.iter_mut().zip(&rows) {
                        *p = S::sub(*p, row.base);
                    }
                }
            }
            for (m, p) in p.iter_mut().enumerate() {
                for (n, p) in p.iter_mut().enumerate() {
                    let mut weight = if KIND == PLAIN || S::PAIRS || careful {
                        factor.weight(*p, rows[n].minus_lse)
                    } else {
                        factor.weight_or_zero(*p, rows[n].minus_lse)
                    };
                    if KIND != PLAIN && hides {
                        weight = S::where_less(*p, S::splat(HIDDEN), zero, weight);
                    }
                    if careful {
                        weight = S::abs(weight); // the NaN that arithmetic makes has its sign bit set
                    }
                    *p = if visible.hides { bounds.hide_behind(n, key + m, weight, zero) } else { weight };
                }
            }
            bounds.hide_before(key, &mut p, zero);
            if DROP {
                for (m, p) in p.iter_mut().enumerate() {
                    for (p, row) in p.iter_mut().zip(&rows) {
                        *p = row.sign(*p, key + m);
                    }
                }
            }
            let a = Left { p: block.v.p.add(key * block.v.ld), row: block.v.ld, step: 1 };
            let mut ds = if S::TILES {
                load_micro_tile::<S, MR>(scratch.dp.floats().add(key * width))
            } else {
                product::<S, MR, NV>(v_words, a, dout)
            };
            for (m, (p, ds)) in p.iter_mut().zip(&mut ds).enumerate() {
                for (n, ((p, ds), row)) in p.iter_mut().zip(ds).zip(&rows).enumerate() {
                    let kept = S::sub(*ds, row.delta);
                    *ds = S::mul(*p, if DROP { S::by_sign(*p, kept, row.delta) } else { kept });
                    if KIND == TO_BOTH {
                        let own = if careful { S::where_nonzero(*p, *ds, zero) } else { *ds };
                        let at = scratch.scores.floats().add((key + m) * width + n * S::LANES);
                        S::store(at, S::mul(own, keep_scale));
                    }
                    if KIND != PLAIN && with_slope {
                        let slope = scratch.slopes.floats().add((key + m) * width + n * S::LANES);
                        *ds = S::mul(*ds, S::load(slope));
                        // Where scores are saturated, slopes make subnormals of any weights.
                        *ds = S::where_less(S::abs(*ds), S::splat(SUBNORMAL), zero, *ds);
                    }
                    if careful {
                        *ds = S::where_nonzero(*p, *ds, zero);
                    }
                    if DROP {
                        *p = if careful { S::by_sign(*p, *p, zero) } else { S::max(zero, *p) };
                    }
                }
            }
            if KIND == TO_BIAS {
                add_micro_tile::<S, MR>(scratch.bias.floats().add((sums + key) * TILE_ROWS + lane), &ds);
            } else {
                self.store_weights::<S, MR>(scratch, key, lane, &p, &ds);
            }
        }
    }

    /// Puts MR keys of relu(p) and ds where the products want them.
    #[inline(always)]
    unsafe fn store_weights<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        key: usize,
        lane: usize,
        p: &[[S::V; NV]; MR],
        ds: &[[S::V; NV]; MR],
    ) {
        let (p_rows, ds_rows) = (scratch.p.words(), scratch.ds.words());
        for m in 0..MR {
            for n in 0..NV {
                let at = ((key + m) * TILE_ROWS + lane + n * S::LANES) / S::UNIT;
                if S::PAIRS {
                    S::store_weights(p_rows.add(at).cast(), p[m][n]);
                    S::store_weights(ds_rows.add(at).cast(), ds[m][n]);
                    if m % 2 == 0 {
                        let at = (key + m) / 2 * TILE_ROWS + lane + n * S::LANES;
                        S::store_pair(scratch.ds_pairs.words().add(at), ds[m][n], ds[m + 1][n]);
                    }
                } else {
                    S::store(p_rows.add(at).cast(), p[m][n]);
                    S::store(ds_rows.add(at).cast(), ds[m][n]);
                }
            }
        }
    }
}
