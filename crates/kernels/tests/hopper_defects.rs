//! Hopper's forward and the pass that writes probs with every mistake that its instructions know of, one at a time:
//! waits, arrivals, barriers and fences dropped, counts off by one, parities flipped. The interpreter reports each under
//! some schedule, or it is listed here with the reason why nothing can go wrong.

use signflash_core::{Dropout, Problem, Shape, bf16};
use signflash_kernels::{Config, DeviceTensor, ForwardCall, ForwardShape, Gpu, Half, Step, Warpgroups};
use signflash_ptx::{Arg, Global, Kernel, Launch, Rule};

const QUERIES: usize = 200;
const KEYS: usize = 336;
const DIM: usize = 64;
const SCHEDULES: u64 = 4;

/// Small enough to run often: every ring goes round, every block has several tiles.
const SHAPE: Warpgroups = Warpgroups {
    groups: 2,
    drawers: 2,
    step: 64,
    stages: 2,
    flag_stages: 2,
    registers: 160,
    turns: true,
    early: 1,
    out_in_q: false,
};

/// What the mistake's text contains, the file of the instruction, how many such, and why nothing can go wrong.
type NotNeeded = (&'static str, &'static str, usize, &'static str);

const FENCES: &str = "the next covers it; on the barriers of the last completes no copy";

const LANES: &str = "every lane arrives for itself, and the warp meets again before one speaks for it";

const NOT_NEEDED: [&[NotNeeded]; 2] = [
    &[
        ("bar.warp.sync", "flags.rs", 1, LANES),
        ("fence.mbarrier_init", "", 8, FENCES),
        (", 256 dropped", "multiply.rs", 1, "a turn: for speed alone"),
        (
            "wgmma.fence",
            "multiply.rs",
            2,
            "a step's two cover each other but where keys are hidden, here in the last",
        ),
        ("try_wait", "multiply.rs", 1, "it waits twice, to hold the order"),
        ("try_wait", "load.rs", 1, "the first keys' place is free when the queries' is"),
    ],
    &[("bar.warp.sync", "flags.rs", 1, LANES), ("fence.mbarrier_init", "", 6, FENCES)],
];

fn problem() -> Problem {
    let (num_heads, num_heads_k, head_dim) = (4, 2, DIM);
    let shape = Shape { batch: 1, seqlen_q: QUERIES, seqlen_k: KEYS, num_heads, num_heads_k, head_dim };
    Problem::builder(shape).dropout(Dropout::new(0.2, 1, 0).unwrap()).build().unwrap()
}

/// The launches of the forward and of probs, with memory made for them. One block does all tiles.
fn launches(problem: &Problem, shape: Warpgroups) -> (Global, Vec<(Config, Vec<Arg>)>) {
    let mut memory = Global::default();
    let mut tensor = |name: &str, rows: usize, heads: usize| {
        let numbers = (0..rows * heads * DIM).map(|n| bf16::from_f32((n % 7) as f32 / 8.0));
        let bytes: Vec<u8> = numbers.flat_map(|x| x.to_le_bytes()).collect();
        let (row_stride, head_stride) = ((heads * DIM) as u64, DIM as u64);
        let ptr = memory.upload(name, &bytes).0;
        DeviceTensor { ptr, batch_stride: rows as u64 * row_stride, row_stride, head_stride }
    };
    let (q, k) = (tensor("q", QUERIES, 4), tensor("k", KEYS, 2));
    let (v, out) = (tensor("v", KEYS, 2), tensor("out", QUERIES, 4));
    let lse = memory.reserve("lse", 4 * 4 * QUERIES).0;
    let (row_stride, head_stride) = (KEYS as u64, (QUERIES * KEYS) as u64);
    let ptr = memory.reserve("probs", 2 * 4 * QUERIES * KEYS).0;
    let probs = Some(DeviceTensor { ptr, batch_stride: 4 * head_stride, row_stride, head_stride });
    let (half, seed_and_offset_ptr) = (Half::Bf16, 0);
    let call = ForwardCall { problem, half, q, k, v, out, lse, probs, seed_and_offset_ptr };
    let gpu = Gpu { sm_count: 1, ..Gpu::HOPPER };
    let steps = signflash_kernels::forward_with(&call, gpu, ForwardShape::Hopper(shape)).unwrap();
    let launch = |step| match step {
        Step::Launch { config, grid: 1, args } => (config, args),
        other => panic!("a launch of one block, not {other:?}"),
    };
    (memory, steps.into_iter().map(launch).collect())
}

/// The rule that the kernels break under a schedule, one of them changed.
fn run(
    problem: &Problem,
    shape: Warpgroups,
    which: usize,
    change: impl Fn(Kernel) -> Kernel,
    seed: u64,
) -> Option<(Rule, String)> {
    let (mut memory, launches) = launches(problem, shape);
    launches.into_iter().enumerate().find_map(|(i, (config, args))| {
        let kernel = if i == which { change(config.kernel()) } else { config.kernel() };
        let trap = kernel.interpret(&Launch { grid: 1, args: &args, seed }, &mut memory).err()?;
        Some((trap.fault.rule, trap.to_string()))
    })
}

#[test]
fn the_kernels_are_right_as_they_are() {
    let kernels = launches(&problem(), SHAPE).1;
    assert!(matches!(kernels[..], [(Config::HopperForward(..), _), (Config::HopperProbs(..), _)]));
    let others = [
        Warpgroups { out_in_q: true, turns: false, early: 0, drawers: 1, ..SHAPE },
        Warpgroups { groups: 3, drawers: 1, registers: 128, flag_stages: 3, ..SHAPE },
    ];
    for (shape, seed) in
        [SHAPE].into_iter().chain(others).flat_map(|shape| [0, 1, 2].map(|seed| (shape, seed)))
    {
        assert_eq!(run(&problem(), shape, 0, |kernel| kernel, seed), None, "{shape:?}");
    }
}

/// Mistakes in one of the kernels that nobody notices, but for those that are listed.
fn unnoticed(which: usize) -> Vec<String> {
    let problem = problem();
    let mutations = || launches(&problem, SHAPE).1.swap_remove(which).0.kernel().mutations();
    let count = mutations().len();
    assert!(count > 40, "only {count} mistakes");
    let seeded = |number: usize| {
        let mutation = mutations().swap_remove(number).to_string();
        let change = |kernel: Kernel| {
            let mutation = kernel.mutations().swap_remove(number);
            kernel.mutate(mutation)
        };
        let caught = (0..SCHEDULES).find_map(|seed| run(&problem, SHAPE, which, change, seed));
        caught.is_none().then_some(mutation)
    };
    let mut unnoticed: Vec<String> = (0..count).filter_map(seeded).collect();
    for (text, file, count, why) in NOT_NEEDED[which] {
        let (listed, others): (Vec<String>, _) =
            unnoticed.into_iter().partition(|mistake| mistake.contains(text) && mistake.contains(file));
        assert_eq!(listed.len(), *count, "{text} in {file} ({why}): {listed:#?}");
        unnoticed = others;
    }
    unnoticed
}

#[test]
fn every_mistake_in_the_forward_that_matters_is_noticed() {
    assert_eq!(unnoticed(0), Vec::<String>::new());
}

#[test]
fn every_mistake_in_probs_that_matters_is_noticed() {
    assert_eq!(unnoticed(1), Vec::<String>::new());
}
