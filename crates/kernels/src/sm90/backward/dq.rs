//! dq of a step, of all keys of the block: by the warpgroups in turn, a step late.
use super::multiply::Keys;
use super::{Between, Block, KEYS_READ, MULTIPLIERS, QUERIES, adds_downwards};
use crate::config::HopperKeysForm;
use crate::parts::cursor::Cursor;
use crate::rows::head::QueryHeads;
use signflash_ptx::{
    Acc, BoxTile, Columns, FullStage, GlobalAddr, Mbarrier, PendingProduct, Pred, Product, Rows, SmemAddr,
    Thread, U32, Val, Var, Warp, Warpgroup,
};

/// Which step's dq comes next.
pub(super) struct Turn<'k> {
    /// Steps whose ds has been made.
    done: Var<'k, U32>,
    /// The last one's number among those of all heads.
    pub(super) tile: Var<'k, U32>,
    /// If blocks tell each other: the step that this warpgroup has added last, or begun, and has told nobody of.
    untold: Option<Var<'k, U32>>,
    /// If the last keys' block is a step's first: the last one's number among those of its head.
    step: Option<Var<'k, U32>>,
    /// Its counters among those of a step.
    counters: u32,
    /// How many phases of `dq_left` had passed before the first turn, if some can have.
    passed: Option<Val<'k, U32>>,
}

/// No step's number.
const NONE: u32 = u32::MAX;

/// Warps of a warpgroup, each of which adds its rows' part of a step's dq, and bytes of their counters.
const ADDERS: u32 = 4;
const GROUP_COUNTERS_BYTES: u32 = 4 * ADDERS;

/// Bytes of a step's counters: of one warpgroup, or of both if they share the columns of dq.
pub(crate) fn counters_bytes(form: &HopperKeysForm) -> u32 {
    if form.shares_keys() { 2 * GROUP_COUNTERS_BYTES } else { GROUP_COUNTERS_BYTES }
}

/// Which of them this is.
fn adder<'k>(t: Thread<'k>) -> Val<'k, U32> {
    t.index() >> 5u32 & (ADDERS - 1)
}

impl<'k> Turn<'k> {
    /// Of a warpgroup that adds all columns, or, if two share them, the part of this number.
    pub(super) fn new(t: Thread<'k>, block: &Block<'_, 'k>, part: u32, passed: Option<Val<'k, U32>>) -> Self {
        let tells = block.form.ordered || block.form.begins_sums;
        let untold = tells.then(|| t.u32(NONE).var());
        let step = adds_downwards(block.common, block.form).then(|| t.u32(0).var());
        let counters = part * GROUP_COUNTERS_BYTES;
        Turn { done: t.u32(0).var(), tile: t.u32(0).var(), untold, step, counters, passed }
    }

    /// Whether there is a step whose ds has been made.
    pub(super) fn any(&self) -> Val<'k, Pred> {
        let done = self.done.get();
        done.ne(0)
    }

    /// ds of another step has been made.
    pub(super) fn advance(&self, block: &Block<'_, 'k>, at: &Cursor<'k>) {
        let head = QueryHeads::of(&block.problem, block.work.sequence).nth(block.head(at));
        self.tile.set(head.first_dq_tile(block.form.step) + at.step.get());
        if let Some(step) = &self.step {
            step.set(at.step.get());
        }
        self.done.set(self.done.get() + 1);
    }

    /// The turns of a tile are over, and what the last one staged has been read, as lanes 0 know: the next tile's first
    /// may stage. How many phases of `dq_left` have passed now.
    pub(super) fn close(
        &self,
        block: &Block<'_, 'k>,
        wg: Warpgroup<'k>,
        wg_number: Val<'k, U32>,
    ) -> Val<'k, U32> {
        let (turns, passed) = (self.done.get(), self.passed.expect("of several tiles"));
        self.done.set(turns + 1);
        block.pass_turn(wg, wg_number, self);
        passed + turns
    }

    /// The parity of the phase of `dq_left` that the turn after so many waits for. A fresh barrier is past parity 1.
    fn parity(&self, done: Val<'k, U32>) -> Val<'k, U32> {
        self.passed.map_or(done, |passed| done + passed) & 1
    }
}

impl<'k> Block<'_, 'k> {
    /// If the turn before was this warpgroup's: waits until what it has staged is read, so that the other may stage.
    /// That was staged a step ago, so the wait is short.
    pub(super) fn pass_turn(&self, wg: Warpgroup<'k>, wg_number: Val<'k, U32>, turn: &Turn<'k>) {
        let (t, done) = (wg.threads(), turn.done.get());
        let mine = ((done ^ wg_number) & 1).eq(1);
        wg.when(mine & t.u32(1).lt(done), |wg| {
            let t = wg.threads();
            if self.form.begins_sums {
                self.tell(wg, turn);
            }
            // Lane 0 has copied for all, and arrives when that has been read.
            t.when(t.lane().eq(0), |t| t.wait_stored());
            self.staging().1.arrive(t);
        });
    }

    /// Before the first turn of one of several tiles: waits until the results of the last one have left, which did so by way
    /// of where ds and dq come now.
    pub(super) fn wait_left(&self, wg: Warpgroup<'k>, turn: &Turn<'k>) {
        if self.form.persistent {
            wg.when(turn.done.get().eq(0), |wg| {
                let t = wg.threads();
                t.when(t.lane().eq(0), |t| t.wait_stored());
                wg.sync_among(KEYS_READ, 128 * MULTIPLIERS);
            });
        }
    }

    /// Where a turn's dq is put to be added, and the barrier that says when it has left.
    pub(super) fn staging(&self) -> (SmemAddr<'k>, Mbarrier<'k>) {
        match self.smem.between {
            Between::Turns { dq, dq_left } => (dq, dq_left),
            Between::Probs(_) => unreachable!("those who share keys add from registers"),
        }
    }

    /// ds^T k: 64 queries' dq.
    pub(super) fn over_keys<'p>(&self, ds: BoxTile<'k>, k: BoxTile<'k>) -> Product<'p, 'k> {
        Product {
            rows: Rows::ColumnsOf(ds),
            columns: Columns::Plain(k),
            depth: self.form.keys,
            half: self.common.operands.half,
            add: false,
            columns_at_once: None,
        }
    }

    /// How many blocks have added the warp's part of a step.
    fn counter(&self, t: Thread<'k>, turn: &Turn<'k>, tile: Val<'k, U32>) -> GlobalAddr<'k> {
        let counters = tile.widen().mul_add(u64::from(counters_bytes(self.form)), self.sums.dq_counters);
        GlobalAddr::new(counters + (adder(t) * 4 + turn.counters).widen())
    }

    /// If blocks tell each other: tells of what this warp has added or begun last.
    pub(super) fn tell(&self, wg: Warpgroup<'k>, turn: &Turn<'k>) {
        let t = wg.threads();
        if let Some(untold) = &turn.untold {
            // Lane 0 has added for all, or all for themselves, and they have met since.
            t.when(t.lane().eq(0) & untold.get().ne(NONE), |t| {
                t.wait_written();
                t.advance_counter(self.counter(t, turn, untold.get()));
            });
        }
    }

    /// If blocks add in order: waits until those before have added this step.
    pub(super) fn wait_turn(&self, wg: Warpgroup<'k>, turn: &Turn<'k>) {
        let t = wg.threads();
        if let Some(untold) = turn.untold.as_ref().filter(|_| self.form.ordered) {
            let tile = turn.tile.get();
            t.when(t.lane().eq(0), |t| {
                t.wait_counter(self.counter(t, turn, tile), self.blocks_before(turn));
            });
            untold.set(tile);
        }
    }

    /// If one begins a step: whether this does. Else waits until it has been begun.
    fn wait_begun(&self, t: Thread<'k>, turn: &Turn<'k>) -> Option<Val<'k, Pred>> {
        let (untold, tile) = (turn.untold.as_ref().filter(|_| self.form.begins_sums)?, turn.tile.get());
        let begins = self.blocks_before(turn).eq(0);
        t.when(t.lane().eq(0) & !begins, |t| t.wait_counter(self.counter(t, turn, tile), t.u32(1)));
        untold.set(begins.select(tile, t.u32(NONE)));
        Some(begins)
    }

    /// How many add this step before. A step is seen by the first blocks of keys, up to its diagonal, or in a window
    /// by some of them, of which the last is the first to add.
    fn blocks_before(&self, turn: &Turn<'k>) -> Val<'k, U32> {
        let first = turn.step.as_ref().map(|step| {
            let last_query = (step.get() + 1) * self.form.step - self.problem.row_shift - 1;
            self.sight().last_key_tile(last_query, self.form.keys)
        });
        match (first, self.range) {
            (Some(first), _) => first - self.work.block,
            (None, Some(_)) => {
                let first = self.sight().first_key_tile(self.form.keys);
                first.map_or(self.work.block, |first| self.work.block - first)
            }
            (None, None) => self.work.block,
        }
    }

    /// Where the lane's sums of a step are: its offset among those of 64 queries, and their address.
    fn own_sums(&self, t: Thread<'k>, tile: Val<'k, U32>) -> (Val<'k, U32>, GlobalAddr<'k>) {
        let bytes = self.queries_sums_bytes();
        let step = u64::from(self.form.step / QUERIES * bytes);
        let own = adder(t) * (bytes / ADDERS) + t.lane() * 16;
        (own, GlobalAddr::new(tile.widen().mul_add(step, self.sums.dq_sums) + own.widen()))
    }

    /// Bytes of the sums of 64 queries.
    fn queries_sums_bytes(&self) -> u32 {
        4 * QUERIES * self.common.operands.head_dim
    }

    fn sums(&self, wg: Warpgroup<'k>, tile: Val<'k, U32>) -> Sums<'k> {
        let (own, to) = self.own_sums(wg.threads(), tile);
        let (bytes, parts) = (self.queries_sums_bytes(), self.form.step / QUERIES);
        Sums { to, staging: self.staging().0.plus(own), bytes, parts }
    }

    /// Adds dq of 64 queries, columns `first..` of it, from registers.
    pub(super) fn add_from_registers(&self, t: Thread<'k>, tile: Val<'k, U32>, dq: &Acc<'k>, first: u32) {
        let (_, to) = self.own_sums(t, tile);
        for group in 0..dq.groups() {
            let values = [0, 1, 2, 3].map(|r| dq.at(group, r).get());
            t.add_floats(to.at(i64::from(GROUP_BYTES * (first / 8 + group as u32))), values);
        }
    }
}

impl<'k> Keys<'_, 'k> {
    /// dq of the last step whose ds has been made, if it is this warpgroup's turn. If it is the last of a tile, k is
    /// released as soon as it has been read.
    pub(super) fn take_turn(&mut self, turn: &Turn<'k>, last_k: Option<FullStage<'_, 'k>>) {
        let Keys { block, wg, rings, own, wg_number, .. } = self;
        let (block, wg, k, done) = (*block, *wg, own.k_of_all, turn.done.get());
        let ds_of_all = &mut rings.ds_of_all;
        let (warp, t) = (wg.warps(), wg.threads());
        let (any, mine) = (turn.any(), ((done ^ *wg_number) & 1).eq(0));
        wg.when(any & !mine, |_| ds_of_all.skip());
        if let Some(k) = &last_k {
            wg.when(!(any & mine), |wg| k.let_go(wg.warps()));
        }
        wg.when(any & mine, |_| {
            let stage = ds_of_all.wait(warp);
            let ds = BoxTile::new(stage.address(), block.form.keys);
            let mut parts: Vec<Acc<'k>> =
                (0..block.form.step / QUERIES).map(|_| wg.acc(block.common.operands.head_dim)).collect();
            let pending: Vec<PendingProduct<'_, 'k>> = (0..)
                .zip(&mut parts)
                .map(|(part, dq)| wg.multiply(dq, &block.over_keys(ds.from_column(part * QUERIES), k)))
                .collect();
            if block.form.ordered {
                block.tell(wg, turn);
            }
            block.wait_turn(wg, turn);
            let begins = block.wait_begun(t, turn);
            let sums = block.sums(wg, turn.tile.get());
            // The other's turn before this one is passed.
            block.staging().1.wait(t, turn.parity(done));
            let (last, mut stage) = (pending.len() - 1, Some(stage));
            for (part, pending) in pending.into_iter().enumerate() {
                let dq = pending.wait();
                if part == last {
                    stage.take().into_iter().for_each(|stage| stage.release_products(warp));
                    last_k.iter().for_each(|k| k.let_go(warp));
                }
                sums.stage(t, dq, part as u32);
            }
            sums.add(warp, begins);
        });
        last_k.into_iter().for_each(FullStage::go_on);
    }
}

/// Bytes of the sums of 16 queries and 8 columns.
const GROUP_BYTES: u32 = 512;

/// Where a warp's sums of a step are: for each 64 queries 16 rows, groups of 8 columns, each four registers of 32
/// lanes.
struct Sums<'k> {
    to: GlobalAddr<'k>,
    staging: SmemAddr<'k>,
    /// Of 64 queries, and so many times.
    bytes: u32,
    parts: u32,
}

impl<'k> Sums<'k> {
    /// Puts an accumulator where it can be added from.
    fn stage(&self, t: Thread<'k>, dq: &Acc<'k>, part: u32) {
        for group in 0..dq.groups() {
            let values = [0, 1, 2, 3].map(|r| dq.at(group, r).get());
            t.store(self.staging.at(part * self.bytes + GROUP_BYTES * group as u32), values);
        }
    }

    /// Starts to add what has been staged to what is there, or, if this begins it, to store it.
    fn add(&self, warp: Warp<'k>, begins: Option<Val<'k, Pred>>) {
        let t = warp.threads();
        t.fence_proxy_async();
        warp.sync();
        // Lane 0's place is the warp's.
        let copies = |t: Thread<'k>, copy: fn(Thread<'k>, GlobalAddr<'k>, SmemAddr<'k>, u32)| {
            for offset in (0..self.parts).map(|part| part * self.bytes) {
                copy(t, self.to.at(offset.into()), self.staging.at(offset), self.bytes / ADDERS);
            }
        };
        let is_first_lane = t.lane().eq(0);
        match begins {
            None => t.when(is_first_lane, |t| copies(t, Thread::bulk_add)),
            Some(begins) => {
                t.when(is_first_lane & begins, |t| copies(t, Thread::bulk_store));
                t.when(is_first_lane & !begins, |t| copies(t, Thread::bulk_add));
            }
        }
    }
}
