//! Probes of Hopper's barriers and bulk copies.
use super::{Plan, Probe, Words};
use crate::types::U32;

const THREADS: u32 = 128;
const STAGE: u32 = 512;
const ROUNDS: u32 = 7;

pub(super) fn probes() -> Vec<Probe> {
    vec![barrier(), two_phases(), ring(1), ring(2), ring(3), bulk_store(), bulk_add()]
}

/// Everybody writes and arrives; everybody waits and reads another warp's word.
fn barrier() -> Probe {
    let rotated =
        |input: &[u32]| -> Vec<u32> { (0..input.len()).map(|i| input[(i + 32) % input.len()]).collect() };
    Plan::new("mbarrier", THREADS).build(rotated, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("words", 4 * THREADS, 4);
        let written = cta.mbarriers("written", 1, THREADS);
        cta.sync();
        let own = t.index() * 4;
        t.store(smem.plus(own), t.load::<U32, 1>(io.input.plus(own.widen())));
        written.arrive(t);
        written.wait(t, 0);
        let other = ((t.index() + 32) & (THREADS - 1)) * 4;
        t.store(io.output.plus(own.widen()), t.load::<U32, 1>(smem.plus(other)));
    })
}

/// Two barriers in turn, two phases each: there and back.
fn two_phases() -> Probe {
    Plan::new("mbarrier, two phases", THREADS).build(<[u32]>::to_vec, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("words", 4 * THREADS, 4);
        let both = cta.mbarriers("turn", 2, THREADS);
        cta.sync();
        let own = t.index() * 4;
        let mirror = t.u32(4 * (THREADS - 1)) - own;
        let [mut x] = t.load::<U32, 1>(io.input.plus(own.widen()));
        for parity in [0, 1] {
            t.store(smem.plus(own), [x]);
            let (written, read) = (both.nth(t.u32(0)), both.nth(t.u32(1)));
            written.arrive(t);
            written.wait(t, parity);
            [x] = t.load::<U32, 1>(smem.plus(mirror));
            read.arrive(t);
            read.wait(t, parity);
        }
        t.store(io.output.plus(own.widen()), [x]);
    })
}

/// One thread of warp 0 fills; each of the other warps adds up all stages.
fn ring(stages: u32) -> Probe {
    let words = STAGE as usize / 4;
    let sums = move |input: &[u32]| -> Vec<u32> {
        let sum = |i: usize| (0..ROUNDS as usize).fold(0u32, |sum, r| sum.wrapping_add(input[r * words + i]));
        let one: Vec<u32> = (0..words).map(sum).collect();
        one.repeat(3)
    };
    let plan = Plan::new(&format!("cp.async.bulk in a ring of {stages}"), THREADS);
    plan.sizes(ROUNDS as usize * words, 3 * words).build(sums, |cta, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let ring = cta.bulk_ring("tiles", stages, STAGE, 3);
        cta.sync();
        let round = t.u32(0).var();
        let more = || round.get().lt(ROUNDS);
        let next = || round.set(round.get() + 1);
        w.when_else(
            w.index().eq(0),
            |_| {
                t.when(t.lane().eq(0), |t| {
                    let mut producer = ring.producer(t);
                    cta.while_(more, |_| {
                        producer.fill(t, io.input.plus((round.get() * STAGE).widen()));
                        next();
                    });
                });
            },
            |w| {
                let mut consumer = ring.consumer(w);
                let own = t.lane() * 16;
                let sums = [(); 4].map(|()| t.u32(0).var());
                cta.while_(more, |_| {
                    let stage = consumer.wait(w);
                    let words = t.load::<U32, 4>(stage.address().plus(own));
                    sums.iter().zip(words).for_each(|(sum, word)| sum.set(sum.get() + word));
                    stage.release(w);
                    next();
                });
                let to = (w.index() - 1) * STAGE + own;
                t.store(io.output.plus(to.widen()), sums.map(|sum| sum.get()));
            },
        );
    })
}

/// Words are mirrored in shared memory, and one thread stores them all.
fn bulk_store() -> Probe {
    let reversed = |input: &[u32]| -> Vec<u32> { input.iter().rev().copied().collect() };
    Plan::new("fence.proxy.async and cp.async.bulk", THREADS).build(reversed, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("words", 4 * THREADS, 16);
        let own = t.index() * 4;
        let mirror = t.u32(4 * (THREADS - 1)) - own;
        t.store(smem.plus(mirror), t.load::<U32, 1>(io.input.plus(own.widen())));
        t.fence_proxy_async();
        cta.sync();
        t.when(t.index().eq(0), |t| {
            t.bulk_store(io.output, smem, 4 * THREADS);
            t.wait_written();
        });
    })
}

/// Two blocks add floats, mirrored in shared memory, to the same ones; twice, so that shared memory is used again.
fn bulk_add() -> Probe {
    const GRID: u32 = 2;
    let n = THREADS as usize;
    let sums = move |input: &[u32]| -> Vec<u32> {
        let sum =
            |i: usize| -> f32 { input.chunks_exact(n).map(|block| f32::from_bits(block[n - 1 - i])).sum() };
        (0..n).map(|i| (2.0 * sum(i)).to_bits()).collect()
    };
    let plan = Plan::new("cp.reduce.async.bulk", THREADS).grid(GRID).words(Words::ExactFloats);
    plan.sizes(n * GRID as usize, n).build(sums, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("words", 4 * THREADS, 16);
        let own = t.index() * 4;
        let mirror = t.u32(4 * (THREADS - 1)) - own;
        let from = io.input.plus((cta.index() * (4 * THREADS) + own).widen());
        for _ in 0..2 {
            t.store(smem.plus(mirror), t.load::<U32, 1>(from));
            t.fence_proxy_async();
            cta.sync();
            t.when(t.index().eq(0), |t| {
                t.bulk_add(io.output, smem, 4 * THREADS);
                t.wait_stored();
            });
            cta.sync();
        }
    })
}
