//! Probes of products by warpgroups, and of what comes with them.
use super::{Plan, Probe, Tolerance, Words, host};
use crate::build::{
    BoxTile, BulkRingProducer, Columns, Cta, GlobalAddr, Product, Rows, SmemAddr, Thread, TileLayout, Var,
    Warpgroup,
};
use crate::types::{B32, F32, Half, U32};

const THREADS: u32 = 128;

pub(super) fn probes() -> Vec<Probe> {
    let mut probes = vec![registers(), hand_over(), ring_of_stores(1), ring_of_stores(3)];
    for half in [Half::F16, Half::Bf16] {
        for (left, right, columns) in [
            (Left::Tile, Right::OfRows, 64),
            (Left::Tile, Right::OfRows, 96),
            (Left::Tile, Right::Plain, 128),
            (Left::Registers, Right::Plain, 96),
            (Left::Registers, Right::OfRows, 16),
            (Left::Columns, Right::Plain, 64),
            (Left::Columns, Right::OfRows, 32),
        ] {
            probes.push(product(
                Case { half, left, right, columns, at_once: None },
                Words::ExactHalves(half),
                Tolerance::EXACT,
            ));
        }
        // 160 products of at most 4 each; hardware drops bits below the greatest one's 24th.
        let rounded = Tolerance { absolute: 1e-4, ..Tolerance::EXACT };
        let case = Case { half, left: Left::Tile, right: Right::Plain, columns: 32, at_once: None };
        probes.push(product(case, Words::Halves(half), rounded));
        let case = Case { columns: 128, at_once: Some(64), ..case };
        probes.push(product(case, Words::ExactHalves(half), Tolerance::EXACT));
    }
    probes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Tile,
    Columns,
    Registers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    OfRows,
    Plain,
}

/// One form of the product.
#[derive(Clone, Copy, Debug)]
struct Case {
    half: Half,
    left: Left,
    right: Right,
    columns: u32,
    /// Columns of an instruction.
    at_once: Option<u32>,
}

/// Depth of both products: a box of 64 columns, and one in part.
const DEPTH: u32 = 80;
/// Rows of a tile of the left operand: the product is of the last 64.
const LEFT_ROWS: u32 = 72;

impl Case {
    /// Rows and columns of the right operand's tile.
    fn right(self) -> (u32, u32) {
        match self.right {
            Right::OfRows => (self.columns.next_multiple_of(8), DEPTH),
            Right::Plain => (DEPTH, self.columns),
        }
    }

    /// Words of both tiles in the input, rows behind each other.
    fn words(self) -> (usize, usize) {
        let (rows, columns) = self.right();
        ((LEFT_ROWS * DEPTH / 2) as usize, (rows * columns / 2) as usize)
    }

    fn value(self, words: &[u32], columns: u32, row: u32, column: u32) -> f64 {
        let at = (row * columns + column) as usize;
        host::half_value(self.half, u64::from(words[at / 2] >> (16 * (at % 2)) & 0xFFFF))
    }

    /// The product, from the input.
    fn dot(self, input: &[u32], row: u32, column: u32) -> f64 {
        let (a, b) = input.split_at(self.words().0);
        let (_, width) = self.right();
        let one = |k| {
            let b = match self.right {
                Right::OfRows => self.value(b, width, column, k),
                Right::Plain => self.value(b, width, k, column),
            };
            let a = match self.left {
                Left::Columns => self.value(a, 64, k, row),
                _ => self.value(a, DEPTH, LEFT_ROWS - 64 + row, k),
            };
            a * b
        };
        (0..DEPTH).map(one).sum()
    }
}

/// The words of a matrix, `[rows, columns]` of it, into boxes of 64 columns.
fn fill<'k>(t: Thread<'k>, to: SmemAddr<'k>, from: GlobalAddr<'k>, [rows, columns]: [u32; 2]) {
    let layout = TileLayout::new(64);
    for i in 0..(rows * columns / 2).div_ceil(THREADS) {
        let word = t.index() + i * THREADS;
        t.when(word.lt(rows * columns / 2), |t| {
            let row = word / (columns / 2);
            let pair = word - row * (columns / 2);
            let place = layout.chunk(row, ((pair >> 2u32) & 7).cast::<B32>()) + (pair & 3) * 4;
            t.store(
                to.plus(place + (pair >> 5u32) * (rows * 128)),
                t.load::<B32, 1>(from.plus((word * 4).widen())),
            );
        });
    }
}

/// The product in place of what the accumulator holds, doubled by ordinary instructions, and the product on top.
fn product(case: Case, words: Words, tolerance: Tolerance) -> Probe {
    let sums = move |input: &[u32]| -> Vec<u32> {
        let own = |thread: u32, group: u32, i: u32| {
            let lane = thread % 32;
            let (row, column) =
                (thread / 32 * 16 + lane / 4 + 8 * (i / 2), 8 * group + 2 * (lane % 4) + i % 2);
            (3.0 * case.dot(input, row, column)) as f32
        };
        let of_thread =
            |thread| (0..case.columns / 8).flat_map(move |group| [0, 1, 2, 3].map(|i| (thread, group, i)));
        (0..THREADS).flat_map(of_thread).map(|(t, group, i)| own(t, group, i).to_bits()).collect()
    };
    let Case { half, left, right, columns, at_once } = case;
    let exact = if tolerance == Tolerance::EXACT { "exact" } else { "rounded" };
    let parts = at_once.map_or(String::new(), |at_once| format!(" by {at_once}"));
    let name = format!("wgmma {} {left:?} {right:?} n{columns}{parts} {exact}", half.name()).to_lowercase();
    let plan = Plan::new(&name, THREADS).words(words).tolerance(tolerance);
    let (a_words, b_words) = case.words();
    plan.sizes(a_words + b_words, (THREADS * columns / 2) as usize).build(sums, |cta: Cta<'_>, io| {
        let (t, wg) = (cta.threads(), cta.warpgroups());
        let (rows, width) = case.right();
        let a = cta.smem("a", LEFT_ROWS * 128 * DEPTH.div_ceil(64), 1024);
        let b = cta.smem("b", rows * 128 * width.div_ceil(64), 1024);
        let left_size = if left == Left::Columns { [DEPTH, 64] } else { [LEFT_ROWS, DEPTH] };
        fill(t, a, io.input, left_size);
        fill(t, b, io.input.at(4 * a_words as i64), [rows, width]);
        t.fence_proxy_async();
        cta.sync();
        let operand = registers_of(wg, io.input);
        let rows_of = || match left {
            Left::Tile => Rows::Tile(BoxTile::new(a, LEFT_ROWS).from_row(LEFT_ROWS - 64)),
            Left::Columns => Rows::ColumnsOf(BoxTile::new(a, DEPTH)),
            Left::Registers => Rows::Registers(&operand),
        };
        let tile = BoxTile::new(b, rows);
        let columns_of = if right == Right::OfRows { Columns::OfRows(tile) } else { Columns::Plain(tile) };
        let mut acc = wg.acc(columns);
        let product = |add| Product {
            rows: rows_of(),
            columns: columns_of,
            depth: DEPTH,
            half,
            add,
            columns_at_once: at_once,
        };
        wg.multiply(&mut acc, &product(false)).wait();
        for (group, i) in (0..acc.groups()).flat_map(|group| [0, 1, 2, 3].map(|i| (group, i))) {
            let cell = acc.at(group, i);
            cell.set(cell.get() + cell.get());
        }
        wg.multiply(&mut acc, &product(true)).wait();
        let out = io.output.plus((t.index() * (columns * 2)).widen());
        for group in 0..columns / 8 {
            let own = [0, 1, 2, 3].map(|i| acc.at(group as usize, i).get());
            t.store::<F32, 4>(out.at(i64::from(16 * group)), own);
        }
    })
}

/// The left operand's last 64 rows in registers.
fn registers_of<'k>(wg: Warpgroup<'k>, input: GlobalAddr<'k>) -> Vec<[Var<'k, B32>; 4]> {
    let t = wg.threads();
    let row = (t.index() >> 5u32) * 16 + ((t.lane()) >> 2u32) + (LEFT_ROWS - 64);
    let word = |k16: u32, i: u32| {
        let at = (row + 8 * (i % 2)) * (DEPTH / 2) + (t.lane() & 3) + 8 * k16 + 4 * (i / 2);
        t.load::<B32, 1>(input.plus((at * 4).widen()))[0].var()
    };
    (0..DEPTH / 16).map(|k16| [0, 1, 2, 3].map(|i| word(k16, i))).collect()
}

/// One warpgroup gives registers back, another takes them; both go on.
fn registers() -> Probe {
    Plan::new("setmaxnreg", 2 * THREADS).build(<[u32]>::to_vec, |cta, io| {
        let (t, wg) = (cta.threads(), cta.warpgroups());
        let own = (t.index() * 4).widen();
        wg.when_else(
            wg.index().eq(0),
            |wg| {
                wg.shrink_registers(40);
                t.store(io.output.plus(own), t.load::<U32, 1>(io.input.plus(own)));
            },
            |wg| {
                wg.grow_registers(232);
                t.store(io.output.plus(own), t.load::<U32, 1>(io.input.plus(own)));
            },
        );
    })
}

/// The first warpgroup writes and goes on; the second waits for it and reads.
fn hand_over() -> Probe {
    let first = |input: &[u32]| -> Vec<u32> { input[..THREADS as usize].to_vec() };
    let plan = Plan::new("bar.arrive", 2 * THREADS).sizes(2 * THREADS as usize, THREADS as usize);
    plan.build(first, |cta, io| {
        let (t, wg) = (cta.threads(), cta.warpgroups());
        let smem = cta.smem("words", 4 * THREADS, 4);
        let own = (t.index() & (THREADS - 1)) * 4;
        wg.when_else(
            wg.index().eq(0),
            |wg| {
                t.store(smem.plus(own), t.load::<U32, 1>(io.input.plus(own.widen())));
                wg.arrive_among(3u32, 2 * THREADS);
            },
            |wg| {
                wg.sync_among(3u32, 2 * THREADS);
                t.store(io.output.plus(own.widen()), t.load::<U32, 1>(smem.plus(own)));
            },
        );
    })
}

const ROUNDS: u32 = 9;

/// Two warps fill two rings with stores, at once; two others read a ring each.
fn ring_of_stores(stages: u32) -> Probe {
    let sums = |input: &[u32]| -> Vec<u32> {
        let sum = |ring: u32, lane: u32| {
            let word = |round: u32| input[(round * 32 + lane) as usize].wrapping_mul(ring + 1);
            (0..ROUNDS).fold(0u32, |sum, round| sum.wrapping_add(word(round)).wrapping_add(word(round)))
        };
        (0..64).map(|i| sum(i / 32, i % 32)).collect()
    };
    let plan = Plan::new(&format!("stores in rings of {stages}"), THREADS);
    plan.sizes((ROUNDS * 32) as usize, 64).build(sums, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let rings = cta.stage_rings("words", 2, [stages, 256], 2, 1);
        cta.sync();
        let round = t.u32(0).var();
        let next = || round.set(round.get() + 1);
        let number = w.index() & 1;
        w.when_else(
            w.index().lt(2),
            |w| {
                let (mut a, mut b) = (rings.nth(t.u32(0)).producer(t), rings.nth(t.u32(1)).producer(t));
                w.while_(
                    || round.get().lt(ROUNDS),
                    |w| {
                        let at = (round.get() * 32 + t.lane()) * 4;
                        let [x] = t.load::<U32, 1>(io.input.plus(at.widen()));
                        BulkRingProducer::fill_with_stores(&mut [&mut a, &mut b], w, |stages| {
                            for (stage, factor) in stages.iter().zip(1u32..) {
                                t.store(stage.plus(number * 128 + t.lane() * 4), [x * factor]);
                            }
                        });
                        next();
                    },
                );
            },
            |w| {
                let mut consumer = rings.nth(number).consumer(w);
                let sum = t.u32(0).var();
                w.while_(
                    || round.get().lt(ROUNDS),
                    |w| {
                        let stage = consumer.wait(w);
                        stage.hold_order(w);
                        let [x] = t.load::<U32, 1>(stage.address().plus(t.lane() * 4));
                        let [y] = t.load::<U32, 1>(stage.address().plus(t.lane() * 4 + 128));
                        stage.release(w);
                        sum.set(sum.get() + x + y);
                        next();
                    },
                );
                t.store(io.output.plus(((number * 32 + t.lane()) * 4).widen()), [sum.get()]);
            },
        );
    })
}
