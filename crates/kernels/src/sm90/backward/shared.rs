//! The multiplying warpgroups with a head_dim above 128, of q or of v, where dk and dv of 64 keys take all registers of one:
//! both work on the same 64 keys.
//!
//! ```text
//! probs     (warpgroup 0)  s = k q^T    p = exp2(s - lse), signed -> smem   dv += max(p, 0)^T dout   dq's first columns
//! gradients (warpgroup 1)  dp = v dout^T          ds from p and dp -> smem   dk += ds^T q            dq's others
//! ```
//! Each has one sum of 64 by a head_dim, one product over the other, and a part of dq, so that they take equally long. p
//! goes from one's registers to the other's as it is, in f32: threads of the same number have the same places of
//! their accumulators. `probs` computes its part of a step's dq only after the next step's p, so that it need not wait
//! for ds; `gradients` computes its part at once. Both start dq's product before that of their own sum, and add dq to
//! memory while the latter runs, from registers: there is no room to stage 64 KiB beside two steps of queries.
//!
//! | ring | filled by | read by | stages |
//! |---|---|---|---|
//! | `keys`, `queries` | the copying warp | both | 1, `stages` |
//! | `flags` | the four drawing warps | probs | `flag_stages` |
//! | `p` | probs | gradients | 1 |
//! | `ds` | gradients | both | `ds_stages`, 1 |
use super::dq::Turn;
use super::multiply::{Operand, operand, set};
use super::results::KeyGradient;
use super::scores::OfQueries;
use super::{Between, Block, FIRST_BARRIER, KEYS_READ, MULTIPLIERS, Queries, rows_bytes};
use crate::parts::cursor::Cursor;
use crate::parts::overlays::{ByKeys, dynamic};
use crate::parts::product::pack;
use crate::rows::statistics;
use crate::sm90::out::stage_words;
use signflash_ptx::{
    Acc, BoxTile, BulkRing, BulkRingConsumer, BulkRingProducer, SmemAddr, U32, Val, Warp, Warpgroup,
};

/// Columns of dq, which has so many, that the first warpgroup makes: half of them, in whole boxes.
fn first_columns(head_dim: u32) -> u32 {
    (head_dim / 2).next_multiple_of(64)
}

/// Bytes of p of 8 queries: four numbers of each thread.
const P_GROUP_BYTES: u32 = 16 * 128;

/// A warpgroup of the two: what both have.
struct Partner<'a, 'k> {
    block: &'a Block<'a, 'k>,
    wg: Warpgroup<'k>,
    k: BoxTile<'k>,
    /// k or v.
    own: BoxTile<'k>,
    ds: BulkRingConsumer<'k>,
    /// s or dp.
    scores: Acc<'k>,
    /// dv or dk.
    sum: Acc<'k>,
    /// p or ds, packed.
    operand: Operand<'k>,
    /// Columns of dq that it makes: the first, and how many.
    columns: [u32; 2],
    turn: Turn<'k>,
}

impl<'k> Block<'_, 'k> {
    /// All that a multiplying warpgroup does that shares its keys.
    pub(super) fn multiply_shared(&self, wg: Warpgroup<'k>, wg_number: Val<'k, U32>) {
        for number in 0..MULTIPLIERS {
            wg.when(wg_number.eq(number), |wg| self.take_role(wg, number));
        }
    }

    fn take_role(&self, wg: Warpgroup<'k>, number: u32) {
        let (warp, smem) = (wg.warps(), &self.smem);
        let Between::Probs(p) = smem.between else { unreachable!("planned for shared keys") };
        let mut keys = smem.keys.consumer(warp);
        let stage = keys.wait(warp);
        let partner = Partner::new(self, wg, number, stage.address());
        let sum = match number {
            0 => Probs::new(partner, p).walk(),
            _ => Gradients::new(partner, p).walk(),
        };
        // Everybody has read k and v, whose places dk and dv take.
        stage.release(warp);
        wg.sync_among(KEYS_READ, 128 * MULTIPLIERS);
        self.finish_shared(wg, number, &sum);
    }

    /// Scales and writes dv (of warpgroup 0) or dk.
    fn finish_shared(&self, wg: Warpgroup<'k>, number: u32, sum: &Acc<'k>) {
        let ([dk_scale, dv_scale], k) = (self.result_scales(wg.threads()), self.smem.keys.data());
        let result = match number {
            0 => {
                let [k_bytes, _] = rows_bytes(self.common, self.form.keys);
                let v = k.at(k_bytes);
                KeyGradient { sum, scale: dv_scale, place: v, to: self.results[1] }
            }
            _ => KeyGradient { sum, scale: dk_scale, place: k, to: self.results[0] },
        };
        self.write(wg, wg.threads().u32(FIRST_BARRIER + number), self.first_key(), &[result], |t| {
            t.wait_stored()
        });
    }
}

impl<'a, 'k> Partner<'a, 'k> {
    /// With k and v at this address.
    fn new(block: &'a Block<'a, 'k>, wg: Warpgroup<'k>, number: u32, keys: SmemAddr<'k>) -> Self {
        let Block { smem, common, form, .. } = block;
        let (warp, t) = (wg.warps(), wg.threads());
        let ([k_bytes, _], dims) = (rows_bytes(common, form.keys), common.operands.dims());
        let tile = |offset: u32| BoxTile::new(keys.at(offset), form.keys);
        let first = first_columns(dims.q);
        let partner = Partner {
            block,
            wg,
            k: tile(0),
            own: tile([0, k_bytes][number as usize]),
            ds: smem.ds.consumer(warp),
            scores: wg.acc(form.step),
            sum: wg.acc([dims.v, dims.q][number as usize]),
            operand: operand(t, form.step),
            columns: [[0, first], [first, dims.q - first]][number as usize],
            turn: Turn::new(t, block, number, None),
        };
        partner.sum.clear();
        partner
    }

    /// The next step's dq, and the sum's product over `queries`, if any, under which dq is added to memory.
    fn dq_and_sum(&mut self, queries: Option<BoxTile<'k>>) {
        let Partner { block, wg, k, ds, sum, operand, columns: [first, count], turn, .. } = self;
        let (warp, t, ordered) = (wg.warps(), wg.threads(), block.form.ordered);
        let mut dq = wg.acc(*count);
        let stage = ds.wait(warp);
        let all = BoxTile::new(stage.address(), block.form.keys);
        let pieces = wg.multiply(&mut dq, &block.over_keys(all, k.from_column(*first)));
        let product = queries.map(|queries| wg.multiply(sum, &block.over_queries(operand, queries)));
        if ordered {
            tell(block, *wg, turn);
            block.wait_turn(*wg, turn);
            warp.sync(); // lane 0 has waited for all
        }
        let dq = pieces.wait();
        stage.release_products(warp);
        block.add_from_registers(t, turn.tile.get(), dq, *first);
        product.into_iter().for_each(|product| {
            product.wait();
        });
    }

    /// The sum of all steps.
    fn finish(self) -> Acc<'k> {
        if self.block.form.ordered {
            tell(self.block, self.wg, &self.turn);
        }
        self.sum
    }
}

/// If blocks add in order: tells the next one of what was added a step ago, which has arrived in the meantime. (At
/// once, the warp would wait until it has.)
fn tell<'k>(block: &Block<'_, 'k>, wg: Warpgroup<'k>, turn: &Turn<'k>) {
    wg.warps().sync(); // lane 0 tells for all
    block.tell(wg, turn);
}

/// Where a thread's p of 8 queries is in a stage.
fn own_p<'k>(warp: Warp<'k>, stage: SmemAddr<'k>, group: u32) -> SmemAddr<'k> {
    stage.plus((warp.threads().index() & 127) * 16).at(group * P_GROUP_BYTES)
}

/// Warpgroup 0.
struct Probs<'a, 'k> {
    partner: Partner<'a, 'k>,
    queries: BulkRingConsumer<'k>,
    flags: Option<BulkRingConsumer<'k>>,
    to_p: BulkRingProducer<'k>,
    overlays: Option<ByKeys<'k>>,
}

impl<'a, 'k> Probs<'a, 'k> {
    fn new(partner: Partner<'a, 'k>, p: BulkRing<'k>) -> Self {
        let (warp, smem) = (partner.wg.warps(), &partner.block.smem);
        let queries = smem.queries.consumer(warp);
        Probs {
            queries,
            flags: smem.flags.map(|ring| ring.consumer(warp)),
            to_p: p.producer(warp.threads()),
            overlays: partner.block.overlays_of(warp, || warp.threads().u32(0)),
            partner,
        }
    }

    /// dv of the block's keys.
    fn walk(mut self) -> Acc<'k> {
        let (block, wg) = (self.partner.block, self.partner.wg);
        let at = block.cursor();
        at.walk(wg, || {
            self.step(&at);
            self.partner.turn.advance(block, &at);
        });
        wg.when(self.partner.turn.any(), |_| self.partner.dq_and_sum(None));
        self.partner.finish()
    }

    fn step(&mut self, at: &Cursor<'k>) {
        let Probs { partner, queries, flags, to_p, overlays } = self;
        let (block, wg) = (partner.block, partner.wg);
        let (warp, t, common) = (wg.warps(), wg.threads(), block.common);
        let stage = queries.wait(warp);
        let Queries { q, dout, stats } = block.queries(&stage);
        let product = wg.multiply(&mut partner.scores, &block.scores(partner.own, q));
        let lse = OfQueries::new(t, stats, block.form.step as usize / 8, true);
        let drawn = flags.as_mut().map(|ring| ring.wait(warp));
        let own_flags = drawn.as_ref().map(|stage| block.own_flags(warp, stage, t.u32(0)));
        let read = block.read(overlays.as_ref(), at);
        let of_head = block.head_scores(t, at);
        let s = product.wait();
        let place = || block.place(t, t.u32(0), at);
        let weights = of_head.prepare_for_gradients(warp, s, place, dynamic(&read));
        block.probabilities((s, &weights), &lse, own_flags, &partner.operand);
        drawn.into_iter().for_each(|stage| stage.release(warp));
        block.hide(warp, t.u32(0), at, &[s], weights.are_bent().then_some(&partner.operand));
        BulkRingProducer::fill_with_stores(&mut [to_p], warp, |stages| {
            for group in 0..s.groups() {
                t.store(own_p(warp, stages[0], group as u32), [0, 1, 2, 3].map(|i| s.at(group, i).get()));
            }
        });
        if !weights.are_bent() {
            // The dropped p are negative: relu makes them 0.
            set(&partner.operand, &pack(s, common.operands.half, common.scores.dropout));
        }
        // Nothing may be under way where ways part.
        let late = partner.turn.any();
        wg.when(late, |_| partner.dq_and_sum(Some(dout)));
        wg.when(!late, |wg| {
            wg.multiply(&mut partner.sum, &block.over_queries(&partner.operand, dout)).wait();
        });
        stage.release(warp);
    }
}

/// Warpgroup 1.
struct Gradients<'a, 'k> {
    partner: Partner<'a, 'k>,
    queries: BulkRingConsumer<'k>,
    p: BulkRingConsumer<'k>,
    to_ds: BulkRingProducer<'k>,
}

impl<'a, 'k> Gradients<'a, 'k> {
    fn new(partner: Partner<'a, 'k>, p: BulkRing<'k>) -> Self {
        let (warp, smem) = (partner.wg.warps(), &partner.block.smem);
        let queries = smem.queries.consumer(warp);
        Gradients { queries, p: p.consumer(warp), to_ds: smem.ds.producer(warp.threads()), partner }
    }

    /// dk of the block's keys.
    fn walk(mut self) -> Acc<'k> {
        let (block, wg) = (self.partner.block, self.partner.wg);
        let at = block.cursor();
        at.walk(wg, || self.step(&at));
        self.partner.finish()
    }

    fn step(&mut self, at: &Cursor<'k>) {
        let Gradients { partner, queries, p, to_ds } = self;
        let (block, wg) = (partner.block, partner.wg);
        let (warp, t, common, form) = (wg.warps(), wg.threads(), block.common, block.form);
        let stage = queries.wait(warp);
        let Queries { q, dout, stats } = block.queries(&stage);
        let product = wg.multiply(&mut partner.scores, &block.gradients(partner.own, dout));
        let delta =
            OfQueries::new(t, stats.at(statistics::DELTA), form.step as usize / 8, !common.scores.dropout);
        let probs = p.wait(warp);
        let dp = product.wait();
        block.score_gradients(|group| t.load(own_p(warp, probs.address(), group as u32)), dp, &delta);
        probs.release(warp);
        block.hide(warp, t.u32(0), at, &[dp], None);
        let words = pack(dp, common.operands.half, false);
        set(&partner.operand, &words);
        BulkRingProducer::fill_with_stores(&mut [to_ds], warp, |stages| {
            stage_words(wg, &words, stages[0]);
            t.fence_proxy_async();
        });
        partner.turn.advance(block, at);
        partner.dq_and_sum(Some(q));
        stage.release(warp);
    }
}
