//! Probes of what a warp does with matrices.
use super::{Io, Plan, Probe, Tolerance, Words, host};
use crate::build::{Order, Thread, TileLayout, Val};
use crate::types::{B32, F32, Half, U32};

const COLS: usize = 64;
const CHUNKS: u32 = COLS as u32 / 8;

pub(super) fn probes() -> Vec<Probe> {
    let mut probes = vec![transpose()];
    for order in [Order::Down, Order::Across] {
        probes.extend([load(order, false), load(order, true)]);
    }
    probes.extend([store(false), store(true)]);
    for half in [Half::F16, Half::Bf16] {
        probes.push(product("exact", half, Words::ExactHalves(half), Tolerance::EXACT));
        // 32 products of at most 4 each; hardware drops bits below the greatest one's 24th.
        let rounded = Tolerance { absolute: 2e-5, ..Tolerance::EXACT };
        probes.push(product("rounded", half, Words::Halves(half), rounded));
    }
    probes
}

/// The 16 bits at a row and column of a matrix of words.
fn at(words: &[u32], cols: usize, row: usize, col: usize) -> u32 {
    words[(row * cols + col) / 2] >> (16 * (col % 2)) & 0xFFFF
}

fn pair(first: u32, second: u32) -> u32 {
    second << 16 | first
}

/// Register `m` of each lane, matrices at the places that `order` says: columns 16 to 31, rows 16 to 31.
fn load(order: Order, transposed: bool) -> Probe {
    let registers = move |input: &[u32]| -> Vec<u32> {
        let register = |lane: usize, m: usize| {
            let (down, across) = match order {
                Order::Down => (m % 2, m / 2),
                Order::Across => (m / 2, m % 2),
            };
            let (row, col) = (16 + 8 * down, 16 + 8 * across);
            let (g, c) = (lane / 4, 2 * (lane % 4));
            match transposed {
                false => pair(at(input, COLS, row + g, col + c), at(input, COLS, row + g, col + c + 1)),
                true => pair(at(input, COLS, row + c, col + g), at(input, COLS, row + c + 1, col + g)),
            }
        };
        (0..32).flat_map(|lane| (0..4).map(move |m| register(lane, m))).collect()
    };
    let how = if transposed { ", transposed" } else { "" };
    let plan = Plan::new(&format!("ldmatrix {order:?}{how}").to_lowercase(), 32).sizes(32 * COLS / 2, 128);
    plan.build(registers, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let layout = TileLayout::new(COLS as u32);
        let tile = cta.smem("tile", layout.bytes(32), 1024);
        for i in 0..CHUNKS {
            let number = t.lane() + 32 * i;
            let chunk = t.load::<U32, 4>(io.input.plus((number * 16).widen()));
            let to = layout.chunk(number >> CHUNKS.trailing_zeros(), (number & (CHUNKS - 1)).cast::<B32>());
            t.store(tile.plus(to), chunk);
        }
        w.sync();
        let lanes = w.tile_lanes(layout, order);
        let matrices = match transposed {
            false => w.load_matrices(&lanes, tile, 16, 1),
            true => w.load_transposed(&lanes, tile, 16, 1),
        };
        t.store(io.output.plus((t.lane() * 16).widen()), matrices);
    })
}

/// Four matrices of each lane's registers, 64 words behind each other, as rows of 8 elements.
fn store(transposed: bool) -> Probe {
    let rows = move |input: &[u32]| -> Vec<u32> {
        // Lane l's four words are l-th of the input; so matrix m's row r, of pairs, is in lanes 4 r and on.
        let element = |m: usize, row: usize, col: usize| {
            input[4 * (4 * row + col / 2) + m] >> (16 * (col % 2)) & 0xFFFF
        };
        let word = |m: usize, row: usize, c: usize| match transposed {
            false => pair(element(m, row, c), element(m, row, c + 1)),
            true => pair(element(m, c, row), element(m, c + 1, row)),
        };
        (0..128).map(|i| word(i / 32, i / 4 % 8, 2 * (i % 4))).collect()
    };
    let how = if transposed { ", transposed" } else { "" };
    let plan = Plan::new(&format!("stmatrix{how}"), 32).sizes(128, 128);
    plan.build(rows, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let tile = cta.smem("tile", 512, 128);
        let own = t.lane() * 16;
        let words = t.load::<B32, 4>(io.input.plus(own.widen()));
        w.store_matrices_at(tile.plus(own), transposed, words);
        w.sync();
        t.store(io.output.plus(own.widen()), t.load::<B32, 4>(tile.plus(own)));
    })
}

fn transpose() -> Probe {
    let transposed = |input: &[u32]| -> Vec<u32> {
        let element = |row, col| at(input, 8, row, col);
        (0..32)
            .map(|lane| (lane / 4, 2 * (lane % 4)))
            .map(|(g, c)| pair(element(c, g), element(c + 1, g)))
            .collect()
    };
    Plan::new("movmatrix.trans", 32).build(transposed, |cta, io| {
        let t = cta.threads();
        let own = (t.lane() * 4).widen();
        let [x] = t.load::<B32, 1>(io.input.plus(own));
        t.store(io.output.plus(own), [cta.warps().transpose(x)]);
    })
}

fn word<'k>(io: Io<'k>, index: Val<'k, U32>, further: u32) -> Val<'k, B32> {
    let at = ((index + further) * 4).widen();
    Thread(at.builder).load::<B32, 1>(io.input.plus(at))[0]
}

/// Two products, one on top of the other. The input is a (16 x 16, by rows), b (8 x 16, by columns of b), then again.
fn product(what: &str, half: Half, words: Words, tolerance: Tolerance) -> Probe {
    let sums = move |input: &[u32]| -> Vec<u32> {
        let value = |words: &[u32], row, col| host::half_value(half, at(words, 16, row, col).into());
        let dot = |row: usize, col: usize| -> f64 {
            let one = |part: &[u32]| -> f64 {
                let (a, b) = part.split_at(128);
                (0..16).map(|k| value(a, row, k) * value(b, col, k)).sum()
            };
            input.chunks_exact(192).map(one).sum()
        };
        let own = |lane: usize, i: usize| dot(lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
        (0..32).flat_map(|lane| [0, 1, 2, 3].map(|i| (own(lane, i) as f32).to_bits())).collect()
    };
    let plan = Plan::new(&format!("mma {} {what}", half.name()), 32).words(words).tolerance(tolerance);
    plan.sizes(2 * 192, 128).build(sums, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let mut acc = w.acc(8);
        acc.clear();
        let (row, pair) = (t.lane() >> 2, t.lane() & 3);
        for part in [0, 192] {
            let word = |index| word(io, index, part);
            // Rows and columns have 8 words.
            let a = [(0, 0), (8, 0), (0, 4), (8, 4)].map(|(down, k)| word((row + down) * 8 + pair + k));
            let b = [0, 4].map(|k| word(row * 8 + pair + 128 + k));
            w.mma(&mut acc, 0, a, b, half);
        }
        let own = [0, 1, 2, 3].map(|i| acc.at(0, i).get());
        t.store::<F32, 4>(io.output.plus((t.lane() * 16).widen()), own);
    })
}
