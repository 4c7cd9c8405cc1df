//! Hopper's forward, the pass that writes probs and the backward's pass over keys with every mistake that their
//! instructions know of, one at a time: waits, arrivals, barriers and fences dropped, counts off by one, parities
//! flipped. The interpreter reports each under some schedule, or it is listed here with the reason why nothing can go
//! wrong. `cargo test` alone tries one mistake in eight; with `SIGNFLASH_TEST=full`, as in `.ci/run`, each is tried.

use signflash_core::{Dropout, Problem, Shape, bf16};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, DeviceTensor, ForwardCall, ForwardChoice, ForwardKernel, Gpu, Half,
    HopperForm, HopperKeysForm, Kernels, KeysKernel, Order, Task, backward_workspace_bytes,
};
use signflash_ptx::{Arg, Global, Kernel, Launch, Rule};

const QUERIES: usize = 200;
const SCHEDULES: u64 = 4;

/// Small enough to run often: every ring goes round, every block has several tiles.
const FORM: HopperForm = HopperForm {
    warpgroups: 2,
    drawers: 2,
    step: 64,
    stages: 2,
    flag_stages: 2,
    registers: 160,
    turns: true,
    early: 1,
    out_in_q: false,
};

/// The backward's: in three stages of ds the first is free again before the last step.
const STEPS: HopperKeysForm = HopperKeysForm {
    keys: 128,
    step: 64,
    stages: 2,
    ds_stages: 2,
    flag_stages: 2,
    registers: 232,
    ordered: false,
};

/// Of warpgroups that share keys.
const SHARED: HopperKeysForm = HopperKeysForm { keys: 64, ds_stages: 1, registers: 240, ..STEPS };

/// A kernel, and what is launched before and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward(HopperForm),
    Probs,
    Backward(HopperKeysForm),
}

/// What the mistake's text contains, the file of the instruction, how many such, and why nothing can go wrong.
type NotNeeded = (&'static str, &'static str, usize, &'static str);

const FENCES: &str = "the next covers it; on the barriers of the last completes no copy";

const LANES: &str = "every lane arrives for itself, and the warp meets again before one speaks for it";

const ONCE: &str = "k and v come once: nobody waits for their place";

const NOT_NEEDED: [&[NotNeeded]; 4] = [
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
    &[
        ("of an arrival", "mbarrier.rs", 2, ONCE),
        ("try_wait", "serve.rs", 1, ONCE),
        ("mbarrier.arrive", "mbarrier.rs", 1, ONCE),
        ("bar.warp.sync", "multiply.rs", 3, LANES),
        ("bar.warp.sync", "serve.rs", 2, "lane 0 has waited itself"),
        ("fence.mbarrier_init", "", 9, FENCES),
        ("wgmma.fence", "multiply.rs", 1, "a step's cover each other"),
        ("wgmma.fence", "dq.rs", 2, "a step's other products come between"),
        ("wgmma.commit_group", "multiply.rs", 1, "the next takes it along"),
        ("wgmma.wait_group.sync.aligned 1", "multiply.rs", 2, "the next waits for all"),
        ("mbarrier.arrive", "dq.rs", 1, "the last ds: its place is not filled again"),
        ("cp.async.bulk.commit_group", "results.rs", 1, "the next takes it along"),
    ],
    &[
        ("of an arrival", "mbarrier.rs", 2, ONCE),
        ("try_wait", "serve.rs", 1, ONCE),
        ("mbarrier.arrive", "mbarrier.rs", 2, ONCE),
        ("bar.warp.sync", "shared.rs", 6, LANES),
        ("bar.warp.sync", "serve.rs", 2, "lane 0 has waited itself"),
        ("fence.mbarrier_init", "", 10, FENCES),
        ("wgmma.fence", "shared.rs", 5, "a step's cover each other"),
        ("mbarrier.arrive", "shared.rs", 1, "the last ds: its place is not filled again"),
    ],
];

impl Pass {
    /// Which of the launches it is.
    fn position(self) -> usize {
        if matches!(self, Pass::Forward(_)) { 0 } else { 1 }
    }

    /// Several tiles for a block of the forward; one tile of keys, for the queries of two heads, for one of the
    /// backward.
    fn problem(self) -> Problem {
        let (num_heads, num_heads_k, seqlen_k) =
            if matches!(self, Pass::Backward(_)) { (2, 1, 100) } else { (4, 2, 336) };
        let head_dim = match self {
            Pass::Backward(form) if form.shares_keys() => 192,
            _ => 64,
        };
        let shape = Shape::new(1, QUERIES, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
        Problem::builder(shape).dropout(Dropout::new(0.2, 1, 0).unwrap()).build().unwrap()
    }

    fn not_needed(self) -> &'static [NotNeeded] {
        match self {
            Pass::Forward(_) => NOT_NEEDED[0],
            Pass::Probs => NOT_NEEDED[1],
            Pass::Backward(form) if form.shares_keys() => NOT_NEEDED[3],
            Pass::Backward(_) => NOT_NEEDED[2],
        }
    }
}

/// A launch of some blocks.
struct Launched {
    config: Config,
    grid: u32,
    args: Vec<Arg>,
}

/// The launches of a pass, with memory made for them. One block of the forward does all tiles.
fn launches(pass: Pass) -> (Global, Vec<Launched>) {
    let (problem, mut memory) = (&pass.problem(), Global::default());
    let shape = *problem.shape();
    let mut tensor = |name: &str, sizes: [usize; 4]| {
        let numbers = (0..sizes.iter().product()).map(|n: usize| bf16::from_f32((n % 7) as f32 / 8.0));
        let bytes: Vec<u8> = numbers.flat_map(|x| x.to_le_bytes()).collect();
        DeviceTensor::dense(memory.upload(name, &bytes).0, sizes, Order::RowsFirst)
    };
    let inputs = [tensor("q", shape.q()), tensor("k", shape.k()), tensor("v", shape.v())];
    let [out, dout, dq] = ["out", "dout", "dq"].map(|name| tensor(name, shape.q()));
    let [dk, dv] = ["dk", "dv"].map(|name| tensor(name, shape.k()));
    let lse = memory.upload("lse", &vec![0; 4 * shape.lse_len()]).0;
    let gpu = Gpu { sm_count: 1, ..Gpu::HOPPER };
    let forward = ForwardCall::new(problem, Half::Bf16, inputs, out, lse);
    let tasks = match pass {
        Pass::Backward(form) => {
            let space = backward_workspace_bytes(problem, gpu, false) as usize;
            let workspace = memory.reserve("workspace", space).0;
            let call = BackwardCall::of(&forward, dout, [dq, dk, dv], workspace);
            let choice = BackwardChoice::of(&call, gpu, Kernels::Best);
            choice.with_hopper_form(form).unwrap().tasks()
        }
        _ => {
            let ptr = memory.reserve("probs", 2 * shape.num_heads * shape.seqlen_q * shape.seqlen_k).0;
            let probs = DeviceTensor::dense(ptr, shape.probs(), Order::HeadsFirst);
            let call = forward.with_probs(Some(probs));
            let form = if let Pass::Forward(form) = pass { form } else { FORM };
            ForwardChoice::of(&call, gpu, Kernels::Best).with_hopper_form(form).unwrap().tasks()
        }
    };
    let launched = tasks.unwrap().into_iter().filter_map(|task| match task {
        Task::Launch { config, grid, args } => Some(Launched { config, grid, args }),
        Task::Zero { ptr, bytes } => {
            memory.zero(ptr, bytes as usize);
            None
        }
    });
    let launched = launched.collect();
    (memory, launched)
}

/// The rule that the kernels break under a schedule, that of the pass changed.
fn run(pass: Pass, change: impl Fn(Kernel) -> Kernel, seed: u64) -> Option<(Rule, String)> {
    let (mut memory, launches) = launches(pass);
    launches.into_iter().enumerate().find_map(|(i, Launched { config, grid, args })| {
        let kernel = if i == pass.position() { change(config.kernel()) } else { config.kernel() };
        let trap = kernel.interpret(&Launch { grid, args: &args, seed }, &mut memory).err()?;
        Some((trap.fault.rule, trap.to_string()))
    })
}

#[test]
fn the_kernels_are_right_as_they_are() {
    let kernel = |pass: Pass| launches(pass).1.swap_remove(pass.position()).config;
    assert!(matches!(kernel(Pass::Forward(FORM)), Config::Forward(ForwardKernel::Hopper(..))));
    assert!(matches!(kernel(Pass::Probs), Config::Probs(ForwardKernel::Hopper(..))));
    assert!(matches!(kernel(Pass::Backward(STEPS)), Config::Keys(KeysKernel::Hopper(..))));
    let forwards = [
        FORM,
        HopperForm { out_in_q: true, turns: false, early: 0, drawers: 1, ..FORM },
        HopperForm { warpgroups: 3, drawers: 1, registers: 128, flag_stages: 3, ..FORM },
    ];
    let backwards = [
        STEPS,
        SHARED,
        HopperKeysForm { step: 128, ..STEPS },
        HopperKeysForm { stages: 3, ds_stages: 3, flag_stages: 1, ..STEPS },
    ];
    let passes = forwards.map(Pass::Forward).into_iter().chain(backwards.map(Pass::Backward));
    for (pass, seed) in passes.flat_map(|pass| [0, 1, 2].map(|seed| (pass, seed))) {
        assert_eq!(run(pass, |kernel| kernel, seed), None, "{pass:?}");
    }
}

/// Of how many mistakes one is tried: with `SIGNFLASH_TEST=full`, as in `.ci/run`, each.
fn one_in() -> usize {
    if matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all")) { 1 } else { 8 }
}

/// Mistakes in a kernel that nobody notices, but for those that are listed.
fn unnoticed(pass: Pass) -> Vec<String> {
    let mutations = || launches(pass).1.swap_remove(pass.position()).config.kernel().mutations();
    let count = mutations().len();
    assert!(count > 40, "only {count} mistakes");
    let seeded = |number: usize| {
        let mutation = mutations().swap_remove(number).to_string();
        let change = |kernel: Kernel| {
            let mutation = kernel.mutations().swap_remove(number);
            kernel.mutate(mutation)
        };
        let caught = (0..SCHEDULES).find_map(|seed| run(pass, change, seed));
        caught.is_none().then_some(mutation)
    };
    let mut unnoticed: Vec<String> = (0..count).step_by(one_in()).filter_map(seeded).collect();
    for (text, file, count, why) in pass.not_needed() {
        let (listed, others): (Vec<String>, _) =
            unnoticed.into_iter().partition(|mistake| mistake.contains(text) && mistake.contains(file));
        let as_listed = if one_in() == 1 { listed.len() == *count } else { listed.len() <= *count };
        assert!(as_listed, "{text} in {file} ({why}), {count} of them: {listed:#?}");
        unnoticed = others;
    }
    unnoticed
}

#[test]
fn every_mistake_in_the_forward_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::Forward(FORM)), Vec::<String>::new());
}

#[test]
fn every_mistake_in_probs_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::Probs), Vec::<String>::new());
}

#[test]
fn every_mistake_in_the_backward_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::Backward(STEPS)), Vec::<String>::new());
}

#[test]
fn every_mistake_where_warpgroups_share_keys_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::Backward(SHARED)), Vec::<String>::new());
}
