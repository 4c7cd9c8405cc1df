//! The suite of named cases on every instruction set, and what must be the same to the bit.

mod common;

use common::Engine;
use signflash_core::suite::{Case, Extent, Layout, Values};
use signflash_core::{
    BiasMut, BiasRef, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ResultOf, ScoreInputs,
    Slopes, TensorMut, TensorName, TensorRef, bf16, f16,
};
use signflash_cpu::{CpuEngine, Isa, Team};

mod portable {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Portable)));
}

mod neon {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Neon)));
}

mod avx2 {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Avx2)));
}

mod avx512 {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Avx512)));
}

mod avx512bf16 {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Avx512Bf16)));
}

mod amx {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::On(super::Isa::Amx)));
}

mod in_two_passes {
    signflash_core::test_implementation!(super::Engine::Sharing(&super::Engine::InTwoPasses));
}

#[test]
fn every_instruction_set_runs_the_suite() {
    let tested = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];
    assert_eq!(tested, Isa::ALL, "add a module above for the new instruction set");
}

/// The bytes of out, lse, probs, and the gradients.
type Bits = Vec<(&'static str, Vec<u8>)>;

/// Forward with probs, then backward from its results.
fn run<T: Element>(engine: CpuEngine, case: &Case) -> Bits {
    run_on::<T, T>(engine, &case.problem(), &case.values())
}

/// The same with results of type `R`; the backward reads an out that was rounded in any case.
fn run_on<T: Element, R: Element + ResultOf<T>>(
    engine: CpuEngine,
    problem: &Problem,
    values: &Values,
) -> Bits {
    let shape = problem.shape();
    let rounded = |x: &[f64]| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<_>>();
    let zeros = |shape: [usize; 4]| vec![R::default(); shape.into_iter().product()];
    let Values { q, k, v, dout, dlse, .. } = values;
    let (q, k, v, dout) = (rounded(q), rounded(k), rounded(v), rounded(dout));
    let dlse: Option<Vec<f32>> = dlse.as_ref().map(|x| x.iter().map(|&x| x as f32).collect());
    let (mut out, mut lse, mut probs) =
        (zeros(shape.out()), vec![0.0; shape.lse_len()], zeros(problem.probs()));
    let floats = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (slopes, bias, sinks) = (floats(&values.alibi_slopes), floats(&values.bias), floats(&values.sinks));
    let mask: Vec<u8> = values.mask.iter().map(|&x| x as u8).collect();
    let of = |tensor| problem.shape_of(tensor);
    let scores = ScoreInputs::default()
        .alibi_slopes(problem.alibi().map(|_| TensorRef::bshd(&slopes, of(TensorName::AlibiSlopes))))
        .bias(problem.bias().map(|bias_of| BiasRef::F32(TensorRef::bshd(&bias, bias_of.shape))))
        .mask(problem.mask().map(|shape| TensorRef::bshd(&mask, shape)))
        .sinks(problem.sinks().then_some(&sinks[..]));
    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    )
    .scores(scores);
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
        .probs(TensorMut::bshd(&mut probs, problem.probs()));
    engine.forward(problem, &inputs, &mut outputs).expect("the operands fit");
    let of_forward: Vec<T> = out.iter().map(|&x| T::from_f32(x.to_f32())).collect();
    let (mut dq, mut dk, mut dv) = (zeros(shape.q()), zeros(shape.k()), zeros(shape.v()));
    let grad_inputs = GradInputs::new(
        inputs,
        TensorRef::bshd(&of_forward, shape.out()),
        &lse,
        TensorRef::bshd(&dout, shape.out()),
    )
    .dlse(dlse.as_deref());
    let (mut dbias, mut dsinks) = (vec![f32::NAN; bias.len()], vec![f32::NAN; sinks.len()]);
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    )
    .dbias(problem.bias().map(|bias| BiasMut::F32(TensorMut::bshd(&mut dbias, bias.shape))))
    .dsinks(problem.sinks().then_some(&mut dsinks[..]));
    engine.backward(problem, &grad_inputs, &mut gradients).expect("the operands fit");
    let bytes = |x: &[R]| bytemuck::cast_slice(x).to_vec();
    let others = [("lse", &lse), ("dbias", &dbias), ("dsinks", &dsinks)];
    let others = others.map(|(name, x)| (name, bytemuck::cast_slice(x).to_vec()));
    let results = [("out", &out), ("probs", &probs), ("dq", &dq), ("dk", &dk), ("dv", &dv)];
    results.into_iter().map(|(name, x)| (name, bytes(x))).chain(others).collect()
}

fn assert_same_bits(got: &Bits, expected: &Bits, what: &str) {
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        let different = got.iter().zip(expected).position(|(got, expected)| got != expected);
        assert_eq!(different, None, "{what}: {name} differs first at this byte");
    }
}

/// Large enough for several threads, tiles and chunks of keys.
fn cases() -> Vec<Case> {
    vec![
        Case::new(300, 1100).batch(2).heads(4, 2).dropout(0.1),
        Case::new(515, 515).heads(3, 3).head_dim(128).causal().dropout(0.3).dlse(),
        Case::new(1, 3)
            .heads(2, 1)
            .packed(&[300, 1, 40, 700, 0], &[1100, 1, 40, 30, 9])
            .window(400, 70)
            .dropout(0.1),
        Case::new(700, 700).heads(2, 1).head_dim(40).window(90, 20),
        Case::new(300, 600)
            .batch(2)
            .heads(4, 2)
            .head_dim(40)
            .head_dim_v(24)
            .softcap(3.0)
            .alibi(Slopes::PerSequence)
            .bias(Dtype::F32, [Extent::One, Extent::One, Extent::Each])
            .mask([Extent::Each, Extent::One, Extent::One])
            .sinks()
            .dropout(0.1),
        Case::new(130, 70).batch(3).bias(Dtype::F32, [Extent::One; 3]).mask([Extent::Each; 3]).causal(),
        Case::new(400, 700).heads(4, 1).head_dim(40).layout(Layout::Bhsd).causal(),
    ]
}

/// One on each instruction set of this machine, and for bf16 one that emulates AMX where it lacks that.
fn engines<T: Element>() -> Vec<CpuEngine> {
    let own =
        Isa::available().into_iter().map(|isa| CpuEngine::new().with_isa(isa).expect("it is available"));
    let emulates = T::DTYPE == Dtype::Bf16 && !Isa::Amx.is_available();
    own.chain(emulates.then(CpuEngine::emulating_amx).and_then(Result::ok)).collect()
}

/// A pool of its own, so that more threads run than this machine has cores.
fn with_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start").install(work)
}

/// How work is shared is the same code for all: the smallest cases do for the slowest kernels, and in the short form for
/// all but the best.
fn is_tried(number: usize, isa: Isa) -> bool {
    let is_best = Isa::available().last() == Some(&isa);
    let is_full = matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all"));
    number >= 5 || is_best || is_full && isa != Isa::Portable
}

fn threads_do_not_matter<T: Element>() {
    for (number, case) in cases().into_iter().enumerate() {
        let (problem, values) = (case.problem(), case.values());
        let run = |engine| run_on::<T, T>(engine, &problem, &values);
        for engine in engines::<T>().into_iter().filter(|engine| is_tried(number, engine.isa())) {
            let (isa, one) = (engine.isa(), run(engine.with_threads(1)));
            for threads in [3, 8] {
                let some = with_pool(threads, || run(engine.with_threads(threads)));
                assert_same_bits(&some, &one, &format!("{isa} {} {threads} threads", T::DTYPE));
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits_f32() {
    threads_do_not_matter::<f32>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits_f16() {
    threads_do_not_matter::<f16>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits_bf16() {
    threads_do_not_matter::<bf16>();
}

/// As many threads as a framework is asked for.
fn all_come(threads: usize, work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
}

/// None but the calling one, as in a parallel region that is within another.
fn one_comes(_: usize, work: &(dyn Fn() + Sync)) {
    work();
}

#[test]
fn threads_of_a_framework_give_the_same_bits_however_many_come() {
    for case in cases().split_off(4) {
        let one = run::<bf16>(CpuEngine::new().with_threads(1), &case);
        for team in [Team { threads: 4, run: all_come }, Team { threads: 4, run: one_comes }] {
            let of_team = run::<bf16>(CpuEngine::new().with_team(team), &case);
            assert_same_bits(&of_team, &one, "a team of 4");
        }
    }
}

/// The same numbers in memory, as a batch and as packed sequences of equal lengths.
fn packed_is_a_batch<T: Element>() {
    let batch = Case::new(150, 600).batch(3).heads(4, 2).dropout(0.1).causal();
    let packed = Case::new(0, 0).packed(&[150; 3], &[600; 3]).heads(4, 2).dropout(0.1).causal();
    for engine in engines::<T>() {
        let isa = engine.isa();
        for engine in [engine, engine.with_partial_bytes(0)] {
            let values = packed.values();
            let of_packed = run_on::<T, T>(engine, &packed.problem(), &values);
            let of_batch = run_on::<T, T>(engine, &batch.problem(), &values);
            let but_lse = |bits: Bits| bits.into_iter().filter(|(name, _)| *name != "lse").collect::<Bits>();
            assert_same_bits(&but_lse(of_packed), &but_lse(of_batch), &format!("{isa} {}", T::DTYPE));
        }
    }
}

#[test]
fn packed_sequences_of_equal_lengths_give_the_bits_of_a_batch() {
    packed_is_a_batch::<f32>();
    packed_is_a_batch::<bf16>();
}

/// Of each result, as `T`: what f32 results round to.
fn rounded<T: Element>(wide: Bits) -> (Bits, bool) {
    let mut is_wider = true;
    let mut round = |name, bytes: Vec<u8>| {
        if !["out", "probs", "dq", "dk", "dv"].contains(&name) {
            return (name, bytes);
        }
        let floats: Vec<f32> =
            bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect();
        let narrow: Vec<T> = floats.iter().map(|&x| T::from_f32(x)).collect();
        is_wider &= floats.iter().zip(&narrow).any(|(&x, y)| x != y.to_f32());
        (name, bytemuck::cast_slice(&narrow).to_vec())
    };
    let bits = wide.into_iter().map(|(name, bytes)| round(name, bytes)).collect();
    (bits, is_wider)
}

fn wide_results_are_what_would_be_rounded<T: Element>()
where
    f32: ResultOf<T>,
{
    for (number, case) in cases().into_iter().enumerate() {
        let (problem, values) = (case.problem(), case.values());
        for engine in engines::<T>().into_iter().filter(|engine| is_tried(number, engine.isa())) {
            let isa = engine.isa();
            let narrow = run_on::<T, T>(engine, &problem, &values);
            let (wide, is_wider) = rounded::<T>(run_on::<T, f32>(engine, &problem, &values));
            assert_same_bits(&wide, &narrow, &format!("{isa} {}", T::DTYPE));
            assert!(is_wider, "{isa} {}: f32 results were rounded", T::DTYPE);
        }
    }
}

#[test]
fn f32_results_of_f16_are_what_would_be_rounded() {
    wide_results_are_what_would_be_rounded::<f16>();
}

#[test]
fn f32_results_of_bf16_are_what_would_be_rounded() {
    wide_results_are_what_would_be_rounded::<bf16>();
}

/// dk and dv are summed alike; dq is summed over all keys at once instead of chunk by chunk.
#[test]
fn two_passes_give_the_same_dk_and_dv_to_the_bit() {
    for case in cases() {
        let (one, two) = (CpuEngine::new(), CpuEngine::new().with_partial_bytes(0));
        let but_dq = |bits: Bits| bits.into_iter().filter(|(name, _)| *name != "dq").collect::<Bits>();
        assert_same_bits(
            &but_dq(run::<bf16>(two, &case)),
            &but_dq(run::<bf16>(one, &case)),
            "two passes, bf16",
        );
        assert_same_bits(&but_dq(run::<f16>(two, &case)), &but_dq(run::<f16>(one, &case)), "two passes, f16");
    }
}

#[test]
fn f32_is_the_same_to_the_bit_on_avx2_and_avx512() {
    let engines: Vec<CpuEngine> = [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx]
        .into_iter()
        .filter_map(|isa| CpuEngine::new().with_isa(isa).ok())
        .collect();
    for case in cases() {
        for pair in engines.windows(2) {
            let (first, second) = (run::<f32>(pair[0], &case), run::<f32>(pair[1], &case));
            let what = format!("{} against {}", pair[1].isa(), pair[0].isa());
            assert_same_bits(&second, &first, &what);
        }
    }
}
