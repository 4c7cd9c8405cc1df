//! What concerns GPUs, on machines with and without one.

use crate::common::{VECTORS, fail, signflash, vector};
use signflash_cuda::Device;

/// Whether this machine has one; said aloud if not, and a failure where `SIGNFLASH_REQUIRE_GPU=1`.
fn has_gpu() -> bool {
    match Device::open(0) {
        Ok(_) => true,
        Err(reason) => {
            assert_ne!(
                std::env::var("SIGNFLASH_REQUIRE_GPU").as_deref(),
                Ok("1"),
                "a GPU is required: {reason}"
            );
            false
        }
    }
}

#[test]
fn without_a_gpu_the_error_is_a_sentence_and_nothing_else_computes() {
    if has_gpu() {
        return;
    }
    for command in [vec!["attend", "--device", "cuda"], vec!["bench", "--device", "cuda", "--dtype", "bf16"]]
    {
        let input = vector(VECTORS[0]);
        let file = if command[0] == "attend" { vec![input.as_str()] } else { vec![] };
        let ran = signflash(&[command, file].concat());
        assert_eq!(ran.code, 5, "{}", ran.stderr);
        assert!(
            ran.stderr.starts_with("signflash: error: --device: ") && ran.stdout.is_empty(),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let info = signflash(&["info"]);
    assert_eq!(info.code, 0);
    assert!(info.stdout.lines().any(|line| line.starts_with("cuda ")), "{}", info.stdout);
}

#[test]
fn a_gpu_agrees_with_the_formulas_on_every_vector() {
    if !has_gpu() {
        return;
    }
    for name in VECTORS {
        for flags in [&["--device", "cuda"][..], &["--device", "cuda:0", "--deterministic"]] {
            let input = vector(name);
            let ran = signflash(&[&["attend", input.as_str(), "--verify"], flags].concat());
            assert_eq!(ran.code, 0, "{name}: {}{}", ran.stdout, ran.stderr);
        }
    }
}

#[test]
fn the_table_of_kernels_needs_no_gpu() {
    let ran = signflash(&["kernels", "--head-dim", "64,128", "--dropout-p", "0.1", "--causal"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for expected in [
        "sf_fwd90_bf16_d128_causal_drop_",
        "sf_bwd90_keys_bf16_d128_causal_drop_",
        "sf_bwd_keys_bf16_d64_causal_drop_",
        "_dq4",
        "sm_90a",
        "forward: out and lse by Hopper's own kernel: bf16, head_dim 128, causal, dropout. 2 warpgroups of a block",
        "portable-keys: dk, dv and sums of dq, four floats at a time, by the portable kernel: bf16, head_dim 64, causal",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    let small = signflash(&["kernels", "--gpu", "small", "--head-dim", "256"]);
    assert!(!small.stdout.contains("sm_90"), "{}", small.stdout);
    let why = "everything: the GPU's compute capability is 8.6, and Hopper's own kernels need 9.0.";
    assert!(small.stdout.contains(why), "{}", small.stdout);
}

#[test]
fn a_head_dim_that_hopper_does_not_take_is_told_why() {
    let ran = signflash(&["kernels", "--head-dim", "41"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let why = "The portable kernels compute everything: head_dim is 41, and rows are written in pieces of 8.";
    assert!(ran.stdout.contains(why), "{}", ran.stdout);
}

#[test]
fn the_table_of_kernels_is_of_windows_and_packed_sequences_when_asked() {
    let ran = signflash(&["kernels", "--head-dim", "128", "--window", "255,0", "--dropout-p", "0.1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for expected in
        ["sf_fwd90_bf16_d128_window_drop_", "sf_bwd90_keys_bf16_d128_window_drop_", "window, dropout."]
    {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("sf_tiles"), "{}", ran.stdout);
    let alone = signflash(&["kernels", "--head-dim", "128"]);
    let packed = signflash(&["kernels", "--head-dim", "128", "--packed"]);
    assert_eq!(packed.code, 0, "{}", packed.stderr);
    for expected in ["sf_tiles", "_packed", "  tiles: "] {
        assert!(
            packed.stdout.contains(expected) && !alone.stdout.contains(expected),
            "{expected}: {}",
            packed.stdout
        );
    }
    let ran = signflash(&["kernels", "--head-dim", "128", "--packed", "--ptx", "tiles"]);
    assert!(ran.stdout.starts_with("// signflash: sf_tiles"), "{}", ran.stdout);
    fail(&["kernels", "--head-dim", "128", "--ptx", "tiles"], 2, &["--ptx", "--packed", "tiles"]);
}

#[test]
fn a_head_dim_of_v_is_in_the_table_of_kernels() {
    let ran = signflash(&["kernels", "--head-dim", "192", "--head-dim-v", "128"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for expected in [
        "sf_fwd90_bf16_d192v128_",
        "sf_probs90_bf16_d192_",
        "head_dim 192, 128 of v\n  forward: out and lse by Hopper's own kernel: bf16, head_dim 192 and 128 of v.",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    let odd = signflash(&["kernels", "--head-dim", "64", "--head-dim-v", "33"]);
    let why =
        "The portable kernels compute everything: head_dim of v is 33, and rows are written in pieces of 8.";
    assert!(odd.stdout.contains(why), "{}", odd.stdout);
}

#[test]
fn a_kernel_is_printed_as_ptx() {
    let ran = signflash(&["kernels", "--head-dim", "128", "--ptx", "forward"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("// signflash: sf_fwd90_bf16_d128_"), "{}", &ran.stdout[..100]);
    assert!(ran.stdout.contains("wgmma.mma_async.sync.aligned"));
    let ran = signflash(&["kernels", "--head-dim", "128", "--ptx", "keys"]);
    assert!(
        ran.stdout.contains("cp.reduce.async.bulk") && ran.stdout.contains("stmatrix"),
        "Hopper's backward"
    );
    let ran = signflash(&["kernels", "--head-dim", "128", "--ptx", "portable-forward"]);
    assert!(ran.stdout.contains("mma.sync.aligned.m16n8k16"));
}

#[test]
fn formats_without_kernels_are_refused_by_name() {
    let ran = signflash(&["kernels", "--dtype", "f32"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("--dtype must be f16 or bf16") && ran.stderr.contains("got f32"),
        "{}",
        ran.stderr
    );
}
