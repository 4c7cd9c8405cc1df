//! The multiplying warpgroups: products, and in the end dk and dv.
use super::dq::Turn;
use super::results::KeyGradient;
use super::scores::OfQueries;
use super::{Block, FIRST_BARRIER, KEYS_READ, MULTIPLIERS, Queries, Smem, rows_bytes};
use crate::config::Scores;
use crate::parts::cursor::Cursor;
use crate::parts::overlays::{ByKeys, OverlayOf, dynamic};
use crate::parts::product::pack;
use crate::parts::scores::Weights;
use crate::rows::statistics;
use crate::sm90::forward::WG_ROWS;
use crate::sm90::out::stage_words;
use signflash_ptx::{
    Acc, B32, BoxTile, BulkRingConsumer, BulkRingProducer, Columns, FullStage, Product, Rows, SmemAddr,
    Thread, U32, Val, Var, Warpgroup,
};

/// A left operand: for each 16 columns four registers.
pub(super) type Operand<'k> = Vec<[Var<'k, B32>; 4]>;

/// What a multiplying warpgroup has at hand.
pub(super) struct Keys<'a, 'k> {
    pub(super) block: &'a Block<'a, 'k>,
    pub(super) wg: Warpgroup<'k>,
    pub(super) wg_number: Val<'k, U32>,
    pub(super) own: OwnKeys<'k>,
    pub(super) rings: &'a mut Rings<'k>,
    s: Acc<'k>,
    dp: Acc<'k>,
    dk: Acc<'k>,
    dv: Acc<'k>,
    p: Operand<'k>,
    ds: Operand<'k>,
    overlays: Option<ByKeys<'k>>,
}

/// Its rows of k and v.
pub(super) struct OwnKeys<'k> {
    /// Its number, known to each thread by itself: where threads need it, no lane has to ask another.
    wg_number: Val<'k, U32>,
    k: BoxTile<'k>,
    v: BoxTile<'k>,
    pub(super) k_of_all: BoxTile<'k>,
}

/// A tile of a block that takes several, which it has waited for.
pub(super) struct OneOfSeveral<'r, 'k> {
    pub(super) k: FullStage<'r, 'k>,
    pub(super) v: FullStage<'r, 'k>,
    /// How many phases of `dq_left` have passed before.
    pub(super) passed: Val<'k, U32>,
}

/// Where it is in the rings, from step to step and from tile to tile.
pub(super) struct Rings<'k> {
    queries: BulkRingConsumer<'k>,
    flags: Option<BulkRingConsumer<'k>>,
    /// If a bias comes in boxes.
    bias: Option<BulkRingConsumer<'k>>,
    to_ds: BulkRingProducer<'k>,
    pub(super) ds_of_all: BulkRingConsumer<'k>,
}

impl<'k> Rings<'k> {
    pub(super) fn new(wg: Warpgroup<'k>, smem: &Smem<'k>) -> Self {
        let warp = wg.warps();
        Rings {
            queries: smem.queries.consumer(warp),
            flags: smem.flags.map(|ring| ring.consumer(warp)),
            bias: smem.bias.map(|ring| ring.consumer(warp)),
            to_ds: smem.ds.producer(wg.threads()),
            ds_of_all: smem.ds.consumer(warp),
        }
    }
}

impl<'k> OwnKeys<'k> {
    /// With k and v of a tile at these addresses.
    pub(super) fn new(
        block: &Block<'_, 'k>,
        wg: Warpgroup<'k>,
        wg_number: Val<'k, U32>,
        [k, v]: [SmemAddr<'k>; 2],
    ) -> Self {
        let tile = |at: SmemAddr<'k>| BoxTile::new(at, block.form.keys);
        let own_row = wg_number * WG_ROWS;
        OwnKeys {
            wg_number: wg.threads().index() >> 7u32,
            k: tile(k).from_row_of(own_row),
            v: tile(v).from_row_of(own_row),
            k_of_all: tile(k),
        }
    }
}

impl<'k> Block<'_, 'k> {
    /// All that a multiplying warpgroup does.
    pub(super) fn multiply(&self, wg: Warpgroup<'k>, wg_number: Val<'k, U32>) {
        let (warp, smem) = (wg.warps(), &self.smem);
        let mut keys = smem.keys.consumer(warp);
        let stage = keys.wait(warp);
        let (k, [k_bytes, _]) = (stage.address(), rows_bytes(self.common, self.form.keys));
        let own = OwnKeys::new(self, wg, wg_number, [k, k.at(k_bytes)]);
        let mut rings = Rings::new(wg, smem);
        let mut own = Keys::new(self, wg, wg_number, own, &mut rings);
        own.walk(None);
        // Everybody has read k, whose place dk takes.
        stage.release(warp);
        wg.sync_among(KEYS_READ, 128 * MULTIPLIERS);
        let (k, [k_bytes, _]) = (smem.keys.data(), rows_bytes(self.common, self.form.keys));
        own.finish([k, k.at(k_bytes)]);
        own.wait_stored();
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

impl<'k> Block<'_, 'k> {
    /// ds of a step and of a warpgroup's keys, for all to read.
    fn put_ds(
        &self,
        wg: Warpgroup<'k>,
        to: &mut BulkRingProducer<'k>,
        wg_number: Val<'k, U32>,
        words: &[[Val<'k, B32>; 4]],
    ) {
        BulkRingProducer::fill_with_stores(&mut [to], wg.warps(), |stages| {
            let own = stages[0].plus(wg_number * (WG_ROWS * 128));
            for (i, words) in (0..).zip(words.chunks(4)) {
                stage_words(wg, words, own.at(i * self.form.keys * 128));
            }
            wg.threads().fence_proxy_async();
        });
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
    /// Before the first step of a tile.
    pub(super) fn new(
        block: &'a Block<'a, 'k>,
        wg: Warpgroup<'k>,
        wg_number: Val<'k, U32>,
        own: OwnKeys<'k>,
        rings: &'a mut Rings<'k>,
    ) -> Self {
        let Block { common, form, .. } = block;
        let (t, dims) = (wg.threads(), common.operands.dims());
        let own = Keys {
            block,
            wg,
            wg_number,
            own,
            rings,
            s: wg.acc(form.step),
            dp: wg.acc(form.step),
            dk: wg.acc(dims.q),
            dv: wg.acc(dims.v),
            p: operand(t, form.step),
            ds: operand(t, form.step),
            overlays: block.overlays_of(wg.warps(), || t.index() >> 7u32),
        };
        own.dk.clear();
        own.dv.clear();
        own
    }

    /// Through the queries that see some of the tile's keys.
    pub(super) fn walk(&mut self, several: Option<OneOfSeveral<'_, 'k>>) -> Turn<'k> {
        let (block, wg, wg_number) = (self.block, self.wg, self.wg_number);
        let passed = several.as_ref().map(|tile| tile.passed);
        let (at, turn) = (block.cursor(), Turn::new(wg.threads(), block, 0, passed));
        let end = |own: &mut Self| {
            own.take_turn(&turn, None);
            turn.advance(block, &at);
        };
        if block.form.persistent {
            let seers = block.seers(wg_number);
            let seen = || seers.see(at.step.get());
            // A loop of each: ways that part within one cost the steps that are multiplied time.
            wg.while_(
                || at.more(),
                |wg| {
                    at.walk_while(
                        wg,
                        || !seen(),
                        || {
                            self.pass_over(&turn);
                            end(self);
                        },
                    );
                    at.walk_while(wg, seen, || {
                        self.step(&at, &turn);
                        end(self);
                    });
                },
            );
        } else {
            at.walk(wg, || {
                self.step(&at, &turn);
                end(self);
            });
        }
        let k = several.map(|OneOfSeveral { k, v, .. }| {
            v.release_products(wg.warps());
            k
        });
        block.wait_left(wg, &turn);
        block.pass_turn(wg, wg_number, &turn);
        self.take_turn(&turn, k);
        if block.form.ordered {
            block.tell(wg, &turn);
        }
        turn
    }

    /// A step of queries of which none sees a key of its own: the other warpgroup's dq needs ds of all keys.
    fn pass_over(&mut self, turn: &Turn<'k>) {
        let Keys { block, wg, wg_number, own, rings, .. } = self;
        let (warp, t, form) = (wg.warps(), wg.threads(), block.form);
        rings.queries.wait(warp).release(warp);
        rings.flags.iter_mut().chain(&mut rings.bias).for_each(|ring| ring.wait(warp).release(warp));
        block.wait_left(*wg, turn);
        block.pass_turn(*wg, *wg_number, turn);
        let zero = t.u32(0).cast::<B32>().var().get(); // in a register
        block.put_ds(*wg, &mut rings.to_ds, own.wg_number, &vec![[zero; 4]; form.step as usize / 16]);
    }

    fn step(&mut self, at: &Cursor<'k>, turn: &Turn<'k>) {
        let Keys { block, wg, wg_number, own, rings, s, dp, dk, dv, p, ds, overlays } = self;
        let (Rings { queries, flags, bias, to_ds, .. }, OwnKeys { k, v, .. }) = (&mut **rings, &*own);
        let (block, wg, own_wg_number) = (*block, *wg, own.wg_number);
        let (warp, common, form) = (wg.warps(), block.common, block.form);
        let stage = queries.wait(warp);
        let Queries { q, dout, stats } = block.queries(&stage);
        let scores = wg.multiply(s, &block.scores(*k, q));
        let gradients = wg.multiply(dp, &block.gradients(*v, dout));

        // Whatever fits in registers is read now, while the products run.
        let few = form.step <= 64 && overlays.is_none();
        let of_queries =
            |offset, early| OfQueries::new(wg.threads(), stats.at(offset), form.step as usize / 8, early);
        let Scores { dropout, kind, .. } = common.scores;
        let lse = of_queries(0, few && !(kind.is_capped() && (dropout || common.scores.adds())));
        let delta = of_queries(statistics::DELTA, few && !dropout);
        let flags = flags.as_mut().map(|ring| ring.wait(warp));
        let own_flags = flags.as_ref().map(|stage| block.own_flags(warp, stage, own_wg_number));
        let bias = bias.as_mut().map(|ring| ring.wait(warp));
        let boxes = bias.as_ref().map(|stage| block.boxes(warp, stage, own_wg_number));
        let read = block.read(overlays.as_ref(), at);
        let overlay: Option<&dyn OverlayOf<'k>> = match &boxes {
            Some(boxes) => Some(boxes),
            None => dynamic(&read),
        };
        let of_head = block.head_scores(wg.threads(), at);
        let s = scores.wait();
        let place = || block.place(wg.threads(), own_wg_number, at);
        let weigh = |weights: &Weights<'_, 'k>| block.probabilities((s, weights), &lse, own_flags, p);
        // With more columns there are no registers for it.
        match common.operands.dims().max() <= 64 {
            true => of_head.with_weights(warp, s, (place, overlay), weigh),
            false => weigh(&of_head.prepare_for_gradients(warp, s, place, overlay)),
        }
        flags.into_iter().chain(bias).for_each(|stage| stage.release(warp));
        block.wait_left(wg, turn);
        block.pass_turn(wg, *wg_number, turn);
        let dp = gradients.wait();
        block.score_gradients(|group| [0, 1, 2, 3].map(|i| s.at(group, i).get()), dp, &delta);
        if kind.is_capped() {
            block.hide(warp, own_wg_number, at, &[dp], Some(p));
        } else {
            block.hide(warp, own_wg_number, at, &[s, dp], None);
            // The dropped p are negative: relu makes them 0.
            set(p, &pack(s, common.operands.half, common.scores.dropout));
        }
        let values = wg.multiply(dv, &block.over_queries(p, dout));
        let words = pack(dp, common.operands.half, false);
        set(ds, &words);
        block.put_ds(wg, to_ds, own_wg_number, &words);
        let keys = wg.multiply(dk, &block.over_queries(ds, q));
        values.wait();
        keys.wait();
        stage.release(warp);
    }

    /// Scales and starts to write dk and dv, by way of these places, each of all keys.
    pub(super) fn finish(&self, [dk_place, dv_place]: [SmemAddr<'k>; 2]) {
        let Keys { block, wg, wg_number, own, dk, dv, .. } = self;
        let common = block.common;
        let [dk_scale, dv_scale] = block.result_scales(wg.threads());
        let ([of_k, of_v], own) = (rows_bytes(common, WG_ROWS), own.wg_number);
        let own_k = own * of_k;
        let own_v = if of_v == of_k { own_k } else { own * of_v };
        let (k_place, v_place) = (dk_place.plus(own_k), dv_place.plus(own_v));
        let results = [
            KeyGradient { sum: dk, scale: dk_scale, place: k_place, to: block.results[0] },
            KeyGradient { sum: dv, scale: dv_scale, place: v_place, to: block.results[1] },
        ];
        block.write(
            *wg,
            *wg_number + FIRST_BARRIER,
            block.first_key() + *wg_number * WG_ROWS,
            &results,
            |_| (),
        );
    }

    /// Waits until what lanes 0 store and add has been read.
    pub(super) fn wait_stored(&self) {
        let t = self.wg.threads();
        t.when(t.lane().eq(0), |t| t.wait_stored());
    }
}
