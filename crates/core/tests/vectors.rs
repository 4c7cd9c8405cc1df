//! FlashAttention-2's own results on an H200 are within the contract of our oracle, and its mask is ours.

use signflash_core::suite::vectors::{Vector, directory};
use signflash_core::suite::{Tolerance, Values};
use signflash_core::{Dtype, Element, Inputs, TensorRef, bf16, f16, oracle};

const FILES: [&str; 6] = [
    "a_f16_d64_p10",
    "b_bf16_d128_p30_ragged",
    "c_f16_d64_p20_causal",
    "d_bf16_d64_p17_cross",
    "e_f16_d32_p50_causal",
    "f_f16_d128_p00",
];

fn vector(file: &str) -> Vector {
    Vector::load(&directory().join(format!("{file}.safetensors"))).unwrap_or_else(|error| panic!("{error}"))
}

fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(got, want)| got - want)) / norm(&mut want.iter().copied())
}

fn assert_within<T: Element>(file: &str, vector: &Vector) {
    let (problem, shape) = (&vector.problem, vector.problem.shape());
    let exact = |x: &[f64]| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<_>>();
    let Values { q, k, v, dout, .. } = &vector.inputs;
    let (q, k, v, dout) = (exact(q), exact(k), exact(v), exact(dout));
    let inputs = Inputs {
        q: TensorRef::bshd(&q, shape.q()),
        k: TensorRef::bshd(&k, shape.k()),
        v: TensorRef::bshd(&v, shape.k()),
    };
    let forward = oracle::forward(problem, &inputs).expect("the file's tensors fit");
    let dout = TensorRef::bshd(&dout, shape.q());
    let gradients =
        oracle::backward(problem, &inputs, &dout, None, &forward).expect("the file's tensors fit");
    let bounds = Tolerance::of(T::DTYPE, 0.0);
    let pairs = [
        ("out", &vector.out, &forward.out, bounds.out),
        ("lse", &vector.lse, &forward.lse, bounds.lse),
        ("dq", &vector.dq, &gradients.dq, bounds.gradients),
        ("dk", &vector.dk, &gradients.dk, bounds.gradients),
        ("dv", &vector.dv, &gradients.dv, bounds.gradients),
    ];
    for (name, got, want, bound) in pairs {
        let error = relative_error(got, want);
        assert!(error <= bound, "{file} {name}: error {error:.2e} exceeds {bound:.2e}");
    }
}

#[test]
fn flash_attention_2_is_within_the_contract_of_the_oracle() {
    for file in FILES {
        let vector = vector(file);
        match vector.dtype {
            Dtype::F16 => assert_within::<f16>(file, &vector),
            Dtype::Bf16 => assert_within::<bf16>(file, &vector),
            dtype => panic!("{file} is of {dtype}"),
        }
    }
}

#[test]
fn not_one_bit_of_flash_attention_2s_mask_differs() {
    let mut compared = 0;
    for file in FILES {
        let vector = vector(file);
        let shape = *vector.problem.shape();
        let (Some(dropped), Some(rule)) = (vector.dropped, vector.problem.keep_rule()) else {
            assert_eq!(file, "f_f16_d128_p00");
            continue;
        };
        for (row_of_all, dropped) in dropped.chunks(shape.seqlen_k).enumerate() {
            let (i, head_of_all) = (row_of_all % shape.seqlen_q, row_of_all / shape.seqlen_q);
            let (batch, head) = (head_of_all / shape.num_heads, head_of_all % shape.num_heads);
            for j in vector.problem.visible_keys(i) {
                assert_eq!(dropped[j], !rule.keep(batch, head, i, j), "{file} at {:?}", [batch, head, i, j]);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 991_980, "all visible entries of the five files with dropout");
}

#[test]
fn a_file_that_is_none_says_so() {
    let missing = Vector::load(&directory().join("missing.safetensors")).unwrap_err().to_string();
    assert!(missing.contains("missing.safetensors"), "{missing}");
    let readme = Vector::load(&directory().join("README.md")).unwrap_err().to_string();
    assert!(readme.contains("README.md"), "{readme}");
}
