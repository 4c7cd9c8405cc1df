//! Probes of loads, stores, reductions and special registers.
use super::{Io, Plan, Probe, Words};
use crate::build::{Cta, Val};
use crate::types::{B32, F32, U32};

const THREADS: u32 = 64;

pub(super) fn probes() -> Vec<Probe> {
    vec![
        global_words::<1>(),
        global_words::<2>(),
        global_words::<4>(),
        constant_words::<1>(),
        constant_words::<2>(),
        constant_words::<4>(),
        shared_words::<1>(),
        shared_words::<2>(),
        shared_words::<4>(),
        global_half(),
        shared_half(),
        constant_bytes_and_halves(),
        reduction::<1>(),
        reduction::<2>(),
        reduction::<4>(),
        special_registers(),
        in_order(),
        taken_numbers(),
    ]
}

/// Threads of three blocks take numbers, and each adds 1 where its number says; before those places, how many were
/// taken.
fn taken_numbers() -> Probe {
    let threads = 3 * THREADS;
    let ones = move |_: &[u32]| -> Vec<u32> {
        [threads].into_iter().chain((0..threads).map(|_| 1f32.to_bits())).collect()
    };
    let plan = Plan::new("numbers from a counter", THREADS).grid(3).sizes(1, threads as usize + 1);
    plan.build(ones, |cta, io| {
        let t = cta.threads();
        let number = t.take_number(io.output);
        t.add_floats(io.output.at(4).plus((number * 4).widen()), [t.f32(1.0)]);
    })
}

/// Blocks add numbers whose sum in f32 is 1 in their order, and 0 in most others; behind it, how many have.
fn in_order() -> Probe {
    let sum = |_: &[u32]| -> Vec<u32> { vec![1f32.to_bits(), 3] };
    let plan = Plan::new("counters between blocks", 32).grid(3).sizes(1, 2);
    plan.build(sum, |cta, io| {
        let (t, index, counter) = (cta.threads(), cta.index(), io.output.at(4));
        t.when(t.lane().eq(0), |t| {
            t.wait_counter(counter, index);
            let large = index.eq(0).select(t.f32(1e8), t.f32(-1e8));
            t.add_floats(io.output, [index.eq(2).select(t.f32(1.0), large)]);
            t.advance_counter(counter);
        });
    })
}

fn own_bytes<'k>(cta: Cta<'k>, bytes: u32) -> Val<'k, U32> {
    cta.threads().index() * bytes
}

fn words_plan(name: &str, each: usize) -> Plan {
    let words = THREADS as usize * each;
    Plan::new(&format!("{name}, {each} x 32 bits"), THREADS).sizes(words, words)
}

fn global_words<const N: usize>() -> Probe {
    words_plan("ld.global and st.global", N).build(<[u32]>::to_vec, |cta, io| {
        let at = own_bytes(cta, 4 * N as u32).widen();
        let words = cta.threads().load::<B32, N>(io.input.plus(at));
        cta.threads().store(io.output.plus(at), words);
    })
}

fn constant_words<const N: usize>() -> Probe {
    words_plan("ld.global.nc", N).build(<[u32]>::to_vec, |cta, io| {
        let at = own_bytes(cta, 4 * N as u32).widen();
        let words = cta.threads().load_constant::<B32, N>(io.input.plus(at));
        cta.threads().store(io.output.plus(at), words);
    })
}

/// Each thread reads what its neighbour wrote.
fn shared_words<const N: usize>() -> Probe {
    let neighbours =
        |input: &[u32]| -> Vec<u32> { (0..input.len()).map(|i| input[((i / N) ^ 1) * N + i % N]).collect() };
    words_plan("st.shared, bar.sync and ld.shared", N).build(neighbours, |cta, io| {
        let t = cta.threads();
        let (bytes, own) = (4 * N as u32, own_bytes(cta, 4 * N as u32));
        let smem = cta.smem("words", THREADS * bytes, 16);
        t.store(smem.plus(own), t.load::<B32, N>(io.input.plus(own.widen())));
        cta.sync();
        let neighbour = (t.index() ^ 1) * bytes;
        t.store(io.output.plus(own.widen()), t.load::<B32, N>(smem.plus(neighbour)));
    })
}

/// Odd halves change places with even ones.
fn swapped(input: &[u32]) -> Vec<u32> {
    input.iter().map(|word| word.rotate_left(16)).collect()
}

fn global_half() -> Probe {
    Plan::new("ld.global and st.global of a half", THREADS).build(swapped, |cta, io| {
        let t = cta.threads();
        let own = own_bytes(cta, 4).widen();
        let (low, high) = (t.load_half(io.input.plus(own)), t.load_half(io.input.plus(own).at(2)));
        t.store_half(io.output.plus(own), high);
        t.store_half(io.output.plus(own).at(2), low);
    })
}

/// The first byte, the second, and the other half of each word add up to something else.
fn constant_bytes_and_halves() -> Probe {
    let sums = |input: &[u32]| -> Vec<u32> {
        let sum = |word: &u32| 3 * (word & 0xFF) + 5 * (word >> 8 & 0xFF) + (word >> 16);
        input.iter().map(sum).collect()
    };
    Plan::new("ld.global.nc of bytes and a half", THREADS).build(sums, |cta, io| {
        let t = cta.threads();
        let own = own_bytes(cta, 4).widen();
        let from = io.input.plus(own);
        let bytes = [0, 1].map(|i| t.load_constant_byte(from.at(i)).cast::<U32>());
        let half = t.load_constant_half(from.at(2)).cast::<U32>();
        t.store(io.output.plus(own), [bytes[0] * 3 + bytes[1] * 5 + half]);
    })
}

/// Two lanes write the two halves of each word.
fn shared_half() -> Probe {
    Plan::new("ld.shared and st.shared of a half", THREADS).build(swapped, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("halves", 4 * THREADS, 4);
        for half in [0, 1] {
            let index = t.index() + half * THREADS;
            let value = t.load_half(io.input.plus((index * 2).widen()));
            t.store_half(smem.plus((index ^ 1) * 2), value);
        }
        cta.sync();
        let own = own_bytes(cta, 4);
        t.store(io.output.plus(own.widen()), t.load::<U32, 1>(smem.plus(own)));
    })
}

/// Both blocks add all their words to the same 8 * N floats.
fn reduction<const N: usize>() -> Probe {
    let (cells, lanes) = (8 * N, 2 * THREADS as usize);
    let sums = move |input: &[u32]| -> Vec<u32> {
        let mut sums = vec![0f32; cells];
        for (i, word) in input.iter().enumerate() {
            sums[i / N % 8 * N + i % N] += f32::from_bits(*word);
        }
        sums.into_iter().map(f32::to_bits).collect()
    };
    let name = format!("red.global.add of {N} floats");
    let plan = Plan::new(&name, THREADS).grid(2).words(Words::ExactFloats).sizes(lanes * N, cells);
    plan.build(sums, |cta, Io { input, output, .. }| {
        let t = cta.threads();
        let thread = cta.index() * THREADS + t.index();
        let bytes = 4 * N as u32;
        let values = t.load::<F32, N>(input.plus((thread * bytes).widen()));
        t.add_floats(output.plus(((thread & 7) * bytes).widen()), values);
    })
}

fn special_registers() -> Probe {
    let numbers = |_: &[u32]| -> Vec<u32> {
        let threads = (0..3).flat_map(|block| (0..THREADS).map(move |t| (block, t)));
        threads.flat_map(|(block, t)| [t, t % 32, t / 32, 256 * block + 3]).collect()
    };
    let plan = Plan::new("special registers", THREADS).grid(3).sizes(1, 12 * THREADS as usize);
    plan.build(numbers, |cta, io| {
        let t = cta.threads();
        let at = (cta.index() * THREADS + t.index()) * 16;
        let blocks = cta.index() * 256 + cta.count();
        t.store(io.output.plus(at.widen()), [t.index(), t.lane(), cta.warps().index(), blocks]);
    })
}
