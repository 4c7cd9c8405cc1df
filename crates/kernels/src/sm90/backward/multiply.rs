//! The multiplying warpgroups: products, and in the end dk and dv.
use super::dq::Turn;
use super::results::KeyGradient;
use super::scores::OfQueries;
use super::{Block, FIRST_BARRIER, KEYS_READ, MULTIPLIERS, Queries, rows_bytes};
use crate::config::Scores;
use crate::parts::cursor::Cursor;
use crate::parts::overlays::{ByKeys, dynamic};
use crate::parts::product::pack;
use crate::rows::statistics;
use crate::sm90::forward::WG_ROWS;
use crate::sm90::out::stage_words;
use signflash_ptx::{
    Acc, B32, BoxTile, BulkRingConsumer, BulkRingProducer, Columns, Product, Rows, SmemAddr, Thread, U32,
    Val, Var, Warpgroup,
};

/// A left operand: for each 16 columns four registers.
pub(super) type Operand<'k> = Vec<[Var<'k, B32>; 4]>;

/// What a multiplying warpgroup has at hand.
pub(super) struct Keys<'a, 'k> {
    pub(super) block: &'a Block<'a, 'k>,
    pub(super) wg: Warpgroup<'k>,
    pub(super) wg_number: Val<'k, U32>,
    /// The same, known to each thread by itself: where threads need it, no lane has to ask another.
    own_wg_number: Val<'k, U32>,
    /// Its rows of k and v.
    k: BoxTile<'k>,
    v: BoxTile<'k>,
    pub(super) k_of_all: BoxTile<'k>,
    queries: BulkRingConsumer<'k>,
    flags: Option<BulkRingConsumer<'k>>,
    to_ds: BulkRingProducer<'k>,
    pub(super) ds_of_all: BulkRingConsumer<'k>,
    s: Acc<'k>,
    dp: Acc<'k>,
    dk: Acc<'k>,
    dv: Acc<'k>,
    p: Operand<'k>,
    ds: Operand<'k>,
    overlays: Option<ByKeys<'k>>,
}

impl<'k> Block<'_, 'k> {
    /// All that a multiplying warpgroup does.
    pub(super) fn multiply(&self, wg: Warpgroup<'k>, wg_number: Val<'k, U32>) {
        let (warp, smem) = (wg.warps(), &self.smem);
        let mut keys = smem.keys.consumer(warp);
        let stage = keys.wait(warp);
        let mut own = Keys::new(self, wg, wg_number, stage.address());
        own.walk();
        // Everybody has read k, whose place dk takes.
        stage.release(warp);
        wg.sync_among(KEYS_READ, 128 * MULTIPLIERS);
        own.finish(smem.keys.data());
    }

    /// k q^T of 64 keys.
    pub(super) fn scores<'p>(&self, k: BoxTile<'k>, q: BoxTile<'k>) -> Product<'p, 'k> {
        self.over_columns(k, q, self.common.operands.dims().q)
    }

    /// v dout^T of 64 keys.
    pub(super) fn gradients<'p>(&self, v: BoxTile<'k>, dout: BoxTile<'k>) -> Product<'p, 'k> {
        self.over_columns(v, dout, self.common.operands.dims().v)
    }

    /// rows (64) * columns^T over so many columns of a head.
    fn over_columns<'p>(&self, rows: BoxTile<'k>, columns: BoxTile<'k>, depth: u32) -> Product<'p, 'k> {
        Product {
            rows: Rows::Tile(rows),
            columns: Columns::OfRows(columns),
            depth,
            half: self.common.operands.half,
            add: false,
            columns_at_once: None,
        }
    }

    /// p^T or ds^T times a step of dout or q, added.
    pub(super) fn over_queries<'p>(
        &self,
        words: &'p [[Var<'k, B32>; 4]],
        queries: BoxTile<'k>,
    ) -> Product<'p, 'k> {
        Product {
            rows: Rows::Registers(words),
            columns: Columns::Plain(queries),
            depth: self.form.step,
            half: self.common.operands.half,
            add: true,
            columns_at_once: None,
        }
    }
}

/// For so many columns.
pub(super) fn operand<'k>(t: Thread<'k>, columns: u32) -> Operand<'k> {
    (0..columns / 16).map(|_| [(); 4].map(|()| t.u32(0).cast::<B32>().var())).collect()
}

pub(super) fn set<'k>(operand: &[[Var<'k, B32>; 4]], words: &[[Val<'k, B32>; 4]]) {
    let pairs = operand.iter().flatten().zip(words.iter().flatten());
    pairs.for_each(|(var, word)| var.set(*word));
}

impl<'a, 'k> Keys<'a, 'k> {
    /// With k and v at this address.
    fn new(block: &'a Block<'a, 'k>, wg: Warpgroup<'k>, wg_number: Val<'k, U32>, keys: SmemAddr<'k>) -> Self {
        let Block { smem, common, form, .. } = block;
        let (warp, t) = (wg.warps(), wg.threads());
        let tile = |at: SmemAddr<'k>| BoxTile::new(at, form.keys);
        let own_row = wg_number * WG_ROWS;
        let ([k_bytes, _], dims) = (rows_bytes(common, form.keys), common.operands.dims());
        let own = Keys {
            block,
            wg,
            wg_number,
            own_wg_number: t.index() >> 7u32,
            k: tile(keys).from_row_of(own_row),
            v: tile(keys.at(k_bytes)).from_row_of(own_row),
            k_of_all: tile(keys),
            queries: smem.queries.consumer(warp),
            flags: smem.flags.map(|ring| ring.consumer(warp)),
            to_ds: smem.ds.producer(t),
            ds_of_all: smem.ds.consumer(warp),
            s: wg.acc(form.step),
            dp: wg.acc(form.step),
            dk: wg.acc(dims.q),
            dv: wg.acc(dims.v),
            p: operand(t, form.step),
            ds: operand(t, form.step),
            overlays: block.overlays_of(warp, || t.index() >> 7u32),
        };
        own.dk.clear();
        own.dv.clear();
        own
    }

    fn walk(&mut self) {
        let (block, wg, wg_number) = (self.block, self.wg, self.wg_number);
        let (at, turn) = (block.cursor(), Turn::new(wg.threads(), block, 0));
        at.walk(wg, || {
            self.step(&at, &turn);
            self.take_turn(&turn);
            turn.advance(block, &at);
        });
        block.pass_turn(wg, wg_number, &turn);
        self.take_turn(&turn);
        block.tell(wg, &turn);
    }

    fn step(&mut self, at: &Cursor<'k>, turn: &Turn<'k>) {
        let Keys {
            block,
            wg,
            wg_number,
            own_wg_number,
            k,
            v,
            queries,
            flags,
            to_ds,
            s,
            dp,
            dk,
            dv,
            p,
            ds,
            overlays,
            ..
        } = self;
        let (block, wg, own_wg_number) = (*block, *wg, *own_wg_number);
        let (warp, common, form) = (wg.warps(), block.common, block.form);
        let stage = queries.wait(warp);
        let Queries { q, dout, stats } = block.queries(&stage);
        let scores = wg.multiply(s, &block.scores(*k, q));
        let gradients = wg.multiply(dp, &block.gradients(*v, dout));

        // Whatever fits in registers is read now, while the products run.
        let few = form.step <= 64;
        let of_queries =
            |offset, early| OfQueries::new(wg.threads(), stats.at(offset), form.step as usize / 8, early);
        let Scores { dropout, kind, .. } = common.scores;
        let lse = of_queries(0, few && !(kind.is_capped() && (dropout || common.scores.adds())));
        let delta = of_queries(statistics::DELTA, few && !dropout);
        let flags = flags.as_mut().map(|ring| ring.wait(warp));
        let own_flags = flags.as_ref().map(|stage| block.own_flags(warp, stage, own_wg_number));
        let read = block.read(overlays.as_ref(), at);
        let of_head = block.head_scores(wg.threads(), at);
        let s = scores.wait();
        let place = || block.place(wg.threads(), own_wg_number, at);
        let weights = of_head.prepare_for_gradients(warp, s, place, dynamic(&read));
        block.probabilities((s, &weights), &lse, own_flags, p);
        flags.into_iter().for_each(|stage| stage.release(warp));
        block.pass_turn(wg, *wg_number, turn);
        let dp = gradients.wait();
        block.score_gradients(|group| [0, 1, 2, 3].map(|i| s.at(group, i).get()), dp, &delta);
        if weights.are_bent() {
            block.hide(warp, own_wg_number, at, &[dp], Some(p));
        } else {
            block.hide(warp, own_wg_number, at, &[s, dp], None);
            // The dropped p are negative: relu makes them 0.
            set(p, &pack(s, common.operands.half, common.scores.dropout));
        }
        let values = wg.multiply(dv, &block.over_queries(p, dout));
        let words = pack(dp, common.operands.half, false);
        set(ds, &words);
        BulkRingProducer::fill_with_stores(&mut [to_ds], warp, |stages| {
            let own = stages[0].plus(own_wg_number * (WG_ROWS * 128));
            for (i, words) in (0..).zip(words.chunks(4)) {
                stage_words(wg, words, own.at(i * form.keys * 128));
            }
            wg.threads().fence_proxy_async();
        });
        let keys = wg.multiply(dk, &block.over_queries(ds, q));
        values.wait();
        keys.wait();
        stage.release(warp);
    }

    /// Scales and writes dk and dv; `keys` is where k was, and v behind it.
    fn finish(&self, keys: SmemAddr<'k>) {
        let Keys { block, wg, wg_number, own_wg_number, dk, dv, .. } = self;
        let common = block.common;
        let [dk_scale, dv_scale] = block.result_scales(wg.threads());
        let ([k_bytes, _], [of_k, of_v]) = (rows_bytes(common, block.form.keys), rows_bytes(common, WG_ROWS));
        let own_k = *own_wg_number * of_k;
        let own_v = if of_v == of_k { own_k } else { *own_wg_number * of_v };
        let (k_place, v_place) = (keys.plus(own_k), keys.at(k_bytes).plus(own_v));
        let results = [
            KeyGradient { sum: dk, scale: dk_scale, place: k_place, to: block.args.dk },
            KeyGradient { sum: dv, scale: dv_scale, place: v_place, to: block.args.dv },
        ];
        block.write(
            *wg,
            *wg_number + FIRST_BARRIER,
            block.first_key() + *wg_number * WG_ROWS,
            &results,
            |_| (),
        );
        // Also what the warp's lane 0 has added last.
        let t = wg.threads();
        t.when(t.lane().eq(0), |t| t.wait_stored());
    }
}
