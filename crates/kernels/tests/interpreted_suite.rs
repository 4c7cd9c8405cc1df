//! The suite of named cases on the GPU's kernels, run by the interpreter, which takes time. So there are three
//! lengths:
//! - Without a word every case but the five longest runs once, in f16 or in bf16: half of those that are not large, and
//!   all others, with Hopper's first schedule, and the rest in one of three other settings (another schedule, other
//!   GPUs). Of the sizes that scores may have, every eighth power of two.
//! - `SIGNFLASH_TEST=full`, which `.ci/run` sets, runs those that are not large with Hopper's first schedule and in one of the
//!   three others; of sizes of scores every fourth.
//! - `SIGNFLASH_TEST=all` runs every case everywhere in both formats, which differ in single instructions that
//!   `signflash-ptx` tests one by one, and every size.

mod common;

use common::On;
use signflash_core::suite::{Case, run_case};
use signflash_core::{
    Dtype, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef, bf16, f16,
};
use signflash_kernels::{Gpu, Interpreted, check_features};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Whether interpreting it takes more than a second or two: beyond two heads of 128 queries and keys.
fn is_large(problem: &Problem) -> bool {
    let Shape { num_heads, head_dim, .. } = *problem.shape();
    pairs(problem) * num_heads * head_dim > 1 << 21
}

/// Whether interpreting it takes several seconds: beyond eight times that.
fn is_very_large(problem: &Problem) -> bool {
    let Shape { num_heads, head_dim, .. } = *problem.shape();
    pairs(problem) * num_heads * head_dim > 1 << 24
}

/// Queries and keys of one sequence, seen or not.
fn pairs(problem: &Problem) -> usize {
    problem.sequences().map(|sequence| sequence.seqlen_q * sequence.seqlen_k).sum()
}

/// How many of the settings below are not Hopper's first schedule.
const OTHERS: u64 = 3;

/// A number for each problem, the same in every run: who runs it where not all do. All pieces of a problem have the
/// same, since whoever leaves out one of a case's pieces leaves out the case.
fn lot(problem: &Problem) -> u64 {
    let mut hasher = DefaultHasher::new();
    match problem.shard().num_heads_total {
        Some(total) => (total, problem.shape().head_dim).hash(&mut hasher),
        None => problem.shape().hash(&mut hasher),
    }
    (problem.window(), problem.cu_seqlens(), problem.softmax_scale().to_bits()).hash(&mut hasher);
    hasher.finish()
}

/// What `SIGNFLASH_TEST` says, least first.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Length {
    Short,
    Full,
    All,
}

fn length() -> Length {
    match std::env::var("SIGNFLASH_TEST").as_deref() {
        Ok("all") => Length::All,
        Ok("full") => Length::Full,
        _ => Length::Short,
    }
}

/// Who runs what, where not all do.
fn supports(on: &Interpreted, dtype: Dtype, problem: &Problem) -> Result<(), String> {
    let (length, first) = (length(), on.seed == 0);
    let lot = lot(problem);
    let is_others = !first && lot / 2 % OTHERS != on.seed % OTHERS;
    let not_drawn = match first {
        true => !lot.is_multiple_of(2) && !is_large(problem),
        false => lot.is_multiple_of(2),
    };
    // Half of the schedules leave out either.
    let left_out = match on.seed {
        0 if is_large(problem) => Some(Dtype::F16),
        0 => Some([Dtype::F16, Dtype::Bf16][usize::from((lot / 2).is_multiple_of(2))]),
        seed if seed % 2 == 0 => Some(Dtype::Bf16),
        _ => Some(Dtype::F16),
    };
    if dtype == Dtype::F32 {
        Err("the kernels are of 16-bit formats".into())
    } else if let Err(refused) = check_features(problem) {
        Err(refused.to_string())
    } else if length < Length::All && (left_out == Some(dtype) || is_others || (!first && is_large(problem)))
    {
        Err("SIGNFLASH_TEST=all runs it".into())
    } else if length < Length::Full && (is_very_large(problem) || not_drawn) {
        Err("SIGNFLASH_TEST=full runs it".into())
    } else {
        Ok(())
    }
}

/// The interpreter as one of these tests sets it up.
fn one(interpreted: Interpreted) -> On {
    let binades_apart = match length() {
        Length::Short => 8,
        Length::Full => 4,
        Length::All => 1,
    };
    On { supports, binades_apart, ..On::all(interpreted) }
}

/// Hopper's tiles; dq added up in any order.
mod hopper {
    use super::{Gpu, Interpreted, one};
    signflash_core::test_implementation!(one(Interpreted::new(Gpu::HOPPER)));
}

/// Another schedule, and dq added in the order of keys; in a pass of its own where Hopper's kernels do not take a call.
mod hopper_deterministic {
    use super::{Gpu, Interpreted, one};
    signflash_core::test_implementation!(one(Interpreted { gpu: Gpu::HOPPER, seed: 1, deterministic: true }));
}

/// The portable forward's tiles on a large GPU, as Hopper takes them for tensors that its own kernels do not.
mod ampere {
    use super::{Gpu, Interpreted, one};
    signflash_core::test_implementation!(one(Interpreted {
        gpu: Gpu::AMPERE,
        seed: 3,
        deterministic: false
    }));
}

/// The smallest GPU's tiles, and dq in a pass of its own. One float is added at a time on the large GPU above.
mod small {
    use super::{Gpu, Interpreted, one};
    signflash_core::test_implementation!(one(Interpreted { gpu: Gpu::SMALL, seed: 2, deterministic: true }));
}

/// Causality hides the rows without keys of the suite's cases, and what is hidden is zeroed. Here a row sees keys,
/// whose scores were all -inf.
#[test]
fn a_row_whose_lse_is_minus_infinity_has_no_gradient_whatever_that_of_its_lse() {
    let shape = Shape::new(1, 2, 3).heads(1, 1).head_dim(8);
    let problem = Problem::builder(shape).build().unwrap();
    let (ones, lse, dlse) = ([bf16::ONE; 24], [f32::NEG_INFINITY; 2], [f32::NAN, f32::INFINITY]);
    let [q, k] = [shape.q(), shape.k()].map(|shape| TensorRef::bshd(&ones, shape));
    let inputs = GradInputs::new(Inputs::new(q, k, k), q, &lse, q).dlse(&dlse[..]);
    for (gpu, deterministic) in [(Gpu::HOPPER, false), (Gpu::HOPPER, true), (Gpu::SMALL, false)] {
        let (mut dq, mut dk, mut dv) = ([bf16::NAN; 16], [bf16::NAN; 24], [bf16::NAN; 24]);
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        );
        let interpreted = Interpreted { gpu, seed: 0, deterministic };
        interpreted.backward(&problem, &inputs, &mut gradients).unwrap();
        assert!(dq.iter().chain(&dk).chain(&dv).all(|x| x.to_f32() == 0.0), "{interpreted:?}");
    }
}

/// Beyond 2^20 an lse in f32 says nothing of p: probs and gradients are NaN, not some number, and out and lse are
/// right.
#[test]
fn what_is_recomputed_from_an_lse_that_has_lost_it_is_nan_and_out_is_right() {
    let shape = Shape::new(1, 2, 3).heads(1, 1).head_dim(64);
    let problem = Problem::builder(shape).build().unwrap();
    let numbers = [f16::from_f32(20000.0); 192];
    let (q, k) = (TensorRef::bshd(&numbers[..128], shape.q()), TensorRef::bshd(&numbers, shape.k()));
    let inputs = Inputs::new(q, k, k);
    for gpu in [Gpu::HOPPER, Gpu::AMPERE, Gpu::SMALL] {
        let interpreted = Interpreted::new(gpu);
        let (mut out, mut lse, mut probs) = ([f16::ZERO; 128], [0.0; 2], [f16::ZERO; 6]);
        let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
            .probs(TensorMut::bshd(&mut probs, shape.probs()));
        interpreted.forward(&problem, &inputs, &mut outputs).unwrap();
        assert_eq!(out, [f16::from_f32(20000.0); 128], "{gpu:?}");
        assert!(lse.iter().all(|lse| (lse / 3.2e9 - 1.0).abs() < 1e-6), "{gpu:?}: {lse:?}");
        assert!(probs.iter().all(|p| p.is_nan()), "{gpu:?}: {probs:?}");

        let (mut dq, mut dk, mut dv) = ([f16::ZERO; 128], [f16::ZERO; 192], [f16::ZERO; 192]);
        let mut gradients = Gradients::new(
            TensorMut::bshd(&mut dq, shape.q()),
            TensorMut::bshd(&mut dk, shape.k()),
            TensorMut::bshd(&mut dv, shape.v()),
        );
        let out = TensorRef::bshd(&out, shape.out());
        let inputs = GradInputs::new(inputs, out, &lse, q);
        interpreted.backward(&problem, &inputs, &mut gradients).unwrap();
        assert!(dq.iter().chain(&dk).chain(&dv).all(|x| x.is_nan()), "{gpu:?}");
    }
}

/// On one multiprocessor, where tiles are more than blocks, so that blocks take them in pairs: an even number of them, an
/// odd one, and those of a wide window.
#[test]
fn one_block_takes_all_tiles_of_queries_in_pairs() {
    let one = On::all(Interpreted::new(Gpu { sm_count: 1, ..Gpu::HOPPER }));
    let case = |seqlen| Case::new(seqlen, seqlen).heads(1, 1).dtypes(&[Dtype::Bf16]);
    let cases = [
        case(400).causal(),
        case(300).causal().dropout(0.1),
        case(390).window(250, 0),
        // In the backward it takes tiles of keys one after the other, some of which nobody sees.
        case(0).packed(&[130, 0, 30], &[200, 9, 40]).causal().dropout(0.1),
    ];
    for (number, case) in cases.iter().enumerate() {
        let report = run_case("in pairs", case, &one);
        assert_eq!((report.ran, report.failures.len()), (1, 0), "case {number}: {report}");
    }
}

/// Of windows in which a block begins the sums of dq of some queries, and others wait for it: on few multiprocessors
/// blocks take several tiles, of heads that share keys, too.
#[test]
fn sums_of_dq_are_begun_by_the_first_block_that_comes_to_them() {
    let case =
        |seqlen, heads_k| Case::new(seqlen, seqlen).heads(2, heads_k).window(150, 3).dtypes(&[Dtype::Bf16]);
    for (sm_count, case) in [(1, case(400, 2)), (2, case(300, 1).dropout(0.1)), (3, case(450, 2))] {
        let few = On::all(Interpreted { seed: 1, ..Interpreted::new(Gpu { sm_count, ..Gpu::HOPPER }) });
        let report = run_case("begun", &case, &few);
        assert_eq!((report.ran, report.failures.len()), (1, 0), "{sm_count}: {report}");
    }
}
