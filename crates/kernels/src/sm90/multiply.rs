//! The multiplying warpgroups: products, softmax, output.
use super::flags::FlagReader;
use super::forward::{Block, Tile, WG_ROWS};
use super::out::OutTile;
use super::results::{ResultVals, WideRows};
use super::softmax::LateSoftmax;
use super::turns::Turns;
use crate::config::{BandKind, Stored};
use crate::parts::epilogue::Before;
use crate::parts::hiding::{SeenKeys, Side, first_column, hide, hide_keys, hide_keys_on};
use crate::parts::overlays::{BoxRead, ByQueries, OverlayOf, OwnPart};
use crate::parts::scores::{Caution, Folding, HeadScores, Place, RowsAre, StepWeights};
use crate::parts::softmax::{RowResult, THREAD_ROWS, scale_rows};
use crate::parts::work::Work;
use crate::rows::head::QueryHeads;
use crate::rows::lse::LseRows;
use signflash_ptx::{
    Acc, B32, BoxTile, BulkRingConsumer, Columns, F32, FullStage, Operand, PendingProduct, Product, Rows,
    U32, Val, Var, Warp, Warpgroup,
};

/// What was read to be added to a step's scores, if anything was.
type StepRead<'k> = Option<Box<dyn OverlayOf<'k> + 'k>>;

/// A warpgroup that multiplies.
struct Multiplier<'a, 'k> {
    q: BulkRingConsumer<'k>,
    rows: OwnRows<'a, 'k>,
}

/// A tile of queries, and this warpgroup's part of it.
struct At<'a, 'k> {
    tile: &'a Tile<'k>,
    first_row: Val<'k, U32>,
    q: BoxTile<'k>,
    overlays: Option<ByQueries<'k>>,
    scores: HeadScores<'k>,
    /// One more score of each row, if rows have one.
    sink: Option<Val<'k, F32>>,
}

/// What a warpgroup carries from step to step and from tile to tile.
struct OwnRows<'a, 'k> {
    block: &'a Block<'a, 'k>,
    wg: Warpgroup<'k>,
    /// Its number among those that multiply.
    wg_number: Val<'k, U32>,
    turns: Turns<'k>,
    k: BulkRingConsumer<'k>,
    v: BulkRingConsumer<'k>,
    flags: Option<FlagReader<'k>>,
    /// If a bias comes in boxes.
    bias: Option<BulkRingConsumer<'k>>,
    softmax: LateSoftmax<'k>,
    /// Of a softcap, if there is one.
    caution: Caution<'k>,
    s: Acc<'k>,
    out: Acc<'k>,
    /// Probabilities: for each 16 keys an operand.
    p: Vec<[Var<'k, B32>; 4]>,
    store: OutTile<'k>,
}

impl<'k> Block<'_, 'k> {
    /// All that the multiplying warpgroups do.
    pub(super) fn multiply(&self, wg: Warpgroup<'k>) {
        let mut multiplier = Multiplier::new(self, wg);
        let tiles = self.tiles();
        wg.while_(
            || tiles.has_more(),
            |_| {
                let tile = self.tile(tiles.take());
                multiplier.tile(&tile);
            },
        );
        multiplier.rows.store.wait_stored(wg);
    }

    /// s = q k^T, under way.
    fn scores<'s>(
        &self,
        wg: Warpgroup<'k>,
        s: &'s mut Acc<'k>,
        q: BoxTile<'k>,
        k: BoxTile<'k>,
    ) -> PendingProduct<'s, 'k> {
        let (rows, columns) = (Rows::Tile(q), Columns::OfRows(k));
        let (depth, half) = (self.common.operands.head_dim, self.common.operands.half);
        wg.multiply(s, &Product { rows, columns, depth, half, add: false, columns_at_once: None })
    }

    /// out += p v.
    fn sums<'p>(&self, p: &'p [[Var<'k, B32>; 4]], v: BoxTile<'k>) -> Product<'p, 'k> {
        let (rows, columns) = (Rows::Registers(p), Columns::Plain(v));
        // With as many threads as dropout has, ptxas refuses instructions of 256 columns.
        let columns_at_once =
            (self.common.scores.dropout && self.common.operands.dims().v > 192).then_some(128);
        Product {
            rows,
            columns,
            depth: self.form.step,
            half: self.common.operands.half,
            add: true,
            columns_at_once,
        }
    }

    /// Whether queries are let go of when the last step's scores are there, not with its last product: the sooner do the next
    /// ones come. With dropout that was slower in long windows.
    fn lets_go_early(&self) -> bool {
        !self.form.out_in_q && !self.common.scores.dropout
    }

    /// The first key of a step.
    fn first_key(&self, step: Val<'k, U32>) -> Val<'k, U32> {
        step * self.form.step - self.problem.column_shift
    }

    /// Starts to read what is added to a step's scores, if anything is: from the boxes of a stage, or by lanes.
    fn read(
        &self,
        warp: Warp<'k>,
        (at, step): (&At<'_, 'k>, Val<'k, U32>),
        stage: Option<&FullStage<'_, 'k>>,
    ) -> StepRead<'k> {
        if let (Some(stage), Some(overlays)) = (stage, &self.overlays) {
            let kind = overlays.boxed().expect("what comes in boxes");
            return Some(Box::new(BoxRead::new(warp, kind, stage.address(), OwnPart::Queries)));
        }
        let read = at.overlays.as_ref()?.read(self.first_key(step), self.form.step);
        Some(Box::new(read))
    }

    /// Makes scores ready for the softmax: what they become, and what is hidden.
    fn prepare(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        read: &StepRead<'k>,
        (at, step): (&At<'_, 'k>, Val<'k, U32>),
    ) {
        let place = || self.place(warp, at, step);
        at.scores.prepare(warp, s, place, read.as_deref());
        self.hide(warp, s, f32::NEG_INFINITY, (at, step));
    }

    /// How a step's scores are weighed. They become ready for that, if that is all that it takes, products still.
    fn weights<'b>(
        &self,
        warp: Warp<'k>,
        (softmax, s): (&LateSoftmax<'k>, &Acc<'k>),
        read: &'b StepRead<'k>,
        (at, step): (&At<'_, 'k>, Val<'k, U32>),
        caution: &'b Caution<'k>,
    ) -> StepWeights<'b, 'k> {
        let Some(folding) = Folding::of(&self.common.scores) else {
            self.prepare(warp, s, read, (at, step));
            return softmax.of_t();
        };
        let is_edge = at.tile.keys.is_edge(step);
        let is_asked = self.key_mask(at.tile, self.first_key(step)).map(|(_, is_asked)| is_asked);
        let hides_some = is_asked.map_or(is_edge, |is_asked| is_edge | is_asked);
        let (folding, place) = ((folding, hides_some), || self.place(warp, at, step));
        let (weights, hidden) = at.scores.fold(warp, s, place, folding, read.as_deref(), caution);
        self.hide(warp, s, hidden, (at, step));
        weights
    }

    /// Where a thread's scores of a step lie.
    fn place(&self, warp: Warp<'k>, at: &At<'_, 'k>, step: Val<'k, U32>) -> Place<'k> {
        Place {
            rows_are: RowsAre::Queries,
            row: own_row(warp, at.first_row, 0),
            column: self.first_key(step) + first_column(warp.threads()),
        }
    }

    /// Gives what is hidden of a step this value.
    fn hide(
        &self,
        warp: Warp<'k>,
        s: &Acc<'k>,
        hidden: impl Operand<'k, F32> + Copy,
        (at, step): (&At<'_, 'k>, Val<'k, U32>),
    ) {
        if let Some((mask, is_asked)) = self.key_mask(at.tile, self.first_key(step)) {
            warp.when(is_asked, |warp| {
                let (t, first) = (warp.threads(), self.first_key(step) + first_column(warp.threads()));
                let columns = (0..s.groups() as u32).map(|group| [0, 1].map(|x| first + (8 * group + x)));
                let seen: Vec<_> = columns.map(|keys| keys.map(|key| mask.sees(t, key))).collect();
                hide(&[s], hidden, |_, column| seen[column as usize / 8][column as usize % 8]);
            });
        }
        let seen = |warp| {
            let sight = self.sight_of(at.tile);
            let seen: [_; THREAD_ROWS] =
                std::array::from_fn(|lower| SeenKeys::of(&sight, own_row(warp, at.first_row, lower)));
            (seen, self.first_key(step) + first_column(warp.threads()))
        };
        if self.common.scores.band != BandKind::Both {
            warp.when(at.tile.keys.is_edge(step), |warp| {
                let (seen, first) = seen(warp);
                hide_keys(s, &seen, first, hidden);
            });
            return;
        }
        for (side, is_edge) in [Side::Behind, Side::Before].into_iter().zip(at.tile.keys.edges(step)) {
            warp.when(is_edge, |warp| {
                let (seen, first) = seen(warp);
                hide_keys_on(side, s, &seen, first, hidden);
            });
        }
    }
}

impl<'k> Block<'_, 'k> {
    /// Normalises and writes out and lse.
    fn finish(
        &self,
        wg: Warpgroup<'k>,
        own: RowResult<'k>,
        out: &Acc<'k>,
        store: &OutTile<'k>,
        At { tile, first_row, .. }: &At<'_, 'k>,
    ) {
        let (warp, t) = (wg.warps(), wg.threads());
        let keep_scale = self.dropout.as_ref().map(|args| args.keep_scale);
        let (RowResult { inverse, lse }, before) = match self.common.operands.stored {
            Stored::Added => {
                let heads = QueryHeads::of(&self.problem, tile.work.sequence);
                let rows = [0, 1].map(|lower| own_row(warp, *first_row, lower));
                LseRows::of(heads.nth(tile.work.head)).with_others(warp, self.results.1, rows, own)
            }
            Stored::Rounded | Stored::Wide => (own, Before::Nothing),
        };
        scale_rows(out, inverse.map(|inverse| keep_scale.map_or(inverse, |scale| inverse * scale)));
        let Work { sequence, head, .. } = tile.work;
        let to = LseRows::of(QueryHeads::of(&self.problem, sequence).nth(head));
        for (lower, lse) in lse.into_iter().enumerate() {
            to.store(t, self.results.1, own_row(warp, *first_row, lower), lse);
        }
        let (rows, first) = (sequence.queries(), *first_row);
        match self.results.0 {
            ResultVals::Boxes(to) => store.store(wg, out, to, rows.coordinates(first, head)),
            ResultVals::Wide(to) => to.store(wg, out, WideRows { rows, head, first }, before),
        }
    }
}

/// One of the thread's two rows.
#[track_caller]
fn own_row<'k>(warp: Warp<'k>, first_row: Val<'k, U32>, lower: usize) -> Val<'k, U32> {
    first_row + ((warp.index() & 3) << 4u32) + (warp.threads().lane() >> 2) + 8 * lower as u32
}

fn set<'k>(p: &[Var<'k, B32>; 4], words: [Val<'k, B32>; 4]) {
    p.iter().zip(words).for_each(|(p, word)| p.set(word));
}

impl<'a, 'k> Multiplier<'a, 'k> {
    fn new(block: &'a Block<'a, 'k>, wg: Warpgroup<'k>) -> Self {
        let Block { common, form, smem, .. } = block;
        let (warp, wg_number) = (wg.warps(), wg.index());
        let zero = || warp.threads().u32(0).cast::<B32>().var();
        let q = smem.q.nth(wg_number).consumer(warp);
        let rows = OwnRows {
            block,
            wg,
            wg_number,
            turns: Turns::new(wg, wg_number, form),
            k: smem.k.consumer(warp),
            v: smem.v.consumer(warp),
            flags: smem.flags.map(|rings| FlagReader::new(warp, rings, wg_number, form)),
            bias: smem.bias.map(|rings| rings.nth(wg_number).consumer(warp)),
            softmax: LateSoftmax::new(warp, block.stage(), common),
            caution: Caution::new(wg.threads(), &common.scores),
            s: wg.acc(form.step),
            out: wg.acc(common.operands.dims().v),
            p: (0..form.step / 16).map(|_| [zero(), zero(), zero(), zero()]).collect(),
            store: OutTile::new(smem, common, wg_number),
        };
        Multiplier { q, rows }
    }

    /// 64 rows of a tile of queries.
    fn tile(&mut self, tile: &Tile<'k>) {
        let Multiplier { q, rows } = self;
        let (wg, warp) = (rows.wg, rows.wg.warps());
        let q_stage = q.wait(warp);
        let first_row = tile.first_row + rows.wg_number * WG_ROWS;
        let own = || [0, 1].map(|lower| own_row(warp, first_row, lower));
        let overlays = rows.block.overlays_of(warp, tile, own);
        let (Work { sequence, head, .. }, t) = (tile.work, wg.threads());
        let scores = rows.block.stage().of_head(t, sequence, || head);
        let sink = rows.block.sinks.map(|sinks| sinks.of_head(t, sequence, head));
        let q_tile = BoxTile::new(q_stage.address(), WG_ROWS);
        let at = At { tile, first_row, q: q_tile, overlays, scores, sink };
        // Of the queries nobody wants more than the last step's scores: the next ones come while those are gone through.
        let is_early = rows.block.lets_go_early();
        let let_go_before = |step: Val<'k, U32>| {
            if is_early {
                warp.when(!tile.steps.have(step), |warp| q_stage.let_go(warp));
            }
        };
        let next = tile.steps.second.var();
        rows.first(&at, || let_go_before(next.get()));
        wg.while_(
            || tile.steps.have(next.get()),
            |_| {
                let (step, after) = (next.get(), tile.steps.after(next.get()));
                rows.step(&at, step, || let_go_before(after));
                next.set(after);
            },
        );
        rows.last(&at, q_stage);
    }
}

impl<'k> OwnRows<'_, 'k> {
    /// The first step's scores and probabilities; their product with values comes with the next step's scores.
    fn first(&mut self, at: &At<'_, 'k>, let_go_of_queries: impl FnOnce()) {
        let OwnRows { block, wg, k, flags, bias, softmax, caution, s, out, p, .. } = self;
        let (warp, form) = (wg.warps(), block.form);
        out.clear();
        let k_stage = k.wait(warp);
        let scores = block.scores(*wg, s, at.q, BoxTile::new(k_stage.address(), form.step));
        let bias_stage = bias.as_mut().map(|bias| bias.wait(warp));
        let read = block.read(warp, (at, at.tile.steps.first), bias_stage.as_ref());
        scores.wait();
        k_stage.release_products(warp);
        let_go_of_queries();
        block.prepare(warp, s, &read, (at, at.tile.steps.first));
        bias_stage.into_iter().for_each(|stage| stage.release(warp));
        caution.reset();
        let selectors = flags.as_mut().map(|flags| flags.selectors(warp));
        softmax.first(s, p, selectors.as_ref());
    }

    /// A step: scores and the product with the last step's values together, then the softmax.
    fn step(&mut self, at: &At<'_, 'k>, step: Val<'k, U32>, let_go_of_queries: impl FnOnce()) {
        let OwnRows { block, wg, turns, k, v, flags, bias, softmax, caution, s, out, p, .. } = self;
        let (wg, warp, form) = (*wg, wg.warps(), block.form);
        let k_stage = k.wait(warp);
        turns.begin(wg);
        let scores = block.scores(wg, s, at.q, BoxTile::new(k_stage.address(), form.step));
        let v_stage = v.wait(warp);
        let sums = wg.multiply(out, &block.sums(p, BoxTile::new(v_stage.address(), form.step)));
        turns.end(wg);
        let bias_stage = bias.as_mut().map(|bias| bias.wait(warp));
        let read = block.read(warp, (at, step), bias_stage.as_ref());
        scores.wait();
        k_stage.release_products(warp);
        let_go_of_queries();
        let weights = block.weights(warp, (softmax, s), &read, (at, step), caution);
        let selectors = flags.as_mut().map(|flags| flags.selectors(warp));
        let selectors = selectors.as_ref();
        let mut progress = softmax.begin(weights);
        let early = 0..form.early as usize;
        let early: Vec<_> = early.map(|k16| softmax.next(&mut progress, s, k16, selectors)).collect();
        if form.early > 0 {
            v_stage.hold_order(warp);
        }
        let out = sums.wait();
        v_stage.release_products(warp);
        for (k16, p) in p.iter().enumerate() {
            let late = || softmax.next(&mut progress, s, k16, selectors);
            set(p, early.get(k16).copied().unwrap_or_else(late));
        }
        let prepare = |warp| block.prepare(warp, s, &read, (at, step));
        softmax.end(progress, (s, p, out), selectors, prepare);
        bias_stage.into_iter().for_each(|stage| stage.release(warp));
    }

    /// The last product with values, and the output.
    fn last(&mut self, at: &At<'_, 'k>, q_stage: FullStage<'_, 'k>) {
        let OwnRows { block, wg, v, softmax, out, p, store, .. } = self;
        let (wg, warp, form) = (*wg, wg.warps(), block.form);
        let v_stage = v.wait(warp);
        let sums = wg.multiply(out, &block.sums(p, BoxTile::new(v_stage.address(), form.step)));
        if form.out_in_q {
            let out = sums.wait();
            v_stage.release_products(warp);
            store.meet(wg); // the four warps' products have read the queries
            block.finish(wg, softmax.finish(at.sink), out, store, at);
            // The next queries come when the storing warp lets go, too.
            store.wait_stored(wg);
            q_stage.release(warp);
        } else {
            if block.lets_go_early() {
                q_stage.go_on();
            } else {
                q_stage.release_products(warp);
            }
            let out = sums.wait();
            v_stage.release_products(warp);
            store.wait(wg);
            block.finish(wg, softmax.finish(at.sink), out, store, at);
        }
    }
}
