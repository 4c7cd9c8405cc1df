//! `signflash attend` on real files.

use crate::common::{Dir, VECTORS, data, fail, input, read, signflash, succeed, tensor, vector, write};
use signflash_cli::files::{Data, FileElement, Tensor};
use signflash_core::{SignBit, bf16, f16};
use std::fs;

#[test]
fn every_vector_of_flash_attention_2_verifies() {
    for name in VECTORS {
        let table = succeed(&["attend", &vector(name), "--verify"]);
        for tensor in ["out", "lse", "dq", "dk", "dv"] {
            let row = table.lines().find(|line| line.contains(&format!("│ {tensor} ")));
            let row = row.unwrap_or_else(|| panic!("{name} has no row {tensor}:\n{table}"));
            assert!(row.contains(" ok │") && row.matches('e').count() >= 5, "{name}: {row}");
        }
        if !name.ends_with("p00") {
            assert!(table.contains("wrong sign bits: 0 of "), "{name}:\n{table}");
            assert!(table.contains("against the file's signbit"), "{name}:\n{table}");
        }
    }
}

#[test]
fn every_instruction_set_verifies() {
    for isa in signflash_cpu::Isa::available() {
        let table = succeed(&["attend", &vector(VECTORS[3]), "--verify", "--isa", isa.name()]);
        assert!(table.contains("wrong sign bits: 0 of "), "{isa}:\n{table}");
    }
}

#[test]
fn a_wrong_seed_fails_the_verification_and_says_what_failed() {
    let ran = fail(
        &["attend", &vector(VECTORS[4]), "--verify", "--seed", "2"],
        1,
        &["verification failed", "out vs file", "wrong sign bits"],
    );
    assert!(ran.stdout.contains("FAILED"), "{}", ran.stdout);
    // Right by the formulas, for the seed that was asked for.
    assert!(!ran.stderr.contains("vs f64"), "{}", ran.stderr);
}

#[test]
fn a_wrong_reference_is_told_apart_from_a_wrong_result() {
    let dir = Dir::new();
    let mut archive = read(vector(VECTORS[4]));
    if let Some(Data::F16(out)) = archive.tensors.get_mut("out").map(|out| &mut out.data) {
        out.iter_mut().for_each(|x| *x = f16::from_f32(1.01 * x.to_f32()));
    }
    write(dir.path("off.safetensors"), &archive);
    let ran = fail(&["attend", &dir.file("off.safetensors"), "--verify"], 1, &["1 of ", "out vs file"]);
    assert!(ran.stdout.contains("FAILED; the file's is off"), "{}", ran.stdout);
}

#[test]
fn one_flipped_sign_bit_is_found() {
    let dir = Dir::new();
    let mut archive = read(vector(VECTORS[4]));
    if let Some(Data::U8(bits)) = archive.tensors.get_mut("signbit").map(|bits| &mut bits.data) {
        bits[100 * 512 + 7] ^= 1; // visible
        bits[7 * 512 + 100] ^= 1; // not visible: does not count
    }
    write(dir.path("flipped.safetensors"), &archive);
    let ran =
        fail(&["attend", &dir.file("flipped.safetensors"), "--verify"], 1, &["1 of ", "wrong sign bits"]);
    assert!(ran.stdout.contains("wrong sign bits: 1 of 131328 visible"), "{}", ran.stdout);
}

#[test]
fn results_carry_their_settings_and_are_the_same_for_any_number_of_threads() {
    let dir = Dir::new();
    let files = ["1", "2", "5"].map(|threads| {
        let out = dir.file(&format!("out{threads}.safetensors"));
        let arguments = ["attend", &vector(VECTORS[2]), "-o", &out, "--probs", "--threads", threads];
        assert!(succeed(&arguments).contains("wrote dk, dq, dv, lse, out, probs"));
        fs::read(out).unwrap()
    });
    assert!(files[0] == files[1] && files[1] == files[2]);
    let out = read(dir.path("out1.safetensors"));
    let expected = [("causal", "true"), ("dropout_p", "0.2"), ("seed", "2024"), ("scale_rule", "nominal")];
    for (key, value) in expected {
        assert_eq!(out.metadata[key], value);
    }
    assert_eq!(out.tensors["probs"].shape, [2, 2, 384, 384]);
    assert_eq!(out.tensors["lse"].shape, [2, 2, 384]);
}

#[test]
fn probs_say_in_their_sign_bits_what_the_file_says_was_dropped() {
    let dir = Dir::new();
    let out = dir.file("out.npz");
    succeed(&["attend", &vector(VECTORS[0]), "-o", &out, "--probs"]);
    let (input, output) = (read(vector(VECTORS[0])), read(out));
    let probs = f16::borrow(&output.tensors["probs"].data).unwrap();
    let Data::U8(signbit) = &input.tensors["signbit"].data else { panic!("signbit is u8") };
    assert!(probs.iter().zip(signbit).all(|(p, &dropped)| p.is_dropped() == (dropped != 0)));
}

#[test]
fn both_formats_give_the_same_results() {
    let dir = Dir::new();
    for name in [VECTORS[3], VECTORS[4]] {
        let (npz, tensors, again) =
            (dir.file("in.npz"), dir.file("a.safetensors"), dir.file("b.safetensors"));
        write(&npz, &read(vector(name)));
        assert_eq!(read(&npz).tensors, read(vector(name)).tensors);
        succeed(&["attend", &vector(name), "-o", &tensors]);
        succeed(&["attend", &npz, "-o", &again]);
        assert_eq!(fs::read(&tensors).unwrap(), fs::read(&again).unwrap(), "{name}");
        let out = dir.file("out.npz");
        succeed(&["attend", &npz, "-o", &out]);
        assert_eq!(read(&out).tensors, read(&tensors).tensors, "{name}");
    }
}

#[test]
fn what_numpy_writes_is_read() {
    for name in ["numpy_savez.npz", "numpy_savez_compressed.npz", "numpy_bf16_bits.npz"] {
        let table = succeed(&["attend", &data(name), "--verify", "--probs"]);
        assert!(table.contains("wrong sign bits: 0 of "), "{name}:\n{table}");
    }
    assert!(
        succeed(&["attend", &data("numpy_savez.npz")])
            .contains("f32, causal, softmax_scale 0.35355339059327373, dropout_p 0.25, seed 7")
    );
    assert!(succeed(&["attend", &data("numpy_bf16_bits.npz")]).contains("bf16, softmax_scale"));
}

#[test]
fn bf16_survives_npz() {
    let dir = Dir::new();
    let archive = input::<bf16>([1, 2, 5, 8], [1, 1, 7, 8], &[]);
    write(dir.path("in.npz"), &archive);
    let back = read(dir.path("in.npz"));
    assert_eq!(back.tensors, archive.tensors);
    assert_eq!(back.metadata["dtype"], "bf16");
    succeed(&["attend", &dir.file("in.npz"), "-o", &dir.file("out.npz")]);
    assert_eq!(read(dir.path("out.npz")).tensors["out"].data.name(), "bf16");
}

/// (b, h, s, d) to (b, s, h, d) or back.
fn exchanged(tensor: &Tensor) -> Tensor {
    let [b, h, s, d] = tensor.shape[..] else { return tensor.clone() };
    let data = f32::borrow(&tensor.data).unwrap();
    let mut moved = Vec::new();
    for b in 0..b {
        for s in 0..s {
            (0..h).for_each(|h_| moved.extend(&data[((b * h + h_) * s_len(tensor) + s) * d..][..d]));
        }
    }
    Tensor { shape: vec![b, s, h, d], data: f32::wrap(moved) }
}

fn s_len(tensor: &Tensor) -> usize {
    tensor.shape[2]
}

#[test]
fn the_layout_changes_nothing_but_the_order() {
    let dir = Dir::new();
    let mut archive = input::<f32>([2, 4, 19, 8], [2, 2, 33, 8], &[("dropout_p", "0.3"), ("causal", "1")]);
    archive.tensors.insert("dlse".into(), tensor::<f32>(&[2, 4, 19], 5));
    write(dir.path("bhsd.safetensors"), &archive);
    archive.tensors.values_mut().for_each(|tensor| *tensor = exchanged(tensor));
    write(dir.path("flag.safetensors"), &archive);
    archive.metadata.insert("layout".into(), "bshd".into());
    write(dir.path("file.safetensors"), &archive);
    let run = |name: &str, flags: &[&str]| {
        let out = dir.file(&format!("out_{name}"));
        let input = dir.file(name);
        succeed(&[&["attend", &input, "-o", &out, "--verify", "--probs"], flags].concat());
        read(out)
    };
    let expected = run("bhsd.safetensors", &[]);
    for other in [run("flag.safetensors", &["--layout", "bshd"]), run("file.safetensors", &[])] {
        assert_eq!(other.metadata["layout"], "bshd");
        for (name, tensor) in &expected.tensors {
            let same_order = ["lse", "probs"].contains(&name.as_str());
            let tensor = if same_order { tensor.clone() } else { exchanged(tensor) };
            assert_eq!(other.tensors[name], tensor, "{name}");
        }
    }
}

#[test]
fn a_gradient_of_lse_is_used() {
    let dir = Dir::new();
    let run = |name: &str, dlse: Option<Tensor>| {
        let mut archive = input::<f32>([2, 4, 9, 8], [2, 2, 6, 8], &[("dropout_p", "0.3"), ("causal", "1")]);
        archive.tensors.extend(dlse.map(|dlse| ("dlse".to_string(), dlse)));
        write(dir.path(name), &archive);
        let out = dir.file("out.npz");
        let table = succeed(&["attend", &dir.file(name), "-o", &out, "--verify"]);
        assert!(!table.contains("FAILED"), "{name}:\n{table}");
        read(out).tensors
    };
    let (without, dlse) = (run("without.npz", None), tensor::<f32>(&[2, 4, 9], 5));
    for with in [run("with.npz", Some(dlse.clone())), run("with.safetensors", Some(dlse))] {
        let same: Vec<_> = with.keys().filter(|name| with[*name] == without[*name]).cloned().collect();
        assert_eq!(same, ["dv", "lse", "out"]);
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let off = succeed(&["attend", &vector(VECTORS[4]), "--causal=false", "--dropout-p", "0"]);
    assert!(off.contains("f16, softmax_scale") && off.contains("no dropout"), "{off}");
    let on = succeed(&["attend", &vector(VECTORS[0]), "--causal", "--scale-rule", "unbiased"]);
    assert!(on.contains("f16, causal, softmax_scale 0.125, dropout_p 0.1, seed 123, offset 0"), "{on}");
    assert!(on.contains("times 1.113043"), "{on}");
}

#[test]
fn queries_that_see_no_key_give_zeros_and_minus_infinity() {
    let dir = Dir::new();
    let settings = [("causal", "True"), ("dropout_p", "0.5")];
    write(dir.path("in.safetensors"), &input::<f32>([1, 1, 9, 4], [1, 1, 3, 4], &settings));
    let table =
        succeed(&["attend", &dir.file("in.safetensors"), "--verify", "--probs", "-o", &dir.file("out.npz")]);
    assert!(table.contains("wrong sign bits: 0 of 6 visible"), "{table}");
    let out = read(dir.path("out.npz"));
    let lse = f32::borrow(&out.tensors["lse"].data).unwrap();
    assert!(lse[..6].iter().all(|&x| x == f32::NEG_INFINITY) && lse[6..].iter().all(|x| x.is_finite()));
    assert!(f32::borrow(&out.tensors["out"].data).unwrap()[..24].iter().all(|&x| x == 0.0));
}

#[test]
fn empty_problems_are_no_problem() {
    let dir = Dir::new();
    for (q, k) in [([0, 2, 4, 8], [0, 2, 4, 8]), ([1, 2, 0, 8], [1, 2, 4, 8]), ([1, 2, 4, 8], [1, 2, 0, 8])] {
        write(dir.path("in.safetensors"), &input::<f32>(q, k, &[("dropout_p", "0.5")]));
        succeed(&[
            "attend",
            &dir.file("in.safetensors"),
            "--verify",
            "--probs",
            "-o",
            &dir.file("out.safetensors"),
        ]);
        assert_eq!(read(dir.path("out.safetensors")).tensors["dk"].shape, k);
    }
}

#[test]
fn quiet_says_nothing_but_results() {
    let dir = Dir::new();
    assert_eq!(succeed(&["attend", &vector(VECTORS[4]), "-q", "-o", &dir.file("out.npz")]), "");
    assert!(succeed(&["attend", &vector(VECTORS[4]), "--quiet"]).contains("not finite"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_signflash"))
        .args(["attend", &vector(VECTORS[4])])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["attend", "--help"], &["bench", "-h"], &["--version"]] {
        assert!(!succeed(arguments).is_empty());
    }
    assert_eq!(signflash(&[]).code, 2);
    assert!(succeed(&["info"]).contains("portable"));
}
