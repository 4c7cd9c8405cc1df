//! What each thing that becomes of a score costs, beside the same problem without it.

use signflash_core::{
    BiasMut, BiasRef, Dropout, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem,
    ProblemBuilder, ProblemError, ScoreInputs, Shape, Slopes, TensorMut, TensorName, TensorRef,
};
use signflash_cpu::CpuEngine;
use std::time::{Duration, Instant};

const SEQLEN: usize = 2048;
const REPEATS: usize = 7;

/// A row of the table: its name, what it adds to a problem, and whether dbias is asked for.
type Row = (&'static str, fn(ProblemBuilder) -> ProblemBuilder, bool);

const HEADS: usize = 2;
const FULL: [usize; 4] = [1, HEADS, SEQLEN, SEQLEN];

const ROWS: [Row; 14] = [
    ("softcap 50", |problem| problem.softcap(50.0), false),
    ("softcap 0.1, where scores saturate", |problem| problem.softcap(0.1), false),
    ("ALiBi", |problem| problem.alibi(Slopes::PerHead), false),
    ("softcap 50 and ALiBi", |problem| problem.softcap(50.0).alibi(Slopes::PerHead), false),
    ("bias f32 (1, heads, N, N)", |problem| problem.bias(Dtype::F32, FULL), false),
    ("bias bf16 (1, heads, N, N)", |problem| problem.bias(Dtype::Bf16, FULL), false),
    ("bias f32 (1, 1, 1, N)", |problem| problem.bias(Dtype::F32, [1, 1, 1, SEQLEN]), false),
    ("bias f32 (1, heads, N, N) and its gradient", |problem| problem.bias(Dtype::F32, FULL), true),
    (
        "bias f32 (1, 1, N, N) and its gradient",
        |problem| problem.bias(Dtype::F32, [1, 1, SEQLEN, SEQLEN]),
        true,
    ),
    ("mask (1, 1, N, N) of three quarters", |problem| problem.mask([1, 1, SEQLEN, SEQLEN]), false),
    ("mask (1, 1, 1, N) of half the keys", |problem| problem.mask([1, 1, 1, SEQLEN]), false),
    ("sinks and their gradient", |problem| problem.sinks(true), false),
    ("head_dim of v halved", |problem| problem, false),
    ("nothing, once more", |problem| problem, false),
];

/// The operands of all of them.
struct Operands<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    dout: Vec<T>,
    bias: Vec<f32>,
    bias_bf16: Vec<signflash_core::bf16>,
    mask: Vec<u8>,
}

impl<T: Element> Operands<T> {
    fn new(shape: &Shape) -> Self {
        let of = |shape: [usize; 4], step| super::numbers(shape.into_iter().product(), step);
        let bias: Vec<f32> = super::numbers(FULL.into_iter().product(), 32_452_843);
        Self {
            q: of(shape.q(), 7919),
            k: of(shape.k(), 104_729),
            v: of(shape.v(), 1_299_709),
            dout: of(shape.out(), 15_485_863),
            bias_bf16: bias.iter().map(|&x| signflash_core::bf16::from_f32(x)).collect(),
            mask: (0..SEQLEN * SEQLEN).map(|n| u8::from(n.wrapping_mul(7919) % 1009 < 757)).collect(),
            bias,
        }
    }
}

/// One forward and one backward.
fn run<T: Element>(
    engine: CpuEngine,
    problem: &Problem,
    operands: &Operands<T>,
    with_dbias: bool,
) -> Result<[Duration; 2], ProblemError> {
    let (shape, of) = (problem.shape(), |tensor| problem.shape_of(tensor));
    let (slopes, sinks) = ([0.5f32, 0.0625], [0.5f32; HEADS]);
    let bias = problem.bias().map(|bias| match bias.dtype {
        Dtype::Bf16 => BiasRef::Bf16(TensorRef::bshd(&operands.bias_bf16, bias.shape)),
        _ => BiasRef::F32(TensorRef::bshd(&operands.bias, bias.shape)),
    });
    let half: Vec<u8> = (0..SEQLEN).map(|j| u8::from(j < SEQLEN / 2)).collect();
    let mask = |shape: [usize; 4]| if shape[2] == 1 { &half } else { &operands.mask };
    let scores = ScoreInputs::default()
        .alibi_slopes(problem.alibi().map(|_| TensorRef::bshd(&slopes, of(TensorName::AlibiSlopes))))
        .bias(bias)
        .mask(problem.mask().map(|shape| TensorRef::bshd(mask(shape), shape)))
        .sinks(problem.sinks().then_some(&sinks[..]));
    let inputs = Inputs::new(
        TensorRef::bshd(&operands.q, shape.q()),
        TensorRef::bshd(&operands.k, shape.k()),
        TensorRef::bshd(&operands.v, shape.v()),
    )
    .scores(scores);
    let zeros = |shape: [usize; 4]| vec![T::default(); shape.into_iter().product()];
    let (mut out, mut lse) = (zeros(shape.out()), vec![0.0; shape.lse_len()]);
    let [mut dq, mut dk, mut dv] = [shape.q(), shape.k(), shape.v()].map(zeros);
    let bias_shape = of(TensorName::Dbias);
    let mut dbias = vec![0.0f32; bias_shape.into_iter().product()];
    let mut dsinks = [0.0; HEADS];
    let start = Instant::now();
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
    engine.forward(problem, &inputs, &mut outputs)?;
    let forward = start.elapsed();
    let out = TensorRef::bshd(&out, shape.out());
    let grad_inputs = GradInputs::new(inputs, out, &lse, TensorRef::bshd(&operands.dout, shape.out()));
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    )
    .dbias(with_dbias.then(|| BiasMut::F32(TensorMut::bshd(&mut dbias, bias_shape))))
    .dsinks(problem.sinks().then_some(&mut dsinks[..]));
    let start = Instant::now();
    engine.backward(problem, &grad_inputs, &mut gradients)?;
    Ok([forward, start.elapsed()])
}

/// The costs of all rows, each measured in turns with the problem without it.
pub(crate) fn table<T: Element>(engine: CpuEngine) -> Result<(), ProblemError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let chooses = |word: &String| [&super::DTYPES[..], &super::TABLES].concat().contains(&word.as_str());
    let only: Vec<String> = words.into_iter().filter(|word| !chooses(word)).collect();
    let is_asked = |row: &&Row| only.is_empty() || only.iter().any(|word| row.0.contains(word.as_str()));
    for (head_dim, dropout) in [(64, 0.0), (64, 0.1), (128, 0.0), (128, 0.1)] {
        println!(
            "\n{} {SEQLEN} keys, {HEADS} heads of {head_dim}, dropout {dropout}, {engine:?}\n\
             | scores | forward ms | backward ms | of plain: forward | backward | both |\n\
             |---|---:|---:|---:|---:|---:|",
            T::DTYPE
        );
        for &(name, add, with_dbias) in ROWS.iter().filter(is_asked) {
            let shape = Shape::new(1, SEQLEN, SEQLEN).heads(HEADS, HEADS).head_dim(head_dim);
            let plain = Problem::builder(shape).dropout(Dropout::new(dropout, 1, 0)?);
            let own = if name.starts_with("head_dim") { shape.head_dim_v(head_dim / 2) } else { shape };
            let problem = add(plain.clone().shape(own)).build()?;
            let plain = plain.build()?;
            let operands = [Operands::<T>::new(&own), Operands::new(&shape)];
            let mut best = [[Duration::MAX; 2]; 2];
            for _ in 0..REPEATS {
                let timed = [
                    run(engine, &problem, &operands[0], with_dbias)?,
                    run(engine, &plain, &operands[1], false)?,
                ];
                for (best, timed) in best.iter_mut().flatten().zip(timed.into_iter().flatten()) {
                    *best = timed.min(*best);
                }
            }
            let [own, plain] = best.map(|times| times.map(super::milliseconds));
            println!(
                "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                own[0],
                own[1],
                own[0] / plain[0],
                own[1] / plain[1],
                (own[0] + own[1]) / (plain[0] + plain[1])
            );
        }
    }
    Ok(())
}
