//! How fast this machine multiplies and adds at best: what attention is measured against.

use crate::isa::Isa;
use crate::simd::Simd;
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use signflash_core::Dtype;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Independent sums: enough to hide the latency of two multiply-adds a cycle.
const SUMS: usize = 12;
/// Steps between two looks at the clock.
const STEPS: usize = 100_000;

/// The rate of multiply-adds in registers, in GFLOP/s (2 operations each, 4 for a bf16 pair), summed over `threads`
/// threads of the current rayon pool, or the calling thread alone, that run at the same time for about `time` each. The kind is the one that
/// attention on tensors of `dtype` uses with `isa`: f32, except for bf16 with [`Isa::Avx512Bf16`] and with [`Isa::Amx`], which
/// multiplies tiles (16 x 16 sums of 32 products at a time).
///
/// ```
/// use signflash_cpu::{Isa, peak};
/// use std::time::Duration;
/// let gflops = peak::fma_gflops(Isa::best(), signflash_core::Dtype::F32, 1, Duration::from_millis(5));
/// assert!(gflops > 0.1);
/// ```
///
/// # Panics
/// If this machine lacks `isa`.
pub fn fma_gflops(isa: Isa, dtype: Dtype, threads: usize, time: Duration) -> f64 {
    assert!(isa.is_available(), "isa {isa} is not available on this machine");
    let run = kernel(isa, dtype);
    if threads <= 1 {
        return rate(run, time); // without a pool, for which there may be no room
    }
    // The pool's threads are there already: a thread that cannot be started would leave the others waiting for it.
    let threads = threads.min(rayon::current_num_threads());
    let barrier = Barrier::new(threads);
    let rates = rayon::broadcast(|worker| {
        if worker.index() >= threads {
            return 0.0;
        }
        barrier.wait();
        rate(run, time)
    });
    rates.into_iter().sum()
}

/// The best GFLOP/s of any stretch: stretches that the machine spent elsewhere say nothing of its peak.
fn rate(run: unsafe fn() -> f64, time: Duration) -> f64 {
    let begin = Instant::now();
    let mut best = 0.0f64;
    while begin.elapsed() < time {
        let start = Instant::now();
        // SAFETY: `fma_gflops` saw the instruction set available.
        let flops = unsafe { run() };
        best = best.max(flops / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn kernel(isa: Isa, dtype: Dtype) -> unsafe fn() -> f64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if dtype == Dtype::Bf16 => avx512bf16,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if dtype == Dtype::Bf16 => amx,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => portable::<Neon>,
        _ => portable::<Portable>,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2() -> f64 {
    // SAFETY: the features are enabled.
    unsafe { portable::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512() -> f64 {
    // SAFETY: the features are enabled.
    unsafe { portable::<Avx512<false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn avx512bf16() -> f64 {
    // SAFETY: the features are enabled.
    unsafe { portable::<Avx512<true>>() }
}

#[cfg(target_arch = "x86_64")]
unsafe fn amx() -> f64 {
    crate::tiles::multiply_in_tiles()
}

/// One stretch; returns its operations.
#[inline(always)]
unsafe fn portable<S: Simd>() -> f64 {
    let words = std::hint::black_box([0x3f80_3f80u32, 0x2f80_2f80]);
    // SAFETY: the pointers are to words of this frame; the rest is the caller's promise.
    unsafe {
        let (a, b) = (S::broadcast(&words[0]), S::broadcast(&words[1]));
        let mut sums = [S::splat(0.0); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = S::mac(*sum, a, b);
            }
        }
        let mut seen = [0.0f32; 16];
        for sum in sums {
            S::store(seen.as_mut_ptr(), sum);
            std::hint::black_box(&seen);
        }
    }
    (2 * S::UNIT * S::LANES * SUMS * STEPS) as f64
}
