//! Hopper's forward with every mistake that its instructions know of, one at a time: waits, arrivals, barriers and
//! fences dropped, counts off by one, parities flipped. The interpreter reports each under some schedule, or it is
//! listed here with the reason why nothing can go wrong.

use signflash_core::{Dropout, Problem, Shape, bf16};
use signflash_kernels::{Config, DeviceTensor, ForwardCall, ForwardShape, Gpu, Half, Step, Warpgroups};
use signflash_ptx::{Arg, Global, Kernel, Launch, Rule};

const QUERIES: usize = 200;
const KEYS: usize = 330;
const DIM: usize = 64;
const SCHEDULES: u64 = 4;

/// Small enough to run often: every ring goes round, every block has several tiles.
const SHAPE: Warpgroups = Warpgroups {
    groups: 2,
    loaders: 2,
    step: 64,
    stages: 2,
    flag_stages: 2,
    registers: 200,
    turns: true,
    early: 1,
    woven: false,
    out_in_q: false,
};

/// What the mistake's text contains, the file of the instruction, how many such, and why nothing can go wrong.
const NOT_NEEDED: [(&str, &str, usize, &str); 5] = [
    ("fence.mbarrier_init", "", 8, "the next covers it; on the barriers of the last completes no copy"),
    (", 256 dropped", "multiply.rs", 1, "a turn: for speed alone"),
    (
        "wgmma.fence",
        "multiply.rs",
        2,
        "a step's two cover each other but where keys are hidden, here in the last",
    ),
    ("try_wait", "multiply.rs", 1, "it waits twice, to hold the order"),
    ("try_wait", "load.rs", 1, "the first keys' place is free when the queries' is"),
];

fn problem() -> Problem {
    let (num_heads, num_heads_k, head_dim) = (4, 2, DIM);
    let shape = Shape { batch: 1, seqlen_q: QUERIES, seqlen_k: KEYS, num_heads, num_heads_k, head_dim };
    Problem::builder(shape).dropout(Dropout::new(0.2, 1, 0).unwrap()).build().unwrap()
}

/// The launch, with memory made for it. One block does all tiles.
fn launch(problem: &Problem, shape: Warpgroups) -> (Global, Config, Vec<Arg>) {
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
    let (half, seed_and_offset_ptr) = (Half::Bf16, 0);
    let call = ForwardCall { problem, half, q, k, v, out, lse, probs: None, seed_and_offset_ptr };
    let gpu = Gpu { sm_count: 1, ..Gpu::HOPPER };
    let steps = signflash_kernels::forward_with(&call, gpu, ForwardShape::Hopper(shape)).unwrap();
    let Some(Step::Launch { config, grid: 1, args }) = steps.into_iter().next() else { panic!("one block") };
    (memory, config, args)
}

/// The rule that a changed kernel breaks under a schedule.
fn run(
    problem: &Problem,
    shape: Warpgroups,
    change: impl Fn(Kernel) -> Kernel,
    seed: u64,
) -> Option<(Rule, String)> {
    let (mut memory, config, args) = launch(problem, shape);
    let trap =
        change(config.kernel()).interpret(&Launch { grid: 1, args: &args, seed }, &mut memory).err()?;
    Some((trap.fault.rule, trap.to_string()))
}

#[test]
fn the_forward_is_right_as_it_is() {
    let others = [
        Warpgroups { out_in_q: true, turns: false, early: 0, loaders: 1, ..SHAPE },
        Warpgroups { groups: 3, loaders: 1, registers: 152, flag_stages: 3, ..SHAPE },
        Warpgroups { woven: true, turns: false, early: 0, ..SHAPE },
    ];
    for (shape, seed) in
        [SHAPE].into_iter().chain(others).flat_map(|shape| [0, 1, 2].map(|seed| (shape, seed)))
    {
        assert_eq!(run(&problem(), shape, |kernel| kernel, seed), None, "{shape:?}");
    }
}

#[test]
fn every_mistake_that_matters_is_noticed() {
    let problem = problem();
    let count = launch(&problem, SHAPE).1.kernel().mutations().len();
    assert!(count > 60, "only {count} mistakes");
    let seeded = |which: usize| {
        let mutation = launch(&problem, SHAPE).1.kernel().mutations().swap_remove(which).to_string();
        let change = |kernel: Kernel| {
            let mutation = kernel.mutations().swap_remove(which);
            kernel.mutate(mutation)
        };
        let caught = (0..SCHEDULES).find_map(|seed| run(&problem, SHAPE, change, seed));
        caught.is_none().then_some(mutation)
    };
    let mut unnoticed: Vec<String> = (0..count).filter_map(seeded).collect();
    for (text, file, count, why) in NOT_NEEDED {
        let (listed, others) =
            unnoticed.into_iter().partition(|mistake| mistake.contains(text) && mistake.contains(file));
        let listed: Vec<String> = listed;
        assert_eq!(listed.len(), count, "{text} in {file} ({why}): {listed:#?}");
        unnoticed = others;
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}
