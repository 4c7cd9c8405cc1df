//! Hopper's forward, the pass that writes probs and the backward's pass over keys with every mistake that their
//! instructions know of, one at a time: waits, arrivals, barriers and fences dropped, counts off by one, parities
//! flipped. The interpreter reports each under some schedule, or it is listed here with the reason why nothing can go
//! wrong, or why the interpreter cannot see it. `cargo test` alone tries one mistake in eight, `SIGNFLASH_TEST=full`, as in `.ci/run`, one
//! in two; of packed sequences and of additions in one order in a window it is one in 32, one in eight. With
//! `SIGNFLASH_TEST=all` each is tried.

#[path = "hopper_defects/harmless.rs"]
mod harmless;

use harmless::NotNeeded;
use signflash_core::{Dropout, Problem, Shape, bf16};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, DeviceTensor, ForwardCall, ForwardChoice, ForwardKernel, Gpu, Half,
    HopperForm, HopperKeysForm, Kernels, KeysKernel, Order, Task, backward_workspace_bytes,
    forward_workspace_bytes,
};
use signflash_ptx::{Arg, Global, Kernel, Launch, Pointer, Rule};

const QUERIES: usize = 200;
const SCHEDULES: u64 = 16;

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
    key_stages: [1; 2],
    step: 64,
    stages: 2,
    ds_stages: 2,
    flag_stages: 2,
    registers: 232,
    ordered: false,
    persistent: false,
    begins_sums: false,
};

/// Of warpgroups that share keys.
const SHARED: HopperKeysForm = HopperKeysForm { keys: 64, ds_stages: 1, registers: 240, ..STEPS };

/// Additions in one order, as many queries a step as the table has: there is a flag for each.
const ORDERED: HopperKeysForm = HopperKeysForm { step: 128, ordered: true, ..STEPS };

/// Blocks that take several tiles: k comes while the one before is still read, v when it is not.
const TILES: HopperKeysForm =
    HopperKeysForm { key_stages: [2, 1], registers: 224, persistent: true, begins_sums: true, ..STEPS };

/// Where packed sequences begin, of queries and of keys: one ends inside of a tile, one has no keys, and for the backward
/// each has one tile of keys.
const CU_SEQLENS: [[u32; 5]; 2] = [[0, 130, 135, 140, 200], [0, 70, 100, 100, 136]];

/// A kernel, and what is launched before and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward(HopperForm),
    Probs,
    Backward(HopperKeysForm),
    /// The forward of packed sequences.
    PackedForward,
    /// Their backward.
    PackedBackward,
    /// A deterministic backward in a window, in which tiles of keys take turns.
    OrderedWindow,
    /// Blocks that take several tiles, and begin sums of dq for each other, in a window.
    Tiles,
}

impl Pass {
    /// Whether this is the launch of the pass.
    fn is(self, config: &Config) -> bool {
        match self {
            Pass::Forward(_) | Pass::PackedForward => matches!(config, Config::Forward(_)),
            Pass::Probs => matches!(config, Config::Probs(_)),
            Pass::Backward(_) | Pass::PackedBackward | Pass::OrderedWindow | Pass::Tiles => {
                matches!(config, Config::Keys(_))
            }
        }
    }

    /// The form of a backward.
    fn keys_form(self) -> Option<HopperKeysForm> {
        match self {
            Pass::Backward(form) => Some(form),
            Pass::PackedBackward => Some(STEPS),
            Pass::OrderedWindow => Some(ORDERED),
            Pass::Tiles => Some(TILES),
            Pass::Forward(_) | Pass::Probs | Pass::PackedForward => None,
        }
    }

    fn is_packed(self) -> bool {
        matches!(self, Pass::PackedForward | Pass::PackedBackward)
    }

    /// Several tiles for a block of the forward; for one of the backward one tile of keys, for the queries of two heads.
    /// Where there is an order four, of which a query sees three or all: of two the sum is the same in either order. Where
    /// blocks take several tiles two heads of four, of which no query sees the first, and each at most two, so that its sum
    /// is known to the bit; the others have two or three steps, of which warpgroups go over some.
    fn problem(self) -> Problem {
        let (num_heads, num_heads_k) = match self {
            Pass::Tiles => (2, 2),
            _ if self.keys_form().is_some() => (2, 1),
            _ => (4, 2),
        };
        let seqlen_q = if self == Pass::Tiles { 150 } else { QUERIES };
        let seqlen_k = match self {
            Pass::Forward(_) | Pass::Probs => 336,
            Pass::Backward(_) => 100,
            Pass::Tiles => 400,
            Pass::PackedForward | Pass::PackedBackward => CU_SEQLENS[1][4] as usize,
            Pass::OrderedWindow => 400,
        };
        let head_dim = if self.keys_form().is_some_and(|form| form.shares_keys()) { 192 } else { 64 };
        let shape = Shape::new(1, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
        let problem = Problem::builder(shape).dropout(Dropout::new(0.2, 1, 0).unwrap());
        let problem = match self {
            Pass::PackedForward | Pass::PackedBackward => problem.packed(&CU_SEQLENS[0], &CU_SEQLENS[1]),
            Pass::OrderedWindow => problem.window(Some(330), Some(20)),
            Pass::Tiles => problem.window(Some(110), Some(10)),
            _ => problem,
        };
        problem.build().unwrap()
    }

    /// Of how many mistakes one is tried.
    fn one_in(self) -> usize {
        match (self, std::env::var("SIGNFLASH_TEST").as_deref()) {
            (_, Ok("all")) => 1,
            (Pass::Forward(_) | Pass::Probs | Pass::Backward(_), Ok("full")) => 2,
            (_, Ok("full")) | (Pass::Forward(_) | Pass::Probs | Pass::Backward(_), _) => 8,
            _ => 32,
        }
    }

    fn not_needed(self) -> &'static [&'static [NotNeeded]] {
        match self {
            Pass::Forward(_) => harmless::FORWARD,
            Pass::Probs => harmless::PROBS,
            Pass::Backward(form) if form.shares_keys() => harmless::SHARED,
            Pass::Backward(_) | Pass::PackedBackward => harmless::BACKWARD,
            Pass::PackedForward => harmless::PACKED_FORWARD,
            Pass::OrderedWindow => harmless::ORDERED_WINDOW,
            Pass::Tiles => harmless::TILES,
        }
    }
}

/// A launch of some blocks.
struct Launched {
    config: Config,
    grid: u32,
    args: Vec<Arg>,
}

/// The launches of a pass, with memory made for them, and where the backward's workspace lies in it. One block of the
/// forward does all tiles.
fn launches(pass: Pass) -> (Global, Vec<Launched>, Pointer) {
    let (problem, mut memory) = (&pass.problem(), Global::default());
    let shape = *problem.shape();
    let mut tensor = |name: &str, sizes: [usize; 4]| {
        let numbers = (0..sizes.iter().product())
            .map(|n: usize| bf16::from_f32((n * 7919 % 1009) as f32 / 504.0 - 1.0));
        let bytes: Vec<u8> = numbers.flat_map(|x| x.to_le_bytes()).collect();
        DeviceTensor::dense(memory.upload(name, &bytes).0, sizes, Order::RowsFirst)
    };
    let inputs = [tensor("q", shape.q()), tensor("k", shape.k()), tensor("v", shape.v())];
    let [out, dout, dq] = ["out", "dout", "dq"].map(|name| tensor(name, shape.q()));
    let [dk, dv] = ["dk", "dv"].map(|name| tensor(name, shape.k()));
    let lse = memory.upload("lse", &vec![0; 4 * shape.lse_len()]).0;
    let gpu = Gpu { sm_count: if pass == Pass::Tiles { 2 } else { 1 }, ..Gpu::HOPPER };
    let mut forward = ForwardCall::new(problem, Half::Bf16, inputs, out, lse);
    if pass.is_packed() {
        let [of_q, of_k] = CU_SEQLENS.map(|numbers| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            memory.upload("cu_seqlens", &bytes).0
        });
        let space = forward_workspace_bytes(problem) as usize;
        forward = forward.with_cu_seqlens([of_q, of_k]).with_workspace(memory.reserve("workspace", space).0);
    }
    let mut sums = Pointer(0);
    let tasks = match (pass, pass.keys_form()) {
        (_, Some(form)) => {
            let space = backward_workspace_bytes(problem, gpu, form.ordered) as usize;
            sums = memory.reserve("workspace", space);
            let call = BackwardCall::of(&forward, dout, [dq, dk, dv], sums.0);
            let call = call.with_deterministic(form.ordered);
            let choice = BackwardChoice::of(&call, gpu, Kernels::Best);
            choice.with_hopper_form(form).unwrap().tasks()
        }
        (Pass::PackedForward, None) => {
            ForwardChoice::of(&forward, gpu, Kernels::Best).with_hopper_form(FORM).unwrap().tasks()
        }
        (_, None) => {
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
    (memory, launched, sums)
}

/// The kernels of a pass's launches, and which of them is the pass's own. They are built once for all schedules.
struct Built {
    kernels: Vec<Kernel>,
    own: usize,
}

impl Built {
    fn of(pass: Pass) -> Self {
        let launched = launches(pass).1;
        let own =
            launched.iter().position(|launched| pass.is(&launched.config)).expect("a launch of the pass");
        Self { kernels: launched.iter().map(|launched| launched.config.kernel()).collect(), own }
    }

    /// With the mistake of this number, and what it is.
    fn with_mistake(mut self, number: usize) -> (Self, String) {
        let right = self.kernels.swap_remove(self.own);
        let mutation = right.mutations().swap_remove(number);
        let text = mutation.to_string();
        self.kernels.push(right.mutate(mutation));
        let last = self.kernels.len() - 1;
        self.kernels.swap(self.own, last);
        (self, text)
    }

    /// The bytes of the workspace, where sums of dq are, or the rule that the kernels break under a schedule.
    fn run(&self, pass: Pass, seed: u64) -> Result<Vec<u8>, (Rule, String)> {
        let (mut memory, launches, sums) = launches(pass);
        for (Launched { grid, args, .. }, kernel) in launches.iter().zip(&self.kernels) {
            kernel
                .interpret(&Launch { grid: *grid, args, seed }, &mut memory)
                .map_err(|trap| (trap.fault.rule, trap.to_string()))?;
        }
        Ok(if pass.keys_form().is_some() { memory.bytes(sums).to_vec() } else { vec![] })
    }
}

/// The kernel of a pass.
fn config(pass: Pass) -> Config {
    let launched = launches(pass).1;
    launched.into_iter().find(|launched| pass.is(&launched.config)).expect("a launch of the pass").config
}

#[test]
fn the_kernels_are_right_as_they_are() {
    for pass in [Pass::Forward(FORM), Pass::PackedForward] {
        assert!(matches!(config(pass), Config::Forward(ForwardKernel::Hopper(..))));
    }
    assert!(matches!(config(Pass::Probs), Config::Probs(ForwardKernel::Hopper(..))));
    for pass in [Pass::Backward(STEPS), Pass::PackedBackward, Pass::OrderedWindow] {
        assert!(matches!(config(pass), Config::Keys(KeysKernel::Hopper(..))));
    }
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
    let passes = passes.chain([Pass::PackedForward, Pass::PackedBackward, Pass::OrderedWindow, Pass::Tiles]);
    for pass in passes {
        let built = Built::of(pass);
        for seed in 0..3 {
            let ran = built.run(pass, seed);
            assert!(ran.is_ok(), "{pass:?}: {ran:?}");
        }
    }
}

/// Mistakes in a kernel that nobody notices, but for those that are listed.
fn unnoticed(pass: Pass) -> Vec<String> {
    // Of additions in one order the bits are known, and of two.
    let is_known = matches!(pass, Pass::OrderedWindow | Pass::Tiles);
    let right = is_known.then(|| Built::of(pass).run(pass, 0).unwrap());
    let count = config(pass).kernel().mutations().len();
    assert!(count > 40, "only {count} mistakes");
    let is_noticed = |ran: Result<Vec<u8>, _>| match &right {
        Some(right) => ran.as_ref() != Ok(right),
        None => ran.is_err(),
    };
    let seeded = |number: usize| {
        let (built, mistake) = Built::of(pass).with_mistake(number);
        let caught = (0..SCHEDULES).any(|seed| is_noticed(built.run(pass, seed)));
        (!caught).then_some(mistake)
    };
    let mut unnoticed: Vec<String> = (0..count).step_by(pass.one_in()).filter_map(seeded).collect();
    for (text, file, count, why) in pass.not_needed().iter().copied().flatten() {
        let (listed, others): (Vec<String>, _) =
            unnoticed.into_iter().partition(|mistake| mistake.contains(text) && mistake.contains(file));
        let as_listed = if pass.one_in() == 1 { listed.len() == *count } else { listed.len() <= *count };
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

#[test]
fn every_mistake_in_the_forward_of_packed_sequences_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::PackedForward), Vec::<String>::new());
}

#[test]
fn every_mistake_in_the_backward_of_packed_sequences_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::PackedBackward), Vec::<String>::new());
}

#[test]
fn every_mistake_in_additions_in_one_order_in_a_window_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::OrderedWindow), Vec::<String>::new());
}

#[test]
fn every_mistake_in_blocks_of_several_tiles_that_matters_is_noticed() {
    assert_eq!(unnoticed(Pass::Tiles), Vec::<String>::new());
}
