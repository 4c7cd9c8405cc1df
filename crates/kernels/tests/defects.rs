//! The attention kernels less one wait or one barrier: the interpreter must notice each that matters.

use signflash_core::{Dropout, Problem, Shape, bf16};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, DeviceTensor, ForwardCall, ForwardChoice, Gpu, Half, Kernels,
    Order, Task,
};
use signflash_ptx::{Arg, Global, Kernel, Launch, Rule};

const LEN: usize = 200;
const DIM: usize = 64;

fn problem() -> Problem {
    let shape = Shape::new(1, LEN, LEN).heads(1, 1).head_dim(DIM);
    Problem::builder(shape).dropout(Dropout::new(0.2, 1, 0).unwrap()).build().unwrap()
}

/// Memory with all tensors of a forward and a backward, and the tasks of both.
fn all(problem: &Problem) -> (Global, Vec<Task>) {
    let mut memory = Global::default();
    let ones: Vec<u8> =
        (0..LEN * DIM).flat_map(|n| bf16::from_f32((n % 7) as f32 / 8.0).to_le_bytes()).collect();
    let mut tensor =
        |name: &str| DeviceTensor::dense(memory.upload(name, &ones).0, problem.shape().q(), Order::RowsFirst);
    let [q, k, v, out, dout, dq, dk, dv] = ["q", "k", "v", "out", "dout", "dq", "dk", "dv"].map(&mut tensor);
    let lse = memory.reserve("lse", 4 * LEN).0;
    let forward = ForwardCall::new(problem, Half::Bf16, [q, k, v], out, lse);
    let space = signflash_kernels::backward_workspace_bytes(problem, Gpu::AMPERE, false);
    let workspace = memory.reserve("workspace", space as usize).0;
    let backward = BackwardCall::of(&forward, dout, [dq, dk, dv], workspace);
    let mut tasks = ForwardChoice::of(&forward, Gpu::AMPERE, Kernels::Best).tasks().unwrap();
    tasks.extend(BackwardChoice::of(&backward, Gpu::AMPERE, Kernels::Best).tasks().unwrap());
    (memory, tasks)
}

/// Runs all tasks, the kernel that `is_meant` as `change` leaves it; the rule that this breaks.
fn run(
    is_meant: fn(&Config) -> bool,
    change: &dyn Fn(Kernel) -> Kernel,
    seed: u64,
) -> Option<(Rule, String)> {
    let problem = problem();
    let (mut memory, tasks) = all(&problem);
    for task in tasks {
        match task {
            Task::Zero { ptr, bytes } => memory.zero(ptr, bytes as usize),
            Task::Launch { config, grid, args } => {
                let kernel = if is_meant(&config) { change(config.kernel()) } else { config.kernel() };
                let launch: Launch<'_> = Launch { grid, args: &args as &[Arg], seed };
                if let Err(trap) = kernel.interpret(&launch, &mut memory) {
                    return Some((trap.fault.rule, trap.to_string()));
                }
            }
        }
    }
    None
}

/// How many of the kernel's instructions that contain `text` can be left out unnoticed.
fn unnoticed(is_meant: fn(&Config) -> bool, text: &str) -> (usize, usize) {
    let problem = problem();
    let (_, tasks) = all(&problem);
    let config = tasks.iter().find_map(|task| match task {
        Task::Launch { config, .. } if is_meant(config) => Some(*config),
        _ => None,
    });
    let lines = config.expect("the kernel is among the tasks").kernel().lines_matching(text);
    let missed = lines.iter().filter(|&&line| {
        let caught = (0..6).find_map(|seed| run(is_meant, &|kernel| kernel.without(line), seed));
        if let Some((rule, report)) = &caught {
            let expected = [Rule::InFlight, Rule::Race, Rule::Uninitialised, Rule::Barrier, Rule::Deadlock];
            assert!(expected.contains(rule), "{report}");
        }
        caught.is_none()
    });
    (missed.count(), lines.len())
}

fn is_forward(config: &Config) -> bool {
    matches!(config, Config::Forward(..))
}

fn is_backward(config: &Config) -> bool {
    matches!(config, Config::Keys(..))
}

#[test]
fn the_kernels_are_right_as_they_are() {
    for seed in 0..6 {
        assert_eq!(run(is_forward, &|kernel| kernel, seed), None);
    }
}

#[test]
fn every_wait_of_the_forward_that_waits_for_something_is_missed() {
    // The last wait is for a group of nothing.
    assert_eq!(unnoticed(is_forward, "cp.async.wait_group"), (1, 3));
}

#[test]
fn every_wait_of_the_backward_that_waits_for_something_is_missed() {
    // The last wait is for a group of nothing, and the first is followed by one for all groups before anything is read.
    assert_eq!(unnoticed(is_backward, "cp.async.wait_group"), (2, 3));
}

#[test]
fn barriers_of_the_forward_are_missed() {
    // The last has nobody left to keep apart: each warp writes its own rows.
    assert_eq!(unnoticed(is_forward, "bar.sync"), (1, 3));
}

#[test]
fn barriers_of_the_backward_are_missed() {
    // The first is followed by another before anything is read.
    assert_eq!(unnoticed(is_backward, "bar.sync"), (1, 4));
}
