//! Loops over the lanes of a warp that the compiler can vectorise.
use crate::interp::Lanes;
use crate::interp::warp::LANES;

/// A plain loop: `array::map` and `from_fn` of 32 elements are calls, which nothing vectorises.
#[inline(always)]
pub(super) fn each_lane<T: Copy, R: Copy + Default>(values: &Lanes<T>, run: impl Fn(T) -> R) -> Lanes<R> {
    let mut results = [R::default(); LANES];
    for lane in 0..LANES {
        results[lane] = run(values[lane]);
    }
    results
}

#[inline(always)]
pub(super) fn narrow([a, b, c]: [&Lanes<u32>; 3], run: impl Fn([u64; 3]) -> u64) -> Lanes<u32> {
    let mut results = [0; LANES];
    for lane in 0..LANES {
        results[lane] = run([a[lane].into(), b[lane].into(), c[lane].into()]) as u32;
    }
    results
}

#[inline(always)]
pub(super) fn wide([a, b, c]: [&Lanes<u64>; 3], run: impl Fn([u64; 3]) -> u64) -> Lanes<u64> {
    let mut results = [0; LANES];
    for lane in 0..LANES {
        results[lane] = run([a[lane], b[lane], c[lane]]);
    }
    results
}
