//! Which kernels a call gets on a GPU, and the reasons that are given where they are not the GPU's own.

use signflash_core::{Dropout, Problem, Shape, Shard};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, DeviceTensor, DqKernel, ForwardCall, ForwardChoice, Gpu, Half,
    HopperKeysForm, Kernels, KeysKernel, NotHopper, Order, PortableForm, Task,
};

const SHAPE: Shape = Shape::new(2, 40, 50).heads(4, 2).head_dim(72);

const WHOLE: Shard =
    Shard { first_batch: 0, first_head: 0, first_row: 0, first_column: 0, num_heads_total: None };

fn problem(shape: Shape, shard: Shard) -> Problem {
    let problem = Problem::builder(shape).dropout(Dropout::new(0.1, 1, 0).unwrap()).shard(shard);
    problem.build().unwrap()
}

/// Whether a changed call's forward is Hopper's own on a Hopper GPU, and if not, why.
fn told(shape: Shape, shard: Shard, change: impl Fn(&mut ForwardCall<'_>)) -> (bool, Option<String>) {
    let problem = problem(shape, shard);
    let mut call = ForwardCall::of_dense(&problem, Half::F16);
    change(&mut call);
    let choice = ForwardChoice::of(&call, Gpu::HOPPER, Kernels::Best);
    (choice.forward().is_hopper(), choice.not_hopper().map(ToString::to_string))
}

#[test]
fn hopper_takes_whole_pieces_of_16_bytes() {
    assert_eq!(told(SHAPE, WHOLE, |_| {}), (true, None));
}

#[test]
fn what_hopper_does_not_take_goes_to_the_portable_kernels_with_a_reason() {
    let cases = [
        (
            told(SHAPE, WHOLE, |call| call.v.ptr += 2),
            "the rows of v do not all start at multiples of 16 bytes",
        ),
        (told(SHAPE, WHOLE, |call| call.k.head_stride = 0), "k has a stride of 0 elements"),
        (told(SHAPE.head_dim(41), WHOLE, |_| {}), "head_dim is 41, and rows are written in pieces of 8"),
        (told(SHAPE.seqlen_k(0), WHOLE, |_| {}), "k is empty"),
        (told(SHAPE, Shard { first_row: 8, ..WHOLE }, |_| {}), "the shard starts inside a block of 16 rows"),
    ];
    for ((hopper, reason), expected) in cases {
        assert!(!hopper, "{expected}");
        assert!(reason.as_ref().is_some_and(|reason| reason.contains(expected)), "{expected}: {reason:?}");
    }
}

#[test]
fn packed_rows_that_the_copy_engine_cannot_count_go_to_the_portable_kernels() {
    let told = |rows: usize, stride: u64| {
        let shape = Shape::new(1, rows, 50).heads(1, 1).head_dim(8);
        let problem = Problem::builder(shape).packed_on_device(3).build().unwrap();
        let mut call = ForwardCall::of_dense(&problem, Half::F16);
        call.q.row_stride = stride;
        let choice = ForwardChoice::of(&call, Gpu::HOPPER, Kernels::Best);
        choice.not_hopper().map(ToString::to_string)
    };
    assert_eq!((told(1 << 30, 8), told(1, 1 << 33)), (None, None));
    let rows = told((1 << 30) + 1, 8).unwrap();
    assert_eq!(rows, "q has 1073741825 rows of packed sequences, and 1073741824 is the most");
    let stride = told(2, 1 << 33).unwrap();
    assert_eq!(stride, "q has a stride of 8589934592 elements between packed rows");
}

#[test]
fn reasons_that_no_call_can_change_say_so() {
    let problem = problem(SHAPE, WHOLE);
    let call = ForwardCall::of_dense(&problem, Half::F16);
    let reason = |gpu, kernels| {
        let choice = ForwardChoice::of(&call, gpu, kernels);
        let reason = choice.not_hopper().expect("the portable kernel is chosen").clone();
        assert!(!choice.forward().is_hopper() && !reason.is_of_call());
        reason.to_string()
    };
    assert_eq!(
        reason(Gpu::AMPERE, Kernels::Best),
        "the GPU's compute capability is 8.0, and Hopper's own kernels need 9.0"
    );
    assert_eq!(reason(Gpu::HOPPER, Kernels::Portable), "the portable kernels were asked for");
}

#[test]
fn an_empty_call_is_no_reason_to_warn() {
    for shape in [SHAPE.seqlen_q(0), SHAPE.seqlen_k(0), SHAPE.seqlen_k(0).head_dim(41)] {
        let problem = problem(shape, WHOLE);
        let forward = ForwardCall::of_dense(&problem, Half::F16);
        let choice = ForwardChoice::of(&forward, Gpu::HOPPER, Kernels::Best);
        assert!(matches!(choice.not_hopper(), Some(reason @ NotHopper::Empty(_)) if !reason.is_of_call()));
        let call = BackwardCall::of_dense(&problem, Half::F16);
        let choice = backward(&call, Gpu::HOPPER);
        assert!(matches!(choice.not_hopper(), Some(reason @ NotHopper::Empty(_)) if !reason.is_of_call()));
    }
}

/// The reason why Hopper's own kernel does not write probs that lie so many bytes behind an aligned address.
fn probs_reason(seqlen_k: usize, shard: Shard, off: u64, gpu: Gpu) -> (Option<String>, bool) {
    let problem = problem(SHAPE.seqlen_k(seqlen_k), shard);
    let probs = DeviceTensor::dense(4096 + off, problem.shape().probs(), Order::HeadsFirst);
    let call = ForwardCall::of_dense(&problem, Half::F16).with_probs(Some(probs));
    let choice = ForwardChoice::of(&call, gpu, Kernels::Best);
    let reason = choice.probs_not_hopper().map(ToString::to_string);
    assert_eq!(reason.is_none(), choice.probs().is_some_and(|kernel| kernel.is_hopper()));
    (reason, choice.forward().is_hopper())
}

#[test]
fn probs_that_hopper_does_not_write_have_a_reason_of_their_own() {
    assert_eq!(probs_reason(48, WHOLE, 0, Gpu::HOPPER), (None, true));
    let cases = [
        (probs_reason(50, WHOLE, 0, Gpu::HOPPER), "seqlen_k is 50"),
        (probs_reason(48, WHOLE, 2, Gpu::HOPPER), "the rows of probs"),
        (probs_reason(48, Shard { first_column: 8, ..WHOLE }, 0, Gpu::HOPPER), "a block of 32 columns"),
    ];
    for ((reason, forward), expected) in cases {
        assert!(forward, "the forward is Hopper's still: {expected}");
        assert!(reason.as_ref().is_some_and(|reason| reason.contains(expected)), "{reason:?}");
    }
    let (reason, _) = probs_reason(50, WHOLE, 0, Gpu::AMPERE);
    assert!(reason.is_some_and(|reason| reason.contains("compute capability is 8.0")));
}

fn backward<'a>(call: &'a BackwardCall<'a>, gpu: Gpu) -> BackwardChoice<'a> {
    BackwardChoice::of(call, gpu, Kernels::Best)
}

#[test]
fn a_backward_has_its_own_reasons() {
    let told = |shard, workspace| {
        let problem = problem(SHAPE, shard);
        let mut call = BackwardCall::of_dense(&problem, Half::F16);
        call.workspace = workspace;
        let choice = backward(&call, Gpu::HOPPER);
        assert_eq!(choice.keys().is_hopper(), choice.not_hopper().is_none());
        choice.not_hopper().map(ToString::to_string)
    };
    // Where a forward is refused, a backward need not be.
    assert_eq!(told(Shard { first_row: 8, ..WHOLE }, 4096), None);
    let columns = told(Shard { first_column: 8, ..WHOLE }, 4096).unwrap();
    assert!(columns.contains("a block of 32 columns"), "{columns}");
    let workspace = told(WHOLE, 4100).unwrap();
    assert_eq!(workspace, "the workspace does not start at a multiple of 16 bytes");
    // Each tensor that is read or written in pieces of 16 bytes.
    let problem = problem(SHAPE, WHOLE);
    type Change = fn(&mut BackwardCall<'_>);
    let changes: [(&str, Change); 4] = [
        ("dout", |call| call.dout.ptr += 2),
        ("dq", |call| call.dq.ptr += 2),
        ("dk", |call| call.dk.ptr += 2),
        ("dv", |call| call.dv.ptr += 2),
    ];
    for (name, change) in changes {
        let mut call = BackwardCall::of_dense(&problem, Half::F16);
        change(&mut call);
        let choice = backward(&call, Gpu::HOPPER);
        assert!(!choice.keys().is_hopper(), "{name}");
        let why = choice.not_hopper().unwrap().to_string();
        assert!(why.contains(name), "{why}");
    }
}

#[test]
fn a_deterministic_backward_has_a_pass_over_queries_but_on_hopper() {
    let problem = problem(SHAPE, WHOLE);
    let call = BackwardCall::of_dense(&problem, Half::F16).with_deterministic(true);
    assert!(matches!(backward(&call, Gpu::AMPERE).dq(), DqKernel::Queries(..)));
    assert!(matches!(backward(&call, Gpu::HOPPER).dq(), DqKernel::FromSums(..)));
    assert!(matches!(backward(&call, Gpu::HOPPER).keys(), KeysKernel::Hopper(_, form) if form.ordered));
}

#[test]
fn a_choice_is_what_is_launched() {
    let problem = problem(SHAPE, WHOLE);
    let call = BackwardCall::of_dense(&problem, Half::F16);
    for gpu in [Gpu::HOPPER, Gpu::AMPERE, Gpu::SMALL] {
        let choice = backward(&call, gpu);
        let tasks = choice.tasks().unwrap();
        let launched: Vec<Config> = tasks
            .iter()
            .filter_map(|task| match task {
                Task::Launch { config, .. } => Some(*config),
                Task::Zero { .. } => None,
            })
            .collect();
        assert_eq!(launched, choice.kernels().collect::<Vec<_>>());
    }
}

#[test]
fn forms_are_exchanged_only_where_they_can_run() {
    let problem = problem(SHAPE.head_dim(64).seqlen_q(200), WHOLE);
    let call = BackwardCall::of_dense(&problem, Half::F16).with_deterministic(true);
    let KeysKernel::Hopper(_, form) = backward(&call, Gpu::HOPPER).keys() else { panic!("Hopper's own") };
    let exchanged =
        backward(&call, Gpu::HOPPER).with_hopper_form(HopperKeysForm { ordered: false, ..form }).unwrap();
    assert!(matches!(exchanged.keys(), KeysKernel::Hopper(_, form) if form.ordered), "the call says so");
    // With half as many queries a step there are twice as many counters.
    let shorter = backward(&call, Gpu::HOPPER).with_hopper_form(HopperKeysForm { step: 64, ..form });
    let reason = shorter.unwrap_err().to_string();
    assert!(reason.contains("bytes more of workspace"), "{reason}");
    let elsewhere = backward(&call, Gpu::AMPERE).with_hopper_form(form).unwrap_err();
    assert!(elsewhere.to_string().contains("compute capability is 8.0"), "{elsewhere}");

    let forward = ForwardCall::of_dense(&problem, Half::F16);
    let choice = ForwardChoice::of(&forward, Gpu::HOPPER, Kernels::Best);
    let portable = PortableForm {
        warps: 4,
        row_tiles: 1,
        split: 1,
        step: 32,
        slots: 1,
        blocks_per_sm: 1,
        late_dq: false,
        in_registers: false,
    };
    let name = choice.with_portable_form(portable).kernels().next().unwrap().to_string();
    assert_eq!(name, "sf_fwd_f16_d64_drop_w4r16n32s1b1");
}
