//! Mistakes about a bias and a mask that must be noticed: kernels are told of strides, sizes and addresses that are a
//! little wrong, and every result that depends on them is another one, or the interpreter reports a read outside.

use signflash_core::{Dropout, Dtype, Problem, Shape, bf16};
use signflash_kernels::{
    BackwardCall, BackwardChoice, DeviceScoreTensor, DeviceScores, DeviceTensor, ForwardCall, ForwardChoice,
    Gpu, Half, Kernels, Order, Task, backward_workspace_bytes, forward_workspace_bytes,
};
use signflash_ptx::{Arg, Global, Launch};

const QUERIES: usize = 40;
const KEYS: usize = 70;
const BIAS: [usize; 4] = [1, 2, QUERIES, KEYS];
const MASK: [usize; 4] = [1, 1, 1, KEYS];

/// out, dq, dk, dv and dbias, each by its name; or why a launch ended.
type Ran = Result<Vec<(&'static str, Vec<u8>)>, String>;

fn halves(count: usize, of: impl Fn(usize) -> f32) -> Vec<u8> {
    (0..count).flat_map(|n| bf16::from_f32(of(n)).to_le_bytes()).collect()
}

/// Both passes, the arguments of each launch changed; `change` knows the addresses of bias, mask and dbias.
fn run(gpu: Gpu, change: impl Fn([u64; 3], &mut [Arg])) -> Ran {
    let shape = Shape::new(1, QUERIES, KEYS).heads(2, 1).head_dim(64);
    let dropout = Dropout::new(0.2, 1, 0).unwrap();
    let problem =
        Problem::builder(shape).dropout(dropout).bias(Dtype::Bf16, BIAS).mask(MASK).build().unwrap();
    let mut memory = Global::default();
    let number = |n: usize| (n * 37 % 101) as f32 / 50.0 - 1.0;
    let mut tensor = |name, sizes: [usize; 4], factor: f32| {
        let bytes = halves(sizes.iter().product(), |n| number(n) * factor);
        let at = memory.upload(name, &bytes);
        (at, DeviceTensor::dense(at.0, sizes, Order::RowsFirst))
    };
    let [q, k, v] = [("q", shape.q(), 0.5), ("k", shape.k(), 0.5), ("v", shape.v(), 1.0)]
        .map(|(name, sizes, factor)| tensor(name, sizes, factor).1);
    let dout = tensor("dout", shape.out(), 0.7).1;
    let made = [("out", shape.out()), ("dq", shape.q()), ("dk", shape.k()), ("dv", shape.v())]
        .map(|(name, sizes)| (name, tensor(name, sizes, 0.0)));
    let bias = memory.upload("bias", &halves(BIAS.iter().product(), |n| 2.0 * number(n * n + n)));
    // The first keys and the last are hidden.
    let mask: Vec<u8> = (0..KEYS).map(|key| u8::from((3..66).contains(&key))).collect();
    let mask = memory.upload("mask", &mask);
    let dbias = memory.reserve("dbias", 2 * BIAS.iter().product::<usize>());
    let lse = memory.reserve("lse", 4 * shape.lse_len()).0;
    let space = [forward_workspace_bytes(&problem), backward_workspace_bytes(&problem, gpu, true)];
    let [forward_space, backward_space] = space.map(|bytes| memory.reserve("workspace", bytes as usize).0);
    let dense = |at, [_, heads, rows, keys]: [usize; 4]| {
        DeviceScoreTensor::of(at, [heads * rows * keys, rows * keys, keys, 1])
    };
    let scores = DeviceScores {
        bias: Some(dense(bias.0, BIAS)),
        mask: Some(dense(mask.0, MASK)),
        ..DeviceScores::default()
    };
    let [(_, (_, out)), (_, (_, dq)), (_, (_, dk)), (_, (_, dv))] = made;
    let forward = ForwardCall::new(&problem, Half::Bf16, [q, k, v], out, lse)
        .with_scores(scores)
        .with_workspace(forward_space);
    let backward = BackwardCall::of(&forward, dout, [dq, dk, dv], backward_space)
        .with_deterministic(true)
        .with_dbias(Some(dense(dbias.0, BIAS)));
    let mut tasks = ForwardChoice::of(&forward, gpu, Kernels::Best).tasks().unwrap();
    tasks.extend(BackwardChoice::of(&backward, gpu, Kernels::Best).tasks().unwrap());
    for task in tasks {
        match task {
            Task::Zero { ptr, bytes } => memory.zero(ptr, bytes as usize),
            Task::Launch { config, grid, mut args } => {
                change([bias.0, mask.0, dbias.0], &mut args);
                let launch = Launch { grid, args: &args, seed: 0 };
                config.kernel().interpret(&launch, &mut memory).map_err(|trap| trap.to_string())?;
            }
        }
    }
    let results = made.iter().map(|(name, (at, _))| (*name, *at)).chain([("dbias", dbias)]);
    Ok(results.map(|(name, at)| (name, memory.bytes(at).to_vec())).collect())
}

/// Adds to an argument that comes so many behind an address, wherever that is given.
fn add(of: u64, behind: usize, by: i64) -> impl Fn(&mut [Arg]) {
    move |args| {
        let found: Vec<usize> = (0..args.len()).filter(|&i| args[i] == Arg::U64(of)).collect();
        for i in found {
            match &mut args[i + behind] {
                Arg::U64(number) => *number = number.wrapping_add_signed(by),
                Arg::U32(number) => *number = number.wrapping_add_signed(by as i32),
                other => panic!("{other:?} is no number"),
            }
        }
    }
}

#[test]
fn strides_and_sizes_that_are_a_little_wrong_are_noticed() {
    for gpu in [Gpu::SMALL, Gpu::HOPPER] {
        let right = run(gpu, |_, _| ()).unwrap();
        assert!(run(gpu, |_, _| ()).unwrap() == right, "{gpu:?}");
        // An address; the strides of heads, of queries and of keys, in bytes; queries and keys.
        let of_bias = [(0, 4), (2, 4), (3, 4), (5, 1), (6, 2)];
        // Of a mask of all queries: an address, and keys. Fewer of these are hidden, or more, or are not there.
        let of_mask = [(0, 2), (6, 2)];
        let mistakes =
            of_bias.map(|mistake| (0, mistake)).into_iter().chain(of_mask.map(|mistake| (1, mistake)));
        for (tensor, (behind, by)) in mistakes {
            let wrong = run(gpu, |addresses, args| add(addresses[tensor], behind, by)(args));
            let Ok(wrong) = wrong else { continue };
            for ((name, wrong), (_, right)) in wrong.iter().zip(&right) {
                assert!(wrong != right, "{gpu:?}: {name}, argument {behind} of tensor {tensor} and {by}");
            }
        }
        // dbias is written elsewhere; nothing else changes.
        for (behind, by) in [(2, 4), (3, 4), (5, -1)] {
            let Ok(wrong) = run(gpu, |addresses, args| add(addresses[2], behind, by)(args)) else { continue };
            let differ: Vec<&str> =
                wrong.iter().zip(&right).filter(|(a, b)| a != b).map(|((name, _), _)| *name).collect();
            assert_eq!(differ, ["dbias"], "{gpu:?}: argument {behind} of dbias and {by}");
        }
    }
}
