//! What joins scores, out of a file: softcap, alibi_slopes, bias, mask, sinks, and v of another head_dim.

use crate::common::{Dir, fail, input, read, succeed, tensor, write};
use signflash_cli::files::{Archive, Data, FileElement, Tensor};
use signflash_core::{bf16, f16};

const Q: [usize; 4] = [2, 4, 9, 16];
const K: [usize; 4] = [2, 2, 13, 16];

/// Everything at once, as (batch, heads, seqlen, head_dim).
fn everything<T: FileElement>(bias: Tensor, settings: &[(&str, &str)]) -> Archive {
    let mut archive = input::<T>(Q, K, settings);
    let mut insert = |name: &str, tensor: Tensor| archive.tensors.insert(name.to_string(), tensor);
    insert("v", tensor::<T>(&[2, 2, 13, 24], 3));
    insert("dout", tensor::<T>(&[2, 4, 9, 24], 4));
    insert("bias", bias);
    insert("sinks", tensor::<f32>(&[4], 6));
    insert("alibi_slopes", Tensor { shape: vec![4], data: Data::F32(vec![0.1, 0.2, 0.3, 0.4]) });
    let keys = (0..2 * 13).map(|n| u8::from(n < 13 || n % 13 < 7)).collect();
    insert("mask", Tensor { shape: vec![2, 1, 1, 13], data: Data::U8(keys) });
    archive
}

#[test]
fn all_of_them_together_verify_and_their_gradients_are_results() {
    let dir = Dir::new();
    let settings = [("softcap", "2.5"), ("dropout_p", "0.2"), ("window", "6,-1")];
    let biases = [
        tensor::<f32>(&[1, 4, 9, 13], 5),
        tensor::<f16>(&[2, 1, 1, 13], 5),
        tensor::<bf16>(&[1, 1, 9, 13], 5),
    ];
    for bias in biases {
        let (shape, dtype) = (bias.shape.clone(), bias.data.name());
        write(dir.path("in.safetensors"), &everything::<f32>(bias, &settings));
        let said =
            succeed(&["attend", &dir.file("in.safetensors"), "--verify", "-o", &dir.file("out.safetensors")]);
        assert!(said.contains("dbias") && said.contains("dsinks"), "{said}");
        let results = read(dir.path("out.safetensors"));
        let dbias = &results.tensors["dbias"];
        assert_eq!((&dbias.shape, dbias.data.name()), (&shape, dtype));
        assert_eq!(results.tensors["dsinks"].shape, [4]);
        assert_eq!(results.tensors["out"].shape, [2, 4, 9, 24]);
        assert_eq!(results.metadata["softcap"], "2.5");
    }
    let said = succeed(&["attend", &dir.file("in.safetensors")]);
    for what in ["softcap 2.5", "alibi_slopes", "a bias", "a mask", "sinks", "dbias", "dsinks"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    succeed(&[
        "attend",
        &dir.file("in.safetensors"),
        "--plot",
        &dir.file("map.png"),
        "--head",
        "1",
        "--batch",
        "1",
    ]);
}

#[test]
fn a_gradient_of_a_bias_that_is_wrong_is_found() {
    let dir = Dir::new();
    let mut archive = everything::<f32>(tensor::<f32>(&[1, 4, 1, 13], 5), &[]);
    write(dir.path("in.npz"), &archive);
    succeed(&["attend", &dir.file("in.npz"), "-o", &dir.file("out.npz")]);
    let mut results = read(dir.path("out.npz")).tensors;
    for name in ["dbias", "dsinks"] {
        archive.tensors.insert(name.into(), results.remove(name).unwrap());
    }
    write(dir.path("in.npz"), &archive);
    succeed(&["attend", &dir.file("in.npz"), "--verify"]);
    for name in ["dbias", "dsinks"] {
        let mut wrong = archive.clone();
        let Some(Data::F32(numbers)) = wrong.tensors.get_mut(name).map(|tensor| &mut tensor.data) else {
            unreachable!()
        };
        numbers[2] += 0.5;
        write(dir.path("in.npz"), &wrong);
        fail(&["attend", &dir.file("in.npz"), "--verify"], 1, &[&format!("{name} vs file")]);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = Dir::new();
    let cases: [(&str, Tensor, &[&str]); 7] = [
        ("bias", tensor::<f32>(&[1, 3, 9, 13], 5), &["bias", "dimension 1", "1 or 4"]),
        ("bias", tensor::<f32>(&[9, 13], 5), &["bias", "[9, 13]", "four dimensions"]),
        (
            "bias",
            Tensor { shape: vec![1, 1, 1, 13], data: Data::U8(vec![0; 13]) },
            &["bias", "u8", "f32, f16 or bf16"],
        ),
        ("mask", tensor::<f32>(&[1, 1, 1, 13], 5), &["mask", "f32", "bool or u8"]),
        ("mask", Tensor { shape: vec![1, 1, 9, 12], data: Data::U8(vec![1; 108]) }, &["mask", "dimension 3"]),
        ("alibi_slopes", tensor::<f32>(&[3], 5), &["alibi_slopes", "[3]", "[4]"]),
        ("sinks", tensor::<f16>(&[4], 5), &["sinks", "f16", "f32"]),
    ];
    for (name, wrong, said) in cases {
        let mut archive = input::<f32>(Q, K, &[]);
        archive.tensors.insert(name.into(), wrong);
        write(dir.path("in.safetensors"), &archive);
        fail(&["attend", &dir.file("in.safetensors")], 2, said);
    }
    write(dir.path("in.safetensors"), &input::<f32>(Q, K, &[]));
    fail(
        &["attend", &dir.file("in.safetensors"), "--softcap=-3"],
        2,
        &["--softcap", "positive number, or 0"],
    );
}

/// A sink takes its part of every row, also of one whose window leaves the first keys out.
#[test]
fn pictures_have_the_probabilities_that_probs_have() {
    let dir = Dir::new();
    let mut archive = input::<f32>([1, 1, 8, 16], [1, 1, 8, 16], &[("window", "2,0")]);
    archive.tensors.insert("sinks".into(), Tensor { shape: vec![1], data: Data::F32(vec![3.0]) });
    write(dir.path("in.npz"), &archive);
    succeed(&["attend", &dir.file("in.npz"), "--probs", "-o", &dir.file("out.npz")]);
    succeed(&["plot", &dir.file("out.npz"), "-o", &dir.file("a.png")]);
    succeed(&["attend", &dir.file("in.npz"), "--plot", &dir.file("b.png")]);
    let [a, b] = ["a.png", "b.png"].map(|name| pixels(&dir, name));
    assert!(a == b, "another picture");
}

/// Below the words, which name the file.
fn pixels(dir: &Dir, name: &str) -> Vec<u8> {
    let decoder = png::Decoder::new(crate::common::source(dir.path(name)));
    let mut reader = decoder.read_info().unwrap();
    let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut buffer).unwrap();
    let row = info.line_size;
    buffer[row * (info.height as usize / 4)..row * (info.height as usize * 3 / 4)].to_vec()
}
