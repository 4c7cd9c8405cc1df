//! Times tiles other than the table's on a GPU, for `crates/kernels/src/select.rs`. A line of standard input is a trial:
//! `forward 128 2048 drop causal w4 r2 n64 s2 b2 reg`: pass, head_dim, seqlen, flags, tiles as their name spells them;
//! `forward 128 2048 drop g2 n128 s2 r216`: the same of Hopper's kernel. Without tiles the tables' choice.
//! 16384 tokens and heads * head_dim = 2048 in all, bf16, median of 20.
use signflash_core::{Dropout, Problem, Shape};
use signflash_cuda::{CudaEngine, Device, DeviceBuffer, Event};
use signflash_kernels::{BackwardCall, DeviceTensor, ForwardCall, ForwardShape, Half, Tiles, Warpgroups};
use std::error::Error;
use std::io::BufRead;

const TOKENS: usize = 16384;
const WIDTH: usize = 2048;

fn main() -> Result<(), Box<dyn Error>> {
    let engine = CudaEngine::new(&Device::open(0)?)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match trial(&engine, &line) {
            Ok((ms, tflops)) => println!("{line:60} {ms:8.3} ms {tflops:7.1} TFLOP/s"),
            Err(error) => println!("{line:60} {error}"),
        }
    }
    Ok(())
}

fn trial(engine: &CudaEngine, line: &str) -> Result<(f64, f64), Box<dyn Error>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let number = |letter: char| words.iter().find_map(|w| w.strip_prefix(letter)?.parse::<u32>().ok());
    let (head_dim, seqlen): (usize, usize) = (words[1].parse()?, words[2].parse()?);
    let hopper = number('g').map(|groups| Warpgroups {
        groups,
        loaders: number('l').unwrap_or(1),
        flag_stages: number('f').unwrap_or(2),
        step: number('n').unwrap_or(128),
        stages: number('s').unwrap_or(2),
        registers: number('r').unwrap_or(216),
        turns: !has("noturns"),
        early: number('e').unwrap_or(0),
        out_in_q: has("outq"),
    });
    let tiles = number('w').map(|warps| Tiles {
        warps,
        row_tiles: number('r').unwrap_or(1),
        split: number('c').unwrap_or(1),
        step: number('n').unwrap_or(64),
        slots: number('s').unwrap_or(2),
        blocks_per_sm: number('b').unwrap_or(1),
        late_dq: has("late"),
        in_registers: has("reg"),
    });
    let heads = WIDTH / head_dim;
    let shape = Shape {
        batch: TOKENS / seqlen,
        seqlen_q: seqlen,
        seqlen_k: seqlen,
        num_heads: heads,
        num_heads_k: heads,
        head_dim,
    };
    let mut problem = Problem::builder(shape).causal(has("causal"));
    if has("drop") {
        problem = problem.dropout(Dropout::new(0.1, 42, 0)?);
    }
    let problem = problem.build()?;
    let backward = words[0] == "backward";
    let shape_of = hopper.map(ForwardShape::Hopper).or(tiles.map(ForwardShape::Portable));
    let ms = time(engine, &problem, (shape_of, tiles), backward, has("det"))?;
    let flops = 4.0 * (shape.batch * heads * head_dim) as f64 * (seqlen as f64).powi(2);
    let flops = flops * if backward { 2.5 } else { 1.0 } / if has("causal") { 2.0 } else { 1.0 };
    Ok((ms, flops / ms / 1e9))
}

fn time(
    engine: &CudaEngine,
    problem: &Problem,
    (forward_shape, tiles): (Option<ForwardShape>, Option<Tiles>),
    backward: bool,
    deterministic: bool,
) -> Result<f64, Box<dyn Error>> {
    let stream = engine.stream();
    let mut state = 1u32;
    let mut normal = |n: usize| -> Result<DeviceBuffer, Box<dyn Error>> {
        let mut one = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        // A million numbers, again and again: the host would take longer than the GPU otherwise.
        let data: Vec<u8> = (0..n.min(1_000_003))
            .map(|_| ((one() + one() + one() + one() - 2.0) * 1.73) as f32)
            .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let data: Vec<u8> = data.iter().copied().cycle().take(2 * n).collect();
        Ok(DeviceBuffer::from_host(stream, &data)?)
    };
    let shape = problem.shape();
    let len = TOKENS * WIDTH;
    let (q, k, v, dout) = (normal(len)?, normal(len)?, normal(len)?, normal(len)?);
    let new = || DeviceBuffer::zeroed(stream, 2 * len);
    let (out, dq, dk, dv) = (new()?, new()?, new()?, new()?);
    let lse = DeviceBuffer::zeroed(stream, 4 * shape.lse_len())?;
    let bytes = engine.backward_workspace_bytes(problem, deterministic);
    let workspace = DeviceBuffer::zeroed(stream, 2 * bytes as usize)?;
    let tensor = |buffer: &DeviceBuffer| DeviceTensor {
        ptr: buffer.ptr(),
        batch_stride: (shape.seqlen_q * WIDTH) as u64,
        row_stride: WIDTH as u64,
        head_stride: shape.head_dim as u64,
    };
    let half = Half::Bf16;
    let (q, k, v, dout, dq, dk, dv) =
        (tensor(&q), tensor(&k), tensor(&v), tensor(&dout), tensor(&dq), tensor(&dk), tensor(&dv));
    let (out, lse) = (tensor(&out), lse.ptr());
    let forward = ForwardCall { problem, half, q, k, v, out, lse, probs: None, seed_and_offset_ptr: 0 };
    let workspace = workspace.ptr();
    let call = BackwardCall {
        problem,
        half,
        q,
        k,
        v,
        out,
        lse,
        dout,
        dq,
        dk,
        dv,
        workspace,
        deterministic,
        seed_and_offset_ptr: 0,
    };
    let shape_of_forward =
        forward_shape.unwrap_or_else(|| signflash_kernels::choose_forward(&forward, engine.gpu()).shape);
    let run = || -> Result<(), Box<dyn Error>> {
        let steps = match backward {
            true => signflash_kernels::backward_with(&call, engine.gpu(), tiles)?,
            false => signflash_kernels::forward_with(&forward, engine.gpu(), shape_of_forward)?,
        };
        // SAFETY: all tensors are buffers of this function, as large as the problem says, alive until the end, where
        // events wait for the stream.
        Ok(unsafe { engine.run(stream, &steps) }?)
    };
    if backward {
        // SAFETY: as above.
        unsafe { engine.forward_on(stream, &forward)? };
    }
    for _ in 0..5 {
        run()?;
    }
    stream.synchronize()?;
    if !backward && std::env::var_os("SIGNFLASH_TUNE_LOG").is_some() {
        for step in signflash_kernels::forward_with(&forward, engine.gpu(), shape_of_forward)? {
            let signflash_kernels::Step::Launch { config, .. } = step else { continue };
            let missing = || unreachable!("it has just run");
            let function = engine.cache().get_or_compile(engine.device(), &config.to_string(), missing)?;
            println!("{config}: {} bytes of local memory\n{}", function.local_bytes(), function.jit_log());
        }
    }
    let mut times = vec![];
    for _ in 0..20 {
        let start = Event::record(stream)?;
        run()?;
        let end = Event::record(stream)?;
        end.synchronize()?;
        times.push(f64::from(end.ms_since(&start)?));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
