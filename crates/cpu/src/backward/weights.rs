//! p and ds of one tile of queries and one block of keys: where the sign bit says what is dropped, and chooses.
#![allow(unsafe_op_in_unsafe_fn)]

use super::operands::{Keys, Queries};
use super::{Scratch, TILE_ROWS, Work};
use crate::gemm::{Left, NV, Right, product};
use crate::pack::panel_width;
use crate::simd::Simd;
use crate::visible::{Bounds, Overlap, Visible};

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

impl Work<'_> {
    /// p and ds of one block, and of which of its keys and panels; `None` if no row of the tile sees a key of it.
    #[inline(always)]
    pub(super) unsafe fn weights<S: Simd, const MR: usize>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
    ) -> Option<Overlap> {
        let step = MR.max(S::UNIT);
        let overlap = Overlap::new::<S>(&self.sequence, &queries.tile, block.first, block.count, step)?;
        if let Some(drop) = &mut scratch.drop {
            drop.draw::<S>(block.first, block.count, overlap.lanes::<S>());
        }
        for panel in overlap.panels.begin..overlap.panels.end {
            let lane = panel * panel_width::<S>();
            let visible =
                Visible::computing::<S>(&self.sequence, &queries.tile, lane, block.first, overlap.keys);
            if scratch.drop.is_some() {
                self.panel_weights::<S, MR, true>(scratch, block, queries, panel, visible);
            } else {
                self.panel_weights::<S, MR, false>(scratch, block, queries, panel, visible);
            }
        }
        Some(overlap)
    }

    #[inline(always)]
    unsafe fn panel_weights<S: Simd, const MR: usize, const DROP: bool>(
        &self,
        scratch: &mut Scratch,
        block: Keys,
        queries: Queries,
        panel: usize,
        visible: Visible,
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
        let mut rows = [Row::<S> { base: zero, minus_lse: zero, delta: zero, bits: None }; NV];
        for (n, row) in rows.iter_mut().enumerate() {
            let lane = lane + n * S::LANES;
            row.base = S::load(scratch.base.floats().add(lane));
            row.minus_lse = S::load(scratch.minus_lse_log2.floats().add(lane));
            row.delta = S::load(scratch.delta.floats().add(lane));
            row.bits = if DROP { scratch.drop.as_ref().map(|drop| drop.lanes(lane)) } else { None };
        }
        for key in (visible.keys.begin..visible.keys.end).step_by(MR) {
            let a = Left { p: block.k.p.add(key * block.k.ld), row: block.k.ld, step: 1 };
            let mut p = call.stage.scores::<S, MR>(qk_words, a, q);
            if large {
                for p in &mut p {
                    for (p, row) in p.iter_mut().zip(&rows) {
                        *p = S::sub(*p, row.base);
                    }
                }
            }
            for (m, p) in p.iter_mut().enumerate() {
                for (n, p) in p.iter_mut().enumerate() {
                    let mut weight = factor.weight(*p, rows[n].minus_lse);
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
            let mut ds = product::<S, MR, NV>(v_words, a, dout);
            for (p, ds) in p.iter_mut().zip(&mut ds) {
                for ((p, ds), row) in p.iter_mut().zip(ds).zip(&rows) {
                    let kept = S::sub(*ds, row.delta);
                    *ds = S::mul(*p, if DROP { S::by_sign(*p, kept, row.delta) } else { kept });
                    if careful {
                        *ds = S::where_nonzero(*p, *ds, zero);
                    }
                    if DROP {
                        *p = if careful { S::by_sign(*p, *p, zero) } else { S::max(zero, *p) };
                    }
                }
            }
            self.store_weights::<S, MR>(scratch, key, lane, &p, &ds);
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
