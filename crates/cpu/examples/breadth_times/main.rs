//! What windows, packed sequences and all that becomes of a score cost on this machine's CPU: the time of a forward and of
//! a backward, beside what the number of scores lets expect. `cargo run --release -p signflash-cpu --example
//! breadth_times`, in a quiet minute; words behind `--` choose: `f32` and `bf16` dtypes, `windows`, `packed` and `scores`
//! tables, and rows of the last by a part of their name.
//!
//! A window's cost should fall with the window. Packed sequences should cost what their own scores cost: the second table
//! has the same sequences padded to the longest, too, as they are computed where nothing packs them.

mod scores;

use signflash_core::{
    Dropout, Element, GradInputs, Gradients, Inputs, Outputs, Problem, ProblemError, Shape, TensorMut,
    TensorRef, bf16,
};
use signflash_cpu::CpuEngine;
use std::time::{Duration, Instant};

const DROPOUT: f32 = 0.1;
const REPEATS: usize = 5;
const DTYPES: [&str; 2] = ["f32", "bf16"];
const TABLES: [&str; 3] = ["windows", "packed", "scores"];

/// Operands of one problem, and the best times of its passes.
struct Timed {
    forward: Duration,
    backward: Duration,
    /// Scores that are seen, of all heads.
    scores: f64,
}

impl Timed {
    fn of<T: Element>(engine: CpuEngine, problem: &Problem) -> Result<Self, ProblemError> {
        let shape = problem.shape();
        let tensor =
            |shape: [usize; 4], step: usize| -> Vec<T> { numbers(shape.into_iter().product(), step) };
        let (q, k, v) = (tensor(shape.q(), 7919), tensor(shape.k(), 104_729), tensor(shape.v(), 1_299_709));
        let dout = tensor(shape.out(), 15_485_863);
        let (mut out, mut lse) = (tensor(shape.out(), 0), vec![0.0; shape.lse_len()]);
        let (mut dq, mut dk, mut dv) = (tensor(shape.q(), 0), tensor(shape.k(), 0), tensor(shape.v(), 0));
        let inputs = Inputs::new(
            TensorRef::bshd(&q, shape.q()),
            TensorRef::bshd(&k, shape.k()),
            TensorRef::bshd(&v, shape.v()),
        );
        let (mut forward, mut backward) = (Duration::MAX, Duration::MAX);
        for _ in 0..REPEATS {
            let start = Instant::now();
            let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
            engine.forward(problem, &inputs, &mut outputs)?;
            forward = forward.min(start.elapsed());
            let grad_inputs = GradInputs::new(
                inputs,
                TensorRef::bshd(&out, shape.out()),
                &lse,
                TensorRef::bshd(&dout, shape.out()),
            );
            let mut gradients = Gradients::new(
                TensorMut::bshd(&mut dq, shape.q()),
                TensorMut::bshd(&mut dk, shape.k()),
                TensorMut::bshd(&mut dv, shape.v()),
            );
            let start = Instant::now();
            engine.backward(problem, &grad_inputs, &mut gradients)?;
            backward = backward.min(start.elapsed());
        }
        let of_row = |(sequence, _, i)| {
            let keys = problem.visibility_in(&sequence).keys_of(i as i64);
            keys.positions().len() as f64
        };
        Ok(Self { forward, backward, scores: problem.rows().map(of_row).sum() })
    }

    /// Nanoseconds a visible score: forward, backward.
    fn per_score(&self) -> [f64; 2] {
        [self.forward, self.backward].map(|time| time.as_secs_f64() * 1e9 / self.scores)
    }

    fn total(&self) -> f64 {
        (self.forward + self.backward).as_secs_f64()
    }
}

/// Numbers from -1 to 1, in an order that `step` makes.
fn numbers<T: Element>(len: usize, step: usize) -> Vec<T> {
    (0..len).map(|i: usize| T::from_f32((i.wrapping_mul(step) % 1009) as f32 / 504.0 - 1.0)).collect()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn windows<T: Element>(engine: CpuEngine) -> Result<(), ProblemError> {
    const SEQLEN: usize = 8192;
    let shape = Shape::new(1, SEQLEN, SEQLEN).heads(2, 2).head_dim(64);
    let causal =
        || Ok::<_, ProblemError>(Problem::builder(shape).causal(true).dropout(Dropout::new(DROPOUT, 1, 0)?));
    let all = Timed::of::<T>(engine, &causal()?.build()?)?;
    println!("\n{} causal, {SEQLEN} keys, 2 heads of 64, dropout {DROPOUT}, {engine:?}", T::DTYPE);
    println!("| window | forward ms | backward ms | ns a score | of all, by scores | of all, measured |");
    println!("|---|---:|---:|---:|---:|---:|");
    for left in [Some(127), Some(255), Some(511), Some(1023), Some(2047), Some(4095), None] {
        let timed = Timed::of::<T>(engine, &causal()?.window(left, None).build()?)?;
        let [forward, backward] = timed.per_score();
        println!(
            "| {} | {:.2} | {:.2} | {forward:.2} / {backward:.2} | {:.3} | {:.3} |",
            left.map_or("none".into(), |left| (left + 1).to_string()),
            milliseconds(timed.forward),
            milliseconds(timed.backward),
            timed.scores / all.scores,
            timed.total() / all.total(),
        );
    }
    Ok(())
}

/// Numbers from `first` to `last`, spread by a generator of one line.
fn lengths(count: usize, first: u32, last: u32) -> Vec<u32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        first + (state >> 8) % (last - first + 1)
    };
    (0..count).map(|_| next()).collect()
}

fn packed<T: Element>(engine: CpuEngine) -> Result<(), ProblemError> {
    println!("\n{} packed beside padded, 2 heads of 64, dropout {DROPOUT}, {engine:?}", T::DTYPE);
    println!(
        "| sequences | packed fwd / bwd ms | padded fwd / bwd ms | ns a score | faster, by scores | measured |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let one_long: Vec<u32> = std::iter::once(4096).chain([16; 64]).collect();
    for (name, lengths) in [
        ("8 of 1024", vec![1024; 8]),
        ("16 of 1 to 2048", lengths(16, 1, 2048)),
        ("64 of 20 to 512", lengths(64, 20, 512)),
        ("4096 and 64 of 16", one_long),
        ("10000 of 1", vec![1; 10_000]),
    ] {
        let cu_seqlens: Vec<u32> = (0..=lengths.len()).map(|end| lengths[..end].iter().sum()).collect();
        let (count, total) = (lengths.len(), cu_seqlens[lengths.len()] as usize);
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let of = |shape: Shape| {
            Ok(Problem::builder(shape.heads(2, 2).head_dim(64)).dropout(Dropout::new(DROPOUT, 1, 0)?))
        };
        let packed = of(Shape::new(1, total, total))?.packed(&cu_seqlens, &cu_seqlens).build()?;
        let padded = of(Shape::new(count, longest, longest))?.build()?;
        let (packed, padded) = (Timed::of::<T>(engine, &packed)?, Timed::of::<T>(engine, &padded)?);
        let [forward, backward] = packed.per_score();
        println!(
            "| {name} | {:.2} / {:.2} | {:.2} / {:.2} | {forward:.2} / {backward:.2} | {:.2} | {:.2} |",
            milliseconds(packed.forward),
            milliseconds(packed.backward),
            milliseconds(padded.forward),
            milliseconds(padded.backward),
            padded.scores / packed.scores,
            padded.total() / packed.total(),
        );
    }
    Ok(())
}

fn main() -> Result<(), ProblemError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asked = |word: &str, of: &[&str]| {
        let is_chosen = |x: &String| of.contains(&x.as_str());
        !words.iter().any(is_chosen) || words.iter().any(|x| x == word)
    };
    let (dtypes, tables) = (DTYPES, TABLES);
    let engine = CpuEngine::new();
    println!("{} threads", engine.threads());
    type Table = fn(CpuEngine) -> Result<(), ProblemError>;
    let of_f32: [Table; 3] = [windows::<f32>, packed::<f32>, scores::table::<f32>];
    let of_bf16: [Table; 3] = [windows::<bf16>, packed::<bf16>, scores::table::<bf16>];
    for (dtype, run) in dtypes.into_iter().zip([of_f32, of_bf16]).filter(|(dtype, _)| asked(dtype, &dtypes)) {
        for (table, run) in tables.into_iter().zip(run).filter(|(table, _)| asked(table, &tables)) {
            println!("\n# {table}, {dtype}");
            run(engine)?;
        }
    }
    Ok(())
}
