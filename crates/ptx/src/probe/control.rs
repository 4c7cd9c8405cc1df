//! Probes of branches, loops, barriers, shuffles and votes.
use super::{Plan, Probe};
use crate::types::{B32, U32};

const THREADS: u32 = 128;

pub(super) fn probes() -> Vec<Probe> {
    vec![
        divergent(),
        nested(),
        agreed(),
        loops(),
        exit(),
        shuffles(),
        vote(),
        block_barrier(),
        warp_barrier(),
        named_barriers(),
    ]
}

fn each(f: impl Fn(usize, u32) -> u32 + Send + Sync + 'static) -> impl Fn(&[u32]) -> Vec<u32> {
    move |input| input.iter().enumerate().map(|(i, &x)| f(i, x)).collect()
}

fn divergent() -> Probe {
    let odd_or_even = each(|_, x| if x % 2 == 1 { x ^ 0xFFFF } else { x / 2 });
    Plan::new("when_else, lanes part", THREADS).build(odd_or_even, |cta, io| {
        let t = cta.threads();
        let own = (t.index() * 4).widen();
        let [x] = t.load::<U32, 1>(io.input.plus(own));
        t.when_else(
            (x & 1).ne(0),
            |t| t.store(io.output.plus(own), [x ^ 0xFFFF]),
            |t| t.store(io.output.plus(own), [x >> 1]),
        );
    })
}

fn nested() -> Probe {
    let classes = each(|i, x| match (x & 1, x & 2, i % 32 < 7) {
        (1, 2, true) => 3,
        (1, 2, false) => 4,
        (1, ..) => 5,
        (_, _, true) => 6,
        _ => 7,
    });
    Plan::new("when in when_else, lanes part", THREADS).build(classes, |cta, io| {
        let t = cta.threads();
        let own = (t.index() * 4).widen();
        let [x] = t.load::<U32, 1>(io.input.plus(own));
        let (class, few) = (t.u32(7).var(), t.lane().lt(7));
        t.when_else(
            (x & 1).ne(0),
            |t| {
                class.set(5);
                t.when((x & 2).ne(0), |t| t.when_else(few, |_| class.set(3), |_| class.set(4)));
            },
            |t| t.when(few, |_| class.set(6)),
        );
        t.store(io.output.plus(own), [class.get()]);
    })
}

/// Whole blocks and whole warps take one way.
fn agreed() -> Probe {
    let ways = |input: &[u32]| -> Vec<u32> {
        let way =
            |i: usize| 10 * u32::from(input[i / 128 * 128] % 2 == 1) + u32::from((i / 32).is_multiple_of(2));
        (0..input.len()).map(way).collect()
    };
    let words = 4 * THREADS as usize;
    Plan::new("when_else, all agree", THREADS).grid(4).sizes(words, words).build(ways, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let first = cta.index() * THREADS;
        let [x] = t.load::<U32, 1>(io.input.plus((first * 4).widen()));
        let way = t.u32(0).var();
        cta.when_else((x & 1).ne(0), |_| way.set(10), |_| way.set(0));
        w.when((w.index() & 1).eq(0), |_| way.set(way.get() + 1));
        t.store(io.output.plus(((first + t.index()) * 4).widen()), [way.get()]);
    })
}

/// A loop in a loop; how often is data.
fn loops() -> Probe {
    let sums = |input: &[u32]| -> Vec<u32> {
        let rounds = input[0] % 9;
        (0..THREADS).map(|t| (0..rounds).flat_map(|i| (0..=i).map(move |j| i * j + t)).sum()).collect()
    };
    Plan::new("while_", THREADS).build(sums, |cta, io| {
        let t = cta.threads();
        let [x] = t.load::<U32, 1>(io.input);
        let (rounds, sum, i) = (x.modulo(9), t.u32(0).var(), t.u32(0).var());
        let body = |cta: crate::Cta<'_>| {
            let j = cta.threads().u32(0).var();
            cta.while_(
                || j.get().le(i.get()),
                |_| {
                    sum.set(i.get().mul_add(j.get(), sum.get() + t.index()));
                    j.set(j.get() + 1);
                },
            );
            i.set(i.get() + 1);
        };
        cta.while_(|| i.get().lt(rounds), body);
        t.store(io.output.plus((t.index() * 4).widen()), [sum.get()]);
    })
}

fn exit() -> Probe {
    let first_block = |input: &[u32]| -> Vec<u32> {
        let kept = |(i, &x): (usize, &u32)| if i < THREADS as usize { x } else { 0 };
        input.iter().enumerate().map(kept).collect()
    };
    let words = 3 * THREADS as usize;
    Plan::new("exit", THREADS).grid(3).sizes(words, words).build(first_block, |cta, io| {
        let t = cta.threads();
        cta.when(cta.index().ne(0), |cta| cta.exit());
        let own = ((cta.index() * THREADS + t.index()) * 4).widen();
        t.store(io.output.plus(own), t.load::<U32, 1>(io.input.plus(own)));
    })
}

fn shuffles() -> Probe {
    let moved = |input: &[u32]| -> Vec<u32> {
        let from = |i: usize| [i / 32 * 32, i ^ 1, i ^ 2, i ^ 4, i ^ 8, i ^ 16, i ^ 31, i];
        (0..input.len()).flat_map(|i| from(i).map(|j| input[j])).collect()
    };
    let words = THREADS as usize;
    Plan::new("shfl.sync", THREADS).sizes(words, 8 * words).build(moved, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let [x] = t.load::<B32, 1>(io.input.plus((t.index() * 4).widen()));
        let moved = |bits| w.shuffle_xor(x, bits);
        let to = io.output.plus((t.index() * 32).widen());
        t.store(to, [w.uniform(x), moved(1), moved(2), moved(4)]);
        t.store(to.at(16), [moved(8), moved(16), moved(31), x]);
    })
}

fn vote() -> Probe {
    let any = |input: &[u32]| -> Vec<u32> {
        let lanes = |i: usize| &input[i / 32 * 32..i / 32 * 32 + 32];
        (0..input.len()).map(|i| lanes(i).contains(&0x7F80_0000).into()).collect()
    };
    let words = 8 * THREADS as usize;
    Plan::new("vote.sync.any", THREADS).grid(8).sizes(words, words).build(any, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let own = ((cta.index() * THREADS + t.index()) * 4).widen();
        let [x] = t.load::<U32, 1>(io.input.plus(own));
        t.store(io.output.plus(own), [w.any(x.eq(0x7F80_0000)).select::<U32>(1u32, 0u32)]);
    })
}

/// The block's words in reverse, three times through the same memory.
fn block_barrier() -> Probe {
    let reversed = |input: &[u32]| -> Vec<u32> { input.iter().rev().copied().collect() };
    Plan::new("bar.sync", THREADS).build(reversed, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("words", 4 * THREADS, 4);
        let own = t.index() * 4;
        let [mut x] = t.load::<U32, 1>(io.input.plus(own.widen()));
        for _ in 0..3 {
            t.store(smem.plus(own), [x]);
            cta.sync();
            [x] = t.load::<U32, 1>(smem.plus(t.u32(4 * (THREADS - 1)) - own));
            cta.sync();
        }
        t.store(io.output.plus(own.widen()), [x]);
    })
}

/// Each warp's words in reverse.
fn warp_barrier() -> Probe {
    let reversed = each(|_, x| x);
    Plan::new("bar.warp.sync", THREADS).build(reversed, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let smem = cta.smem("words", 4 * THREADS, 4);
        let own = t.index() * 4;
        let mirror = (t.index() ^ 31) * 4;
        let [x] = t.load::<U32, 1>(io.input.plus(mirror.widen()));
        t.store(smem.plus(own), [x]);
        w.sync();
        t.store(io.output.plus(own.widen()), t.load::<U32, 1>(smem.plus(mirror)));
    })
}

/// Warps meet in pairs, each pair at a barrier whose number is computed.
fn named_barriers() -> Probe {
    let partner = |input: &[u32]| -> Vec<u32> { (0..input.len()).map(|i| input[i ^ 32]).collect() };
    Plan::new("bar.sync by number", THREADS).build(partner, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let smem = cta.smem("words", 4 * THREADS, 4);
        let own = t.index() * 4;
        t.store(smem.plus(own), t.load::<U32, 1>(io.input.plus(own.widen())));
        w.sync_among((w.index() >> 1) + 1, 64);
        t.store(io.output.plus(own.widen()), t.load::<U32, 1>(smem.plus((t.index() ^ 32) * 4)));
    })
}
