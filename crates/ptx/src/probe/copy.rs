//! Probes of Ampere's asynchronous copies.
use super::{Plan, Probe};
use crate::build::Val;
use crate::types::U32;

const THREADS: u32 = 64;
/// 16 bytes a thread.
const SLOT: u32 = 16 * THREADS;
const ROUNDS: u32 = 5;

pub(super) fn probes() -> Vec<Probe> {
    vec![single(), two_groups(), ring(1), ring(2), ring(3)]
}

/// Odd threads copy nothing and get zeros; each thread reads what its neighbour copied.
fn single() -> Probe {
    let neighbours = |input: &[u32]| -> Vec<u32> {
        let word = |i: usize| if (i / 4).is_multiple_of(2) { 0 } else { input[i - 4] };
        (0..input.len()).map(word).collect()
    };
    let words = 4 * THREADS as usize;
    Plan::new("cp.async and one wait", THREADS).sizes(words, words).build(neighbours, |cta, io| {
        let t = cta.threads();
        let smem = cta.smem("chunks", SLOT, 16);
        let own = t.index() * 16;
        let even = (t.index() & 1).eq(0);
        let copy = cta.copy_group(|| t.copy_async(smem.plus(own), io.input.plus(own.widen()), even));
        copy.wait(cta);
        let chunk = t.load::<U32, 4>(smem.plus((t.index() ^ 1) * 16));
        t.store(io.output.plus(own.widen()), chunk);
    })
}

/// The first group is used while the second is in flight.
fn two_groups() -> Probe {
    let words = 8 * THREADS as usize;
    Plan::new("cp.async and two waits", THREADS).sizes(words, words).build(<[u32]>::to_vec, |cta, io| {
        let t = cta.threads();
        let own = t.index() * 16;
        let halves = [0, 1].map(|half| {
            let smem = cta.smem(["first", "second"][half], SLOT, 16).plus(own);
            let at = (own + half as u32 * SLOT).widen();
            let copy = cta.copy_group(|| t.copy_async(smem, io.input.plus(at), t.index().lt(THREADS)));
            (copy, smem, at)
        });
        for (copy, smem, at) in halves {
            copy.wait(cta);
            t.store(io.output.plus(at), t.load::<U32, 4>(smem));
        }
    })
}

/// Each thread adds up what its neighbour copied, over some rounds.
fn ring(slots: u32) -> Probe {
    let sums = |input: &[u32]| -> Vec<u32> {
        let round = |r: usize, i: usize| input[r * SLOT as usize / 4 + (i ^ 4)];
        let sum = |i| (0..ROUNDS as usize).fold(0u32, |sum, r| sum.wrapping_add(round(r, i)));
        (0..SLOT as usize / 4).map(sum).collect()
    };
    let words = SLOT as usize / 4;
    let plan = Plan::new(&format!("cp.async in a ring of {slots}"), THREADS);
    plan.sizes(ROUNDS as usize * words, words).build(sums, |cta, io| {
        let t = cta.threads();
        let ring = cta.copy_ring("chunks", slots, SLOT);
        let own = t.index() * 16;
        let fill = |round: Val<'_, U32>| {
            let to = ring.next_fill().plus(own);
            let at = round * SLOT + own;
            ring.fill(cta, || t.copy_async(to, io.input.plus(at.widen()), round.lt(ROUNDS)));
        };
        // Rounds in flight while one is read.
        let ahead = (slots - 1).max(1);
        (0..ahead).for_each(|round| fill(t.u32(round)));
        let (round, sums) = (t.u32(0).var(), [(); 4].map(|()| t.u32(0).var()));
        cta.while_(
            || round.get().lt(ROUNDS),
            |cta| {
                let slot = ring.take(cta);
                if slots > 1 {
                    fill(round.get() + ahead);
                }
                let words = t.load::<U32, 4>(slot.address().plus((t.index() ^ 1) * 16));
                sums.iter().zip(words).for_each(|(sum, word)| sum.set(sum.get() + word));
                slot.release();
                if slots == 1 {
                    cta.sync(); // nobody reads any more
                    fill(round.get() + 1);
                }
                round.set(round.get() + 1);
            },
        );
        (0..ahead).for_each(|_| ring.take(cta).release());
        t.store(io.output.plus(own.widen()), sums.map(|sum| sum.get()));
    })
}
