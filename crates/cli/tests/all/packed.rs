//! Packed sequences: `cu_seqlens_q` and `cu_seqlens_k` beside q, k and v.

use crate::common::{Dir, fail, input, read, succeed, tensor, write};
use signflash_cli::files::{Archive, Data, FileElement, Tensor};
use signflash_core::{SignBit, bf16, f16};
use std::fs;

const USAGE: i32 = 2;

/// Queries: lengths 3, 0, 40, 1, 17 and 2 behind them. Keys: 5, 2, 33, 0, 17 and 1 behind them.
const Q: [i32; 6] = [0, 3, 3, 43, 44, 61];
const K: [i32; 6] = [0, 5, 7, 40, 40, 57];
const ROWS: [usize; 2] = [63, 58];

fn numbers(numbers: &[i32]) -> Tensor {
    Tensor { shape: vec![numbers.len()], data: Data::I32(numbers.to_vec()) }
}

/// Four heads on two of keys, head_dim 16.
fn packed<T: FileElement>(settings: &[(&str, &str)]) -> Archive {
    let mut archive = input::<T>([0; 4], [0; 4], settings);
    for (name, salt) in [("q", 1), ("dout", 4)] {
        archive.tensors.insert(name.into(), tensor::<T>(&[ROWS[0], 4, 16], salt));
    }
    for (name, salt) in [("k", 2), ("v", 3)] {
        archive.tensors.insert(name.into(), tensor::<T>(&[ROWS[1], 2, 16], salt));
    }
    archive.tensors.insert("cu_seqlens_q".into(), numbers(&Q));
    archive.tensors.insert("cu_seqlens_k".into(), numbers(&K));
    archive
}

const SETTINGS: [&[(&str, &str)]; 4] = [
    &[],
    &[("dropout_p", "0.3"), ("causal", "true"), ("seed", "9")],
    &[("dropout_p", "0.3"), ("window", "7,2"), ("scale_rule", "nominal"), ("layout", "thd")],
    &[("dropout_p", "0.5"), ("window", "3,-1"), ("causal", "true"), ("offset", "64")],
];

#[test]
fn packed_sequences_verify_with_gradients_and_probabilities() {
    let dir = Dir::new();
    for settings in SETTINGS {
        for mut archive in [packed::<f32>(settings), packed::<f16>(settings), packed::<bf16>(settings)] {
            archive.tensors.insert("dlse".into(), tensor::<f32>(&[4, ROWS[0]], 5));
            for (input, output) in [("in.npz", "out.safetensors"), ("in.safetensors", "out.npz")] {
                let (input, output) = (dir.file(input), dir.file(output));
                write(&input, &archive);
                let said = succeed(&["attend", &input, "--verify", "--probs", "-o", &output]);
                assert!(said.contains("wrong sign bits: 0 of "), "{settings:?}: {said}");
                assert_eq!(said.matches(" ok ").count(), 5, "{settings:?}: {said}");
                let results = read(&output);
                let shape = |name: &str| results.tensors[name].shape.clone();
                assert_eq!([shape("out"), shape("dq")], [[63, 4, 16], [63, 4, 16]]);
                assert_eq!([shape("dk"), shape("dv")], [[58, 2, 16], [58, 2, 16]]);
                assert_eq!((shape("lse"), shape("probs")), (vec![4, 63], vec![5, 4, 40, 33]));
                assert_eq!(results.tensors["cu_seqlens_k"], numbers(&K));
                assert_eq!(results.metadata["layout"], "thd");
            }
        }
    }
}

fn f32s(archive: &Archive, name: &str) -> Vec<f32> {
    f32::borrow(&archive.tensors[name].data).unwrap().to_vec()
}

#[test]
fn what_is_left_over_sees_nothing_and_gets_no_gradient() {
    let dir = Dir::new();
    let (input, output) = (dir.file("in.npz"), dir.file("out.npz"));
    write(&input, &packed::<f32>(SETTINGS[1]));
    succeed(&["attend", &input, "-o", &output]);
    let results = read(&output);
    let lse = f32s(&results, "lse");
    // Query 43 has no keys, and queries 61 and 62 no sequence.
    for head in 0..4 {
        for row in [43, 61, 62] {
            assert_eq!(lse[head * 63 + row], f32::NEG_INFINITY);
        }
        assert!(lse[head * 63 + 44].is_finite());
    }
    for (name, from) in [("out", 61 * 64), ("dq", 61 * 64), ("dk", 57 * 32), ("dv", 57 * 32)] {
        assert!(f32s(&results, name)[from..].iter().all(|&x| x == 0.0), "{name}");
    }
}

/// The rows of a tensor of (tokens, heads, head_dim) from one to another.
fn rows(tensor: &Tensor, from: usize, to: usize) -> Tensor {
    let width = tensor.shape[1] * tensor.shape[2];
    let data = f32::borrow(&tensor.data).unwrap()[from * width..to * width].to_vec();
    Tensor { shape: vec![1, to - from, tensor.shape[1], tensor.shape[2]], data: Data::F32(data) }
}

#[test]
fn each_sequence_is_what_it_is_alone() {
    let dir = Dir::new();
    let settings = [("window", "6,3"), ("layout", "bshd")];
    let archive = packed::<f32>(&settings[..1]);
    let (input, output) = (dir.file("in.npz"), dir.file("out.npz"));
    write(&input, &archive);
    succeed(&["attend", &input, "-o", &output]);
    let together = read(&output);
    for n in [0, 2, 4] {
        let at = |numbers: [i32; 6]| [n, n + 1].map(|n| numbers[n] as usize);
        let of = |tensors: &Archive, name: &str| {
            let [from, to] = at(if ["k", "v", "dk", "dv"].contains(&name) { K } else { Q });
            rows(&tensors.tensors[name], from, to)
        };
        let mut alone = crate::common::input::<f32>([0; 4], [0; 4], &settings);
        for name in ["q", "k", "v", "dout"] {
            alone.tensors.insert(name.into(), of(&archive, name));
        }
        write(&input, &alone);
        succeed(&["attend", &input, "-o", &output]);
        let alone = read(&output);
        for name in ["out", "dq", "dk", "dv"] {
            let (expected, got) = (f32s(&alone, name), of(&together, name));
            let got = f32::borrow(&got.data).unwrap();
            let far = expected.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{name} of sequence {n} is {far} off");
        }
    }
}

#[test]
fn the_mask_of_a_sequence_is_that_of_the_batch_of_its_number() {
    let dir = Dir::new();
    let (input, output, keep) = (dir.file("in.npz"), dir.file("out.npz"), dir.file("keep.npy"));
    write(&input, &packed::<f32>(&[("dropout_p", "0.4"), ("seed", "77")]));
    succeed(&["attend", &input, "--probs", "-o", &output]);
    let probs = f32s(&read(&output), "probs");
    for (n, queries, keys) in [(0, 3, 5), (2, 40, 33), (4, 17, 17)] {
        let [first, queries_, keys_] = [n, queries, keys].map(|n: usize| n.to_string());
        succeed(
            &[
                &["dropout-mask", "--heads", "4", "-p", "0.4", "--seed", "77", "--first-batch", &first][..],
                &["--seqlen-q", &queries_, "--seqlen-k", &keys_, "-o", &keep],
            ]
            .concat(),
        );
        let bytes = fs::read(&keep).unwrap();
        let keep = &bytes[bytes.len() - 4 * queries * keys..];
        for head in 0..4 {
            for i in 0..queries {
                for j in 0..keys {
                    let dropped = probs[((n * 4 + head) * 40 + i) * 33 + j].is_dropped();
                    assert_eq!(dropped, keep[(head * queries + i) * keys + j] == 0, "{n} {head} {i} {j}");
                }
            }
        }
    }
}

#[test]
fn numbers_of_32_and_64_bits_say_the_same() {
    let dir = Dir::new();
    let mut results = Vec::new();
    for format in ["in.npz", "in.safetensors"] {
        for wide in [false, true] {
            let mut archive = packed::<f16>(SETTINGS[1]);
            if wide {
                for name in ["cu_seqlens_q", "cu_seqlens_k"] {
                    let tensor = archive.tensors.get_mut(name).unwrap();
                    tensor.data = Data::I64(tensor.data.to_f64().into_iter().map(|x| x as i64).collect());
                }
            }
            write(dir.path(format), &archive);
            assert_eq!(read(dir.path(format)).tensors, archive.tensors);
            succeed(&["attend", &dir.file(format), "--probs", "-o", &dir.file("out.safetensors")]);
            results.push(fs::read(dir.path("out.safetensors")).unwrap());
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn wrong_beginnings_are_named() {
    let dir = Dir::new();
    let refused = |change: &dyn Fn(&mut Archive), needles: &[&str]| {
        let mut archive = packed::<f32>(&[]);
        change(&mut archive);
        for format in ["in.npz", "in.safetensors"] {
            write(dir.path(format), &archive);
            fail(&["attend", &dir.file(format)], USAGE, needles);
        }
    };
    let put = |name: &'static str, tensor: Tensor| {
        move |archive: &mut Archive| drop(archive.tensors.insert(name.into(), tensor.clone()))
    };
    let q = |to: [i32; 6]| put("cu_seqlens_q", numbers(&to));
    refused(&q([1, 3, 3, 43, 44, 61]), &["cu_seqlens_q[0] must be 0, got 1"]);
    refused(&q([0, 3, 2, 43, 44, 61]), &["cu_seqlens_q[2] must be at least 3", "got 2"]);
    refused(&q([0, 3, 3, 43, 44, 64]), &["cu_seqlens_q[5] must be at most 63, the rows of q, got 64"]);
    refused(&q([0, 3, -3, 43, 44, 61]), &["cu_seqlens_q[2] must be from 0", "got -3"]);
    refused(
        &put("cu_seqlens_k", numbers(&[0, 58])),
        &["cu_seqlens_k has shape [2]", "[6] (that of cu_seqlens_q)"],
    );
    refused(&put("cu_seqlens_k", numbers(&[0, 5, 7, 40, 40, 59])), &["cu_seqlens_k[5]", "58", "got 59"]);
    let wide = Tensor { shape: vec![1], data: Data::I64(vec![1 << 40]) };
    refused(&put("cu_seqlens_q", wide), &["cu_seqlens_q[0] must be from 0", "got 1099511627776"]);
    let both = |numbers: Tensor| {
        move |archive: &mut Archive| {
            for name in ["cu_seqlens_q", "cu_seqlens_k"] {
                archive.tensors.insert(name.into(), numbers.clone());
            }
        }
    };
    refused(&both(numbers(&[])), &["cu_seqlens_q[0] must be 0, got nothing"]);
    refused(
        &both(Tensor { shape: vec![2, 1], ..numbers(&[0, 5]) }),
        &["cu_seqlens_q has shape [2, 1]", "one dim"],
    );
    refused(
        &put("cu_seqlens_k", tensor::<f32>(&[6], 1)),
        &["cu_seqlens_k has dtype f32, expected i32 or i64"],
    );
    let without = |name: &'static str| move |archive: &mut Archive| drop(archive.tensors.remove(name));
    refused(&without("cu_seqlens_k"), &["cu_seqlens_k is missing; the file holds cu_seqlens_q", "need both"]);
    refused(&without("cu_seqlens_q"), &["cu_seqlens_q is missing", "need both"]);
    refused(
        &put("q", tensor::<f32>(&[1, 63, 4, 16], 1)),
        &["q has shape [1, 63, 4, 16]", "three dimensions"],
    );
    refused(&put("k", tensor::<f32>(&[58, 2, 8], 1)), &["k has shape [58, 2, 8]", "[58, 2, 16]", "head_dim"]);
    refused(&put("v", tensor::<f32>(&[57, 2, 16], 1)), &["v has shape [57, 2, 16]", "that of k"]);
    refused(&put("dout", tensor::<f32>(&[58, 4, 16], 1)), &["dout has shape [58, 4, 16]", "that of q"]);
    refused(
        &put("dlse", tensor::<f32>(&[63, 4], 1)),
        &["dlse has shape [63, 4]", "[4, 63]", "(heads, tokens)"],
    );
    refused(&put("cu_seqlens", numbers(&[0, 63])), &["tensor `cu_seqlens`", "cu_seqlens_q and cu_seqlens_k"]);
    let setting = |key: &'static str, value: &'static str| {
        move |archive: &mut Archive| drop(archive.metadata.insert(key.into(), value.into()))
    };
    refused(&setting("layout", "bshd"), &["layout must be thd with cu_seqlens_q", "got bshd"]);
    refused(&setting("cu_seqlens_q", "[0, 63]"), &["metadata `cu_seqlens_q` has the name of a tensor"]);
}

#[test]
fn references_of_packed_sequences_are_judged_by_their_shapes() {
    let dir = Dir::new();
    let input = dir.file("in.npz");
    let mut archive = packed::<f32>(&[]);
    archive.tensors.insert("lse".into(), tensor::<f32>(&[63, 4], 1));
    write(&input, &archive);
    fail(&["attend", &input, "--verify"], USAGE, &["lse has shape [63, 4]", "[4, 63]"]);
    archive.tensors.remove("lse");
    archive
        .tensors
        .insert("signbit".into(), Tensor { shape: vec![5, 4, 40, 40], data: Data::U8(vec![0; 32000]) });
    write(&input, &archive);
    fail(&["attend", &input, "--verify"], USAGE, &["signbit has shape [5, 4, 40, 40]", "[5, 4, 40, 33]"]);
}

#[test]
fn a_layout_of_packed_sequences_needs_them() {
    let dir = Dir::new();
    let name = dir.file("in.npz");
    write(&name, &input::<f32>([1, 2, 5, 8], [1, 2, 5, 8], &[]));
    fail(&["attend", &name, "--layout", "thd"], USAGE, &["layout must be bhsd or bshd without", "got thd"]);
}

/// A sequence of one query among thousands: its error is below the bound of the whole tensor.
#[test]
fn a_wrong_sequence_is_found_however_short_it_is() {
    let dir = Dir::new();
    let (name, output) = (dir.file("in.safetensors"), dir.file("out.safetensors"));
    let mut archive = input::<f32>([0; 4], [0; 4], &[]);
    for (tensor_name, salt) in [("q", 1), ("k", 2), ("v", 3)] {
        archive.tensors.insert(tensor_name.into(), tensor::<bf16>(&[1604, 1, 8], salt));
    }
    archive.tensors.remove("dout");
    for cu_seqlens in ["cu_seqlens_q", "cu_seqlens_k"] {
        archive.tensors.insert(cu_seqlens.into(), numbers(&[0, 800, 804, 1604]));
    }
    write(&name, &archive);
    succeed(&["attend", &name, "-o", &output]);
    let mut out = read(&output).tensors.remove("out").unwrap();
    archive.tensors.insert("out".into(), out.clone());
    write(&name, &archive);
    succeed(&["attend", &name, "--verify"]);
    // 3 % of four rows, which are a quarter of a percent of all.
    let Data::Bf16(stored) = &mut out.data else { unreachable!() };
    stored[800 * 8..804 * 8].iter_mut().for_each(|x| *x = bf16::from_f32(1.03 * x.to_f32()));
    archive.tensors.insert("out".into(), out);
    write(&name, &archive);
    let ran = fail(&["attend", &name, "--verify"], 1, &["1 of ", "out vs file"]);
    assert!(ran.stdout.contains("FAILED; first in sequence 1"), "{}", ran.stdout);
}

#[test]
fn a_summary_says_that_they_are_packed() {
    let dir = Dir::new();
    let name = dir.file("in.npz");
    write(&name, &packed::<f32>(SETTINGS[1]));
    let said = succeed(&["attend", &name]);
    assert!(said.contains("f32, 5 packed sequences, causal, softmax_scale 0.25, dropout_p 0.3"), "{said}");
    assert!(said.contains("[63, 4, 16]") && said.contains("[4, 63]"), "{said}");
}

#[test]
fn extreme_numbers_of_sequences_are_no_problem() {
    let dir = Dir::new();
    let (name, output) = (dir.file("in.npz"), dir.file("out.npz"));
    let ones: Vec<i32> = (0..=3000).collect();
    for (cu_seqlens, tokens) in [(&ones[..], 3000), (&[0][..], 7), (&[0, 0, 0][..], 0), (&[0, 0][..], 5)] {
        let mut archive = input::<f32>([0; 4], [0; 4], &[("dropout_p", "0.5"), ("window", "0,0")]);
        for (tensor_name, salt) in [("q", 1), ("k", 2), ("v", 3), ("dout", 4)] {
            archive.tensors.insert(tensor_name.into(), tensor::<f32>(&[tokens, 2, 4], salt));
        }
        for both in ["cu_seqlens_q", "cu_seqlens_k"] {
            archive.tensors.insert(both.into(), numbers(cu_seqlens));
        }
        write(&name, &archive);
        succeed(&["attend", &name, "--verify", "--probs", "-o", &output]);
        assert_eq!(read(&output).tensors["dk"].shape, [tokens, 2, 4]);
    }
}
