//! Times kernels in other forms than the tables', for `crates/kernels/src/tables`. 16384 tokens and
//! heads * head_dim = 2048 in all, bf16, median of 20.
//!
//! A line of standard input is a trial: `forward 128 2048 drop causal w4 r2 n64 s2 b2 reg`: pass, head_dim (`192v128`: of q
//! and of v), seqlen, flags (`l1024` with `causal`: a window of so many keys before; `softcap=30`, `alibi`; `padding`: a mask
//! that hides the second half of the keys), tiles as their name spells them; `forward 128 2048 drop g2 d1 n128 s2 f3 r208 e4 noturns outq`: the same of
//! Hopper's kernel, `backward 128 2048 drop k128 n64 s2 p3 f2 r232` of its backward's. Without tiles it is the
//! tables' choice, of the portable kernels with `portable`.
//!
//! `tune search 64,128` tries many forms of Hopper's forward instead, causal and not, with dropout and without, and
//! prints the best of each as rows of the table.
use signflash_core::{Dropout, Problem, Shape, Slopes};
use signflash_cuda::{CudaEngine, Device, DeviceBuffer, Event};
use signflash_kernels::{
    BackwardCall, BackwardChoice, BandKind, DeviceScoreTensor, DeviceScores, DeviceTensor, ForwardCall,
    ForwardChoice, Half, HopperForm, HopperKeysForm, Kernels, Order, PortableForm, Task,
};
use std::error::Error;
use std::io::BufRead;

const TOKENS: usize = 16384;
const WIDTH: usize = 2048;
const WARM_UP: usize = 3;
const REPS: usize = 20;
/// Lengths that a searched form must be good at.
const SEARCH_LENGTHS: [usize; 2] = [2048, 8192];

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let bench = Bench::new()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [command, head_dims] = &words[..]
        && command == "search"
    {
        let head_dims = head_dims.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        return head_dims.into_iter().try_for_each(|head_dim| search(&bench, head_dim));
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match Trial::parse(&line).and_then(|trial| bench.time(&trial)) {
            Ok((ms, tflops)) => println!("{line:60} {ms:8.3} ms {tflops:7.1} TFLOP/s"),
            Err(error) => println!("{line:60} {error}"),
        }
    }
    Ok(())
}

/// What is timed.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    backward: bool,
    deterministic: bool,
    head_dim: usize,
    head_dim_v: usize,
    seqlen: usize,
    causal: bool,
    /// Keys before the one that a query faces.
    left: Option<usize>,
    dropout: bool,
    /// What becomes of scores.
    softcap: Option<f64>,
    alibi: bool,
    padding: bool,
    /// Of the forward's kernel, or of the backward's pass over keys.
    tiles: Option<PortableForm>,
    hopper: Option<HopperForm>,
    hopper_keys: Option<HopperKeysForm>,
    /// The table's tiles of the portable kernel.
    portable: bool,
}

impl Trial {
    fn parse(line: &str) -> Result<Trial, Failure> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |word: &str| words.contains(&word);
        let number = |letter: char| words.iter().find_map(|w| w.strip_prefix(letter)?.parse::<u32>().ok());
        let or = |letter, default| number(letter).unwrap_or(default);
        let tiles = number('w').map(|warps| PortableForm {
            warps,
            row_tiles: or('r', 1),
            split: or('c', 1),
            step: or('n', 64),
            slots: or('s', 2),
            blocks_per_sm: or('b', 1),
            late_dq: has("late"),
            in_registers: has("reg"),
        });
        let hopper = number('g').map(|warpgroups| HopperForm {
            warpgroups,
            drawers: or('d', 0),
            step: or('n', 128),
            stages: or('s', 2),
            flag_stages: or('f', 0),
            registers: or('r', 216),
            turns: !has("noturns"),
            early: or('e', 0),
            out_in_q: has("outq"),
        });
        let hopper_keys = number('p').map(|ds_stages| HopperKeysForm {
            keys: or('k', 128),
            key_stages: [or('x', 1), or('y', 1)],
            step: or('n', 64),
            stages: or('s', 2),
            ds_stages,
            flag_stages: or('f', 0),
            registers: or('r', 232),
            ordered: has("det"),
            persistent: has("tiles"),
            begins_sums: has("begins"),
        });
        let [pass, head_dim, seqlen, ..] = words[..] else {
            return Err("a trial is PASS HEAD_DIM SEQLEN".into());
        };
        let (head_dim, head_dim_v) = head_dim.split_once('v').unwrap_or((head_dim, head_dim));
        Ok(Trial {
            backward: pass == "backward",
            deterministic: has("det"),
            head_dim: head_dim.parse()?,
            head_dim_v: head_dim_v.parse()?,
            seqlen: seqlen.parse()?,
            causal: has("causal"),
            left: number('l').map(|left| left as usize),
            dropout: has("drop"),
            softcap: words.iter().find_map(|w| w.strip_prefix("softcap=")?.parse().ok()),
            alibi: has("alibi"),
            padding: has("padding"),
            tiles,
            hopper,
            hopper_keys,
            portable: has("portable"),
        })
    }

    /// So many that no tensor is wider than [`WIDTH`].
    fn heads(&self) -> usize {
        WIDTH / self.head_dim.max(self.head_dim_v)
    }

    fn problem(&self) -> Result<Problem, Failure> {
        let shape = Shape::new(TOKENS / self.seqlen, self.seqlen, self.seqlen)
            .heads(self.heads(), self.heads())
            .head_dim(self.head_dim)
            .head_dim_v(self.head_dim_v);
        let problem = Problem::builder(shape).window(self.left, None).causal(self.causal);
        let dropout = Dropout::new(if self.dropout { 0.1 } else { 0.0 }, 42, 0)?;
        let problem = problem.softcap(self.softcap).alibi(self.alibi.then_some(Slopes::PerHead));
        let mask = [TOKENS / self.seqlen, 1, 1, self.seqlen];
        let problem = if self.padding { problem.mask(mask) } else { problem };
        Ok(problem.dropout(dropout).build()?)
    }

    fn flops(&self) -> f64 {
        // Products over columns of q and k, and over those of v; a backward's are s, dq and dk, and dp and dv.
        let [of_q, of_v] = if self.backward { [3, 2] } else { [1, 1] };
        let columns = self.heads() * (of_q * self.head_dim + of_v * self.head_dim_v);
        let all = 2.0 * (TOKENS * self.seqlen * columns) as f64;
        let causal = all / if self.causal { 2.0 } else { 1.0 };
        // Of the triangle, what is further left than the window is missing: a smaller one. (The whole of another
        // window is not asked for.)
        let hidden = self.left.map_or(0.0, |left| 1.0 - (left + 1) as f64 / self.seqlen as f64);
        causal * (1.0 - hidden.max(0.0).powi(2))
    }
}

/// The GPU, and tensors for any trial.
struct Bench {
    engine: CudaEngine,
    inputs: [DeviceBuffer; 4],
    outputs: [DeviceBuffer; 4],
    lse: DeviceBuffer,
    workspace: DeviceBuffer,
    /// As many slopes as there can be heads.
    slopes: DeviceBuffer,
}

impl Bench {
    fn new() -> Result<Bench, Failure> {
        let engine = CudaEngine::new(&Device::open(0)?)?;
        let stream = engine.stream();
        let mut state = 1u32;
        let mut normal = || -> Result<DeviceBuffer, Failure> {
            let mut one = || {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                f64::from(state >> 8) / f64::from(1 << 24)
            };
            // A million numbers, again and again: the host would take longer than the GPU otherwise.
            let data: Vec<u8> = (0..1_000_003)
                .map(|_| ((one() + one() + one() + one() - 2.0) * 1.73) as f32)
                .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect();
            let data: Vec<u8> = data.iter().copied().cycle().take(2 * TOKENS * WIDTH).collect();
            Ok(DeviceBuffer::from_host(stream, &data)?)
        };
        let inputs = [normal()?, normal()?, normal()?, normal()?];
        let new = |bytes| DeviceBuffer::zeroed(stream, bytes);
        let tensor = || new(2 * TOKENS * WIDTH);
        let outputs = [tensor()?, tensor()?, tensor()?, tensor()?];
        // As many rows as there can be: head_dim 8. The workspace is dq in f32 and statistics of rows.
        let lse = new(4 * TOKENS * WIDTH / 8)?;
        let workspace = new(8 * TOKENS * WIDTH)?;
        let slopes = (0..WIDTH / 8).map(|head| (-0.5 * (head % 16 + 1) as f32).exp2());
        let slopes: Vec<u8> = slopes.flat_map(f32::to_le_bytes).collect();
        let slopes = DeviceBuffer::from_host(stream, &slopes)?;
        Ok(Bench { engine, inputs, outputs, lse, workspace, slopes })
    }

    /// Milliseconds and TFLOP/s.
    fn time(&self, trial: &Trial) -> Result<(f64, f64), Failure> {
        let problem = trial.problem()?;
        let seen = |token: usize| u8::from(token % trial.seqlen < trial.seqlen / 2);
        let mask: Vec<u8> = (0..TOKENS).map(seen).collect();
        let mask = DeviceBuffer::from_host(self.engine.stream(), &mask)?;
        let tasks = self.tasks(trial, &problem, &mask)?;
        let stream = self.engine.stream();
        // SAFETY: all tensors are buffers of this bench, as large as any problem of so many tokens and columns needs,
        // and alive; `time` waits for the stream before it returns.
        let run = || unsafe { self.engine.run(stream, &tasks) };
        for _ in 0..WARM_UP {
            run()?;
        }
        stream.synchronize()?;
        let mut times = vec![];
        for _ in 0..REPS {
            let start = Event::record(stream)?;
            run()?;
            let end = Event::record(stream)?;
            end.synchronize()?;
            times.push(f64::from(end.ms_since(&start)?));
        }
        times.sort_by(f64::total_cmp);
        let ms = times[REPS / 2];
        Ok((ms, trial.flops() / ms / 1e9))
    }

    /// What is run; for a backward the forward has been run before.
    fn tasks(&self, trial: &Trial, problem: &Problem, mask: &DeviceBuffer) -> Result<Vec<Task>, Failure> {
        let tensor =
            |buffer: &DeviceBuffer, sizes| DeviceTensor::dense(buffer.ptr(), sizes, Order::RowsFirst);
        let (of_q, of_v) = (problem.shape().q(), problem.shape().out());
        let [q, k, v, dout] = &self.inputs;
        let [q, k, v, dout] = [tensor(q, of_q), tensor(k, of_q), tensor(v, of_v), tensor(dout, of_v)];
        let [out, dq, dk, dv] = &self.outputs;
        let [out, dq, dk, dv] = [tensor(out, of_v), tensor(dq, of_q), tensor(dk, of_q), tensor(dv, of_v)];
        let gpu = self.engine.gpu();
        let kernels = if trial.portable { Kernels::Portable } else { Kernels::Best };
        let mask = DeviceScoreTensor::of(mask.ptr(), [trial.seqlen, 0, 0, 1]);
        let scores = DeviceScores {
            alibi_slopes: if trial.alibi { self.slopes.ptr() } else { 0 },
            mask: trial.padding.then_some(mask),
            ..DeviceScores::default()
        };
        let forward = ForwardCall::new(problem, Half::Bf16, [q, k, v], out, self.lse.ptr())
            .with_scores(scores)
            .with_workspace(self.workspace.ptr());
        if !trial.backward {
            let choice = ForwardChoice::of(&forward, gpu, kernels);
            let choice = match (trial.hopper, trial.tiles) {
                (Some(form), _) => choice.with_hopper_form(form).map_err(|reason| reason.to_string())?,
                (None, Some(form)) => choice.with_portable_form(form),
                (None, None) => choice,
            };
            return Ok(choice.tasks()?);
        }
        // SAFETY: as in `time`, which waits for the stream later.
        unsafe { self.engine.forward_on(self.engine.stream(), &forward)? };
        let call = BackwardCall::of(&forward, dout, [dq, dk, dv], self.workspace.ptr())
            .with_deterministic(trial.deterministic);
        let choice = BackwardChoice::of(&call, gpu, kernels);
        let choice = match (trial.hopper_keys, trial.tiles) {
            (Some(form), _) => choice.with_hopper_form(form).map_err(|reason| reason.to_string())?,
            (None, Some(form)) => choice.with_portable_form(form)?,
            (None, None) => choice,
        };
        Ok(choice.tasks()?)
    }
}

/// Forms worth a try at a head_dim.
fn candidates(head_dim: u32, dropout: bool) -> Vec<HopperForm> {
    // [warpgroups that multiply, that draw, registers]
    let roles: &[[u32; 3]] = match (head_dim, dropout) {
        (..=64, false) => &[[3, 0, 160], [2, 0, 232]],
        (..=64, true) => &[[2, 2, 168], [2, 2, 160], [2, 1, 208]],
        (_, false) => &[[2, 0, 232]],
        (_, true) => &[[2, 1, 208], [2, 1, 200], [2, 1, 216]],
    };
    // [keys a step, stages, stages of flags]
    let rings: &[[u32; 3]] = match (head_dim, dropout) {
        (..=64, false) => &[[128, 2, 0], [128, 3, 0], [192, 2, 0]],
        (..=64, true) => &[[128, 3, 4], [128, 4, 4], [96, 4, 4]],
        (65..=128, false) => &[[128, 2, 0], [144, 2, 0], [160, 2, 0], [176, 2, 0]],
        (65..=128, true) => &[[128, 2, 2], [128, 2, 3], [96, 3, 3]],
        (129..=192, false) => &[[80, 2, 0], [96, 2, 0], [112, 2, 0]],
        (_, false) => &[[64, 2, 0], [80, 2, 0]],
        (_, true) => &[[32, 3, 4], [64, 2, 3]],
    };
    let mut all = vec![];
    for &[warpgroups, drawers, registers] in roles {
        for &[step, stages, flag_stages] in rings {
            for early in [0, step / 32, step / 16].into_iter().filter(|early| *early != 1) {
                for (turns, out_in_q) in [(true, false), (true, true), (false, false), (false, true)] {
                    all.push(HopperForm {
                        warpgroups,
                        drawers,
                        step,
                        stages,
                        flag_stages,
                        registers,
                        turns,
                        early,
                        out_in_q,
                    });
                }
            }
        }
    }
    all
}

/// The best forms of a head_dim, as rows of the table.
fn search(bench: &Bench, head_dim: u32) -> Result<(), Failure> {
    for (dropout, causal) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut found: Vec<(f64, HopperForm)> = vec![];
        for form in candidates(head_dim, dropout) {
            let rate = |seqlen: usize| {
                let (head_dim, hopper) = (head_dim as usize, Some(form));
                bench.time(&Trial {
                    head_dim,
                    head_dim_v: head_dim,
                    seqlen,
                    causal,
                    dropout,
                    hopper,
                    ..Trial::default()
                })
            };
            // What does not fit or does not compile is no candidate.
            let rates: Result<Vec<_>, _> = SEARCH_LENGTHS.into_iter().map(rate).collect();
            if let Ok(rates) = rates {
                let mean = rates.iter().map(|(_, tflops)| tflops.ln()).sum::<f64>() / rates.len() as f64;
                eprintln!("{head_dim} {dropout} {causal} {form}: {rates:.1?}");
                found.push((mean.exp(), form));
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (tflops, form) in found.iter().take(3) {
            println!(
                "// head_dim {head_dim}, dropout {dropout}, causal {causal}: {tflops:.1} TFLOP/s, {form}"
            );
            println!("    {}", row(head_dim, causal, dropout, form));
        }
    }
    Ok(())
}

/// As `crates/kernels/src/tables/hopper.rs` spells it.
fn row(head_dim: u32, causal: bool, dropout: bool, form: &HopperForm) -> String {
    let HopperForm { warpgroups, drawers, step, stages, flag_stages, registers, .. } = form;
    let band = if causal { BandKind::Right } else { BandKind::Full };
    let mut text =
        format!("row({head_dim}, [{warpgroups}, {step}, {stages}, {registers}]).band(BandKind::{band:?})");
    let drop = format!(".drop({drawers}, {flag_stages})");
    let early = format!(".early({})", form.early);
    let more = [
        (dropout, drop.as_str()),
        (form.turns, ".turns()"),
        (form.early > 0, &early),
        (form.out_in_q, ".out_in_q()"),
    ];
    more.into_iter().filter(|(on, _)| *on).for_each(|(_, method)| text += method);
    text + ","
}
