//! Where code enters an instruction set: the only functions with `#[target_feature]`. All kernels are inlined here.

use crate::call::Call;
use crate::isa::Isa;
use crate::score_stage::TableMut;
use crate::simd::Simd;
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use crate::{backward, forward, references, score_stage};
use signflash_core::Dtype;

/// The kernels of one instruction set.
///
/// # Safety of the functions
/// The instruction set must be available; the rest as [`forward::tile`], [`forward::references`], [`backward::unit`] and
/// [`backward::bias_unit`].
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) forward_scratch: fn(&forward::Scores<'_>) -> forward::Scratch,
    pub(crate) forward: unsafe fn(&forward::Forward<'_>, forward::Task, &mut forward::Scratch),
    pub(crate) references:
        unsafe fn(&forward::Scores<'_>, forward::Unit, &mut forward::Scratch, &references::Writer<'_>),
    pub(crate) backward_scratch: fn(&backward::Backward<'_>) -> backward::Scratch,
    pub(crate) backward: unsafe fn(&backward::Backward<'_>, backward::Task<'_>, &mut backward::Scratch),
    pub(crate) bias: unsafe fn(
        &backward::Backward<'_>,
        (&TableMut<'_>, &backward::BiasTiles),
        backward::BiasUnit,
        &mut backward::Scratch,
    ),
}

macro_rules! kernels {
    ($name:ident, $simd:ty, $mr:literal $(, $features:literal)?) => {
        mod $name {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn change(
                call: &Call<'_>,
                panel: &score_stage::Panel<'_>,
                scratch: &mut score_stage::Scratch,
            ) {
                // SAFETY: this function's features are those that $simd needs; the rest is the caller's promise.
                unsafe { call.stage.change::<$simd>(call, panel, scratch) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn forward(call: &forward::Forward<'_>, task: forward::Task, scratch: &mut forward::Scratch) {
                let _held = <$simd>::TILES.then(|| call.scores.call.tiles.hold());
                // SAFETY: as above.
                unsafe { forward::tile::<$simd, $mr>(call, task, scratch, change) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn references(
                scores: &forward::Scores<'_>,
                unit: forward::Unit,
                scratch: &mut forward::Scratch,
                to: &references::Writer<'_>,
            ) {
                let _held = <$simd>::TILES.then(|| scores.call.tiles.hold());
                // SAFETY: as above.
                unsafe { forward::references::<$simd, $mr>(scores, unit, scratch, to, change) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn backward(
                call: &backward::Backward<'_>,
                task: backward::Task<'_>,
                scratch: &mut backward::Scratch,
            ) {
                let _held = <$simd>::TILES.then(|| call.call.tiles.hold());
                // SAFETY: as above.
                unsafe { backward::unit::<$simd>(call, task, scratch, ENTRIES) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sweep(
                work: &backward::Work<'_>,
                scratch: &mut backward::Scratch,
                keys: backward::Keys,
                queries: backward::Queries,
                wanted: backward::Wanted,
            ) {
                // SAFETY: as above.
                unsafe { work.sweep::<$simd, $mr>(scratch, keys, queries, wanted) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sweep_bias(
                work: &backward::Work<'_>,
                scratch: &mut backward::Scratch,
                keys: backward::Keys,
                queries: backward::Queries,
            ) {
                // SAFETY: as above.
                unsafe { work.sweep_bias::<$simd, $mr>(scratch, keys, queries) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn bias(
                call: &backward::Backward<'_>,
                to: (&TableMut<'_>, &backward::BiasTiles),
                unit: backward::BiasUnit,
                scratch: &mut backward::Scratch,
            ) {
                let _held = <$simd>::TILES.then(|| call.call.tiles.hold());
                // SAFETY: as above.
                unsafe { backward::bias_unit::<$simd>(call, to, unit, scratch, ENTRIES) }
            }

            const ENTRIES: backward::Entries = backward::Entries { sweep, sweep_bias, change };

            pub(super) const KERNELS: Kernels = Kernels {
                forward_scratch: forward::Scratch::new::<$simd>,
                forward,
                references,
                backward_scratch: backward::Scratch::new::<$simd>,
                backward,
                bias,
            };
        }
    };
}

kernels!(portable, Portable, 4);
#[cfg(target_arch = "aarch64")]
kernels!(neon, Neon, 4);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, Avx2, 4, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(avx512, Avx512<false>, 8, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(avx512bf16, Avx512<true>, 8, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(amx, Avx512<true, true>, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c");

/// The kernels for tensors of `dtype`. Products of bf16 pairs are for bf16 tensors, and for finite ones: `careful`
/// calls convert to f32.
pub(crate) fn kernels(isa: Isa, dtype: Dtype, careful: bool) -> Kernels {
    match isa {
        Isa::Portable => portable::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if dtype == Dtype::Bf16 && !careful => avx512bf16::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if dtype == Dtype::Bf16 && !careful => amx::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => avx512::KERNELS,
        // Not of this machine's architecture.
        _ => portable::KERNELS,
    }
}
