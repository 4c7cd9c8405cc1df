//! Biases and masks: of every kind, in every pass, on kernels of both generations, beside the oracle; by themselves, and
//! with whatever else hides or drops.

mod common;

use common::On;
use signflash_core::suite::{Case, Extent, run_case};
use signflash_core::{Dtype, Slopes};
use signflash_kernels::{Gpu, Interpreted};

use Extent::{Each, One};

/// Runs a case in Hopper's own kernels, and in portable ones.
fn check(name: &str, case: Case) {
    let settings = [(Gpu::HOPPER, false), (Gpu::HOPPER, true), (Gpu::SMALL, true)];
    for (seed, (gpu, deterministic)) in (0..).zip(settings) {
        let report = run_case(name, &case, &On::all(Interpreted { gpu, seed, deterministic }));
        assert_eq!((report.ran, report.failures.len()), (1, 0), "{report}");
    }
}

fn case(seqlen_q: usize, seqlen_k: usize) -> Case {
    Case::new(seqlen_q, seqlen_k).heads(2, 1).dtypes(&[Dtype::Bf16])
}

#[test]
fn a_mask_for_each_query() {
    check("mask", case(70, 98).mask([One, Each, Each]));
}

#[test]
fn a_mask_of_an_odd_number_of_keys() {
    check("odd mask", case(33, 131).mask([Each, One, Each]).dropout(0.2));
}

#[test]
fn padding() {
    check("padding", case(70, 200).mask([Each, One, One]).dropout(0.2));
}

#[test]
fn causal_padding() {
    check("causal padding", case(140, 140).mask([Each, One, One]).causal());
}

#[test]
fn a_bias_for_each_query() {
    check("bias", case(70, 98).bias(Dtype::Bf16, [One, Each, Each]));
}

/// Rows of whole pieces of 16 bytes: the copy engine brings them.
#[test]
fn a_bias_in_boxes() {
    check("boxes", case(150, 264).head_dim(64).bias(Dtype::Bf16, [One, Each, Each]).dropout(0.2));
    let of_batches = case(70, 136).batch(2).heads(2, 2).bias(Dtype::F16, [Each, One, Each]);
    check("boxes of batches", of_batches.causal().softmax_scale(-0.2));
}

#[test]
fn a_bias_in_boxes_of_bent_scores() {
    let case = case(40, 200).head_dim(128).bias(Dtype::Bf16, [One, Each, Each]);
    check("boxes and all", case.clone().softcap(4.0).alibi(Slopes::PerHead).sinks().mask([Each, One, One]));
    check("boxes of a window", case.window(40, 3).dropout(0.2));
}

#[test]
fn a_bias_of_f32_for_all_heads_and_batches() {
    check("f32 bias", case(70, 131).batch(2).bias(Dtype::F32, [One, One, Each]).dropout(0.2).dlse());
}

#[test]
fn a_bias_of_heads_of_128_columns_for_all_batches() {
    check("128 columns", case(70, 98).batch(3).head_dim(128).bias(Dtype::F16, [One, Each, Each]));
}

#[test]
fn a_bias_and_a_mask_of_heads_of_another_width_for_v() {
    let case = case(40, 70).head_dim(192).head_dim_v(128).dropout(0.2);
    check("192 and 128 columns", case.bias(Dtype::Bf16, [Each, Each, Each]).mask([One, One, Each]));
}

#[test]
fn a_bias_for_all_queries() {
    check("key bias", case(140, 70).batch(2).bias(Dtype::F16, [Each, One, One]).causal().dropout(0.2));
}

#[test]
fn packed_sequences_with_a_bias_and_a_mask() {
    let case = case(0, 0).packed(&[20, 0, 67], &[34, 5, 70]).dropout(0.2);
    check("packed", case.clone().bias(Dtype::Bf16, [One, Each, Each]).mask([Each, One, One]));
    check("packed, a bias for all queries", case.causal().bias(Dtype::F32, [One, One, One]));
}
