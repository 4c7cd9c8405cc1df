//! Windows: what a kernel is told of them, by one key wrong, shows in every result; and which kernels they get.

use signflash_core::suite::{Case, Values};
use signflash_core::{Dtype, Problem, Shape, Window, bf16};
use signflash_kernels::{
    Arg, BackwardCall, BackwardChoice, BandKind, DeviceTensor, ForwardCall, ForwardChoice, Gpu, Half,
    Kernels, Order, Task, backward_workspace_bytes,
};
use signflash_ptx::{Global, Launch, Pointer};

/// Queries and keys, and a window, of which both sides end inside of tiles.
const LEN: usize = 150;
const SIDES: (usize, usize) = (33, 5);

/// The results of a forward and a backward, as numbers.
struct Results {
    named: Vec<(&'static str, Vec<f32>)>,
}

fn case() -> Case {
    Case::new(LEN, LEN).heads(1, 1).window(SIDES.0, SIDES.1).dtypes(&[Dtype::Bf16])
}

/// Which argument of a launch is the band's last key of query 0; the next is how many keys come before.
fn band_at(args: &[Arg]) -> usize {
    let (last, before) = (Arg::U32(SIDES.1 as u32), Arg::U32((SIDES.0 + SIDES.1) as u32));
    let found: Vec<usize> = (1..args.len()).filter(|&i| args[i - 1] == last && args[i] == before).collect();
    assert_eq!(found.len(), 1, "the band is found by its numbers: {args:?}");
    found[0] - 1
}

/// Runs both passes, the launches of all kernels that make scores changed.
fn run(gpu: Gpu, change: impl Fn(&mut [Arg])) -> Results {
    let problem = &case().problem();
    let (shape, values) = (*problem.shape(), case().values());
    let mut memory = Global::default();
    let upload = |memory: &mut Global, name, values: &[f64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x as f32).to_le_bytes()).collect();
        memory.upload(name, &bytes)
    };
    let Values { q, k, v, dout, .. } = &values;
    let given = [("q", q), ("k", k), ("v", v), ("dout", dout)].map(|(name, x)| upload(&mut memory, name, x));
    let made = ["out", "dq", "dk", "dv"].map(|name| memory.reserve(name, 2 * q.len()));
    let lse = memory.reserve("lse", 4 * shape.lse_len());
    let probs = memory.reserve("probs", 2 * LEN * LEN);
    let tensor = |pointer: Pointer| DeviceTensor::dense(pointer.0, shape.q(), Order::RowsFirst);
    let [q, k, v, dout] = given.map(tensor);
    let [out, dq, dk, dv] = made.map(tensor);
    let to_probs = DeviceTensor::dense(probs.0, shape.probs(), Order::HeadsFirst);
    let forward = ForwardCall::new(problem, Half::Bf16, [q, k, v], out, lse.0).with_probs(Some(to_probs));
    let workspace = memory.reserve("workspace", backward_workspace_bytes(problem, gpu, true) as usize).0;
    let backward = BackwardCall::of(&forward, dout, [dq, dk, dv], workspace).with_deterministic(true);
    let mut tasks = ForwardChoice::of(&forward, gpu, Kernels::Best).tasks().unwrap();
    tasks.extend(BackwardChoice::of(&backward, gpu, Kernels::Best).tasks().unwrap());
    for task in tasks {
        match task {
            Task::Zero { ptr, bytes } => memory.zero(ptr, bytes as usize),
            Task::Launch { config, grid, mut args } => {
                if config.to_string().contains("_window") {
                    let at = band_at(&args);
                    change(&mut args[at..at + 2]);
                }
                config.kernel().interpret(&Launch { grid, args: &args, seed: 0 }, &mut memory).unwrap();
            }
        }
    }
    let halves = |pointer| {
        let bytes = memory.bytes(pointer).chunks_exact(2);
        bytes.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    let [out, dq, dk, dv] = made.map(halves);
    let named = vec![("out", out), ("probs", halves(probs)), ("dq", dq), ("dk", dk), ("dv", dv)];
    Results { named }
}

/// How far one is from the other, relative to its size.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Further than roundings are, by far.
fn check_off_by_one(gpu: Gpu) {
    let right = run(gpu, |_| ());
    let again = run(gpu, |_| ());
    for ((name, a), (_, b)) in again.named.iter().zip(&right.named) {
        assert_eq!(distance(a, b), 0.0, "{name}");
    }
    let number = |arg: &Arg| match arg {
        Arg::U32(number) => *number,
        other => panic!("{other:?} is no number of keys"),
    };
    // One key more or less on the right, where the first key stays; on the left; and all of it moved.
    for (last, before) in [(1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)] {
        let wrong = run(gpu, |band| {
            band[0] = Arg::U32(number(&band[0]).wrapping_add_signed(last));
            band[1] = Arg::U32(number(&band[1]).wrapping_add_signed(before));
        });
        for ((name, wrong), (_, right)) in wrong.named.iter().zip(&right.named) {
            let distance = distance(wrong, right);
            assert!(distance > 0.02, "{name} is {distance} away, last {last:+}, before {before:+}");
        }
    }
}

#[test]
fn a_window_that_is_one_key_off_on_either_side_shows_in_every_result_of_hopper_s_kernels() {
    check_off_by_one(Gpu::HOPPER);
}

#[test]
fn a_window_that_is_one_key_off_on_either_side_shows_in_every_result_of_portable_kernels() {
    check_off_by_one(Gpu::SMALL);
}

fn problem(queries: usize, keys: usize, window: Window, diagonal: Option<i64>) -> Problem {
    let problem = Problem::builder(Shape::new(1, queries, keys).heads(1, 1).head_dim(64));
    let problem = problem.window(window.left, window.right);
    diagonal.map_or(problem.clone(), |diagonal| problem.diagonal(diagonal)).build().unwrap()
}

#[test]
fn kernels_are_built_for_the_sides_that_hide_something() {
    let name = |queries, keys, left, right, diagonal| {
        let problem = problem(queries, keys, Window { left, right }, diagonal);
        let call = ForwardCall::of_dense(&problem, Half::Bf16);
        let choice = ForwardChoice::of(&call, Gpu::HOPPER, Kernels::Best);
        assert!(choice.forward().is_hopper() && choice.not_hopper().is_none());
        let name = choice.kernels().next().unwrap().to_string();
        ["_causal", "_window"].into_iter().find(|kind| name.contains(kind)).unwrap_or("")
    };
    assert_eq!(name(64, 64, None, None, None), "");
    assert_eq!(name(64, 64, None, Some(3), None), "_causal");
    assert_eq!(name(64, 64, Some(3), Some(0), None), "_window");
    assert_eq!(name(64, 64, Some(3), None, None), "_window");
    // A side as long as the keys is none, and so is one that an explicit diagonal moves out of sight.
    assert_eq!(name(64, 64, Some(63), Some(63), None), "");
    assert_eq!(name(64, 64, Some(63), Some(0), None), "_causal");
    assert_eq!(name(64, 64, Some(10), Some(0), Some(63)), "_window");
    assert_eq!(name(64, 64, Some(10), Some(0), Some(-54)), "_causal");
    assert_eq!(name(1, 64, None, Some(0), None), "");
}

#[test]
fn kinds_of_bands_follow_the_sides() {
    let of = |left, right| BandKind::of(Window { left, right });
    assert_eq!(of(None, None), BandKind::Full);
    assert_eq!(of(None, Some(7)), BandKind::Right);
    assert_eq!([of(Some(7), None), of(Some(7), Some(7))], [BandKind::Both; 2]);
}
