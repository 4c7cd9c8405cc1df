//! A head_dim of v that is not q's: portable kernels and Hopper's own, both passes and probs, in the interpreter against
//! the oracle. `SIGNFLASH_TEST=all` tries every pair with every setting everywhere, else each pair has one of them on one of
//! four engines, the first on each.

mod common;

use common::On;
use signflash_core::suite::{Case, run_case};
use signflash_core::{Dtype, Problem, Shape};
use signflash_kernels::{
    BackwardCall, BackwardChoice, ForwardCall, ForwardChoice, Gpu, Half, Interpreted, Kernels,
};

/// Of q and k, and of v: DeepSeek's; narrower and wider ones; padded to the same; moved in single elements; and such of
/// which the output is wider than the queries by whose place it leaves.
const PAIRS: [(usize, usize); 10] = [
    (192, 128),
    (64, 128),
    (96, 64),
    (128, 64),
    (40, 72),
    (40, 48),
    (41, 33),
    (64, 192),
    (136, 256),
    (256, 8),
];

/// What else a case may ask for, each with a group of two heads.
fn settings() -> [fn(Case) -> Case; 5] {
    [
        |case| case.dropout(0.2),
        |case| case.causal(),
        |case| case.window(33, 5).dropout(0.1),
        |case| case.causal().dropout(0.3).dlse(),
        |case| case.packed(&[30, 0, 41], &[65, 3, 20]).causal().dropout(0.2),
    ]
}

/// Queries and keys of one head, which end inside of tiles.
fn case((head_dim, head_dim_v): (usize, usize)) -> Case {
    Case::new(74, 91).heads(2, 1).head_dim(head_dim).head_dim_v(head_dim_v)
}

/// How many engines the tests below have.
const ENGINES: usize = 4;

/// Engine number `engine` of so many.
fn check(interpreted: Interpreted, engine: usize) {
    let all = matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("all"));
    for (number, pair) in PAIRS.into_iter().enumerate() {
        for (setting, change) in settings().into_iter().enumerate() {
            let own = (number == 0 || number % ENGINES == engine)
                && setting == (engine + number) % settings().len();
            if !own && !all {
                continue;
            }
            let dtype = [Dtype::Bf16, Dtype::F16][(number + setting) % 2];
            let case = change(case(pair)).dtypes(&[dtype]);
            let report = run_case("a head_dim of v", &case, &On::all(interpreted));
            assert_eq!((report.ran, report.failures.len()), (1, 0), "{pair:?}, setting {setting}: {report}");
        }
    }
}

#[test]
fn hopper_s_kernels_compute_it() {
    check(Interpreted::new(Gpu::HOPPER), 0);
}

#[test]
fn hopper_s_kernels_compute_it_in_one_order() {
    check(Interpreted { gpu: Gpu::HOPPER, seed: 1, deterministic: true }, 1);
}

#[test]
fn portable_kernels_compute_it() {
    check(Interpreted { gpu: Gpu::AMPERE, seed: 2, deterministic: false }, 2);
}

#[test]
fn portable_kernels_of_small_gpus_compute_it_in_one_order() {
    check(Interpreted { gpu: Gpu::SMALL, seed: 3, deterministic: true }, 3);
}

/// Names of the kernels of dense calls of a pair.
fn names((head_dim, head_dim_v): (usize, usize), gpu: Gpu) -> Vec<String> {
    let shape = Shape::new(1, 2048, 2048).heads(1, 1).head_dim(head_dim).head_dim_v(head_dim_v);
    let problem = Problem::builder(shape).build().unwrap();
    let probs =
        signflash_kernels::DeviceTensor::dense(0, shape.probs(), signflash_kernels::Order::HeadsFirst);
    let forward = ForwardCall::of_dense(&problem, Half::Bf16).with_probs(Some(probs));
    let backward = BackwardCall::of_dense(&problem, Half::Bf16);
    let forward = ForwardChoice::of(&forward, gpu, Kernels::Best);
    let backward = BackwardChoice::of(&backward, gpu, Kernels::Best);
    forward.kernels().chain(backward.kernels()).map(|config| config.to_string()).collect()
}

#[test]
fn names_say_it_where_kernels_depend_on_it() {
    let of = |pair, gpu| {
        names(pair, gpu).into_iter().map(|name| name.split("_bf16").collect()).collect::<Vec<String>>()
    };
    let starts = |names: &[String], starts: [&str; 5]| {
        assert_eq!(names.len(), starts.len());
        for (name, start) in names.iter().zip(starts) {
            assert!(name.starts_with(start), "{name} does not start with {start}");
        }
    };
    starts(
        &of((192, 128), Gpu::HOPPER),
        [
            "sf_fwd90_d192v128_",
            "sf_probs90_d192_",
            "sf_delta_lanes16",
            "sf_bwd90_keys_d192v128_",
            "sf_convert_dq_d192_",
        ],
    );
    // What the copy engine brings is padded alike: the kernels are those of head_dim 48, and of 64.
    starts(
        &of((40, 48), Gpu::HOPPER),
        ["sf_fwd90_d48_", "sf_probs90_d48_", "sf_delta_lanes8", "sf_bwd90_keys_d64_", "sf_convert_dq_d64_"],
    );
    // The portable kernels count the columns themselves.
    starts(
        &of((40, 48), Gpu::AMPERE),
        [
            "sf_fwd_d48v48_ragged_",
            "sf_probs_d48_ragged_",
            "sf_delta_lanes8",
            "sf_bwd_keys_d48v48_ragged_",
            "sf_convert_dq_d48_ragged_",
        ],
    );
}
