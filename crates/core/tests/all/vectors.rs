//! FlashAttention-2's own results on an H200 are within the contract of our oracle, and its dropout mask is ours.

use signflash_core::judge::{Backward, Truth};
use signflash_core::suite::Values;
use signflash_core::suite::vectors::{Vector, directory};
use signflash_core::{Bounds, Dtype, Element, Inputs, TensorName, TensorRef, bf16, f16};

const FILES: [&str; 9] = [
    "a_f16_d64_p10",
    "b_bf16_d128_p30_ragged",
    "c_f16_d64_p20_causal",
    "d_bf16_d64_p17_cross",
    "e_f16_d32_p50_causal",
    "f_f16_d128_p00",
    "p1_f16_d64_packed_p10",
    "p2_bf16_d128_packed_causal_gqa_p17",
    "w1_f16_d64_window_p20",
];

fn vector(file: &str) -> Vector {
    Vector::load(&directory().join(format!("{file}.safetensors"))).unwrap_or_else(|error| panic!("{error}"))
}

fn assert_within<T: Element>(file: &str, vector: &Vector) {
    let shape = vector.problem.shape();
    let exact = |x: &[f64]| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<_>>();
    let Values { q, k, v, dout, .. } = &vector.inputs;
    let (q, k, v, dout) = (exact(q), exact(k), exact(v), exact(dout));
    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    );
    let backward = Backward { dout: TensorRef::bshd(&dout, shape.out()), dlse: None };
    let truth = Truth::of(&vector.problem, &inputs, Some(backward)).expect("the file's tensors fit");
    let tensors = [
        (TensorName::Out, &vector.out),
        (TensorName::Lse, &vector.lse),
        (TensorName::Dq, &vector.dq),
        (TensorName::Dk, &vector.dk),
        (TensorName::Dv, &vector.dv),
    ];
    for (name, got) in tensors {
        let distance = truth.tensor(name).expect("of both passes").distance(|n| got[n]);
        let (error, bound) = (distance.error(), distance.bound());
        assert!(distance.is_right(), "{file} {name}: error {error:.2e} exceeds {bound:.2e}");
        // These are ordinary numbers: but for lse, of which there are few, the bound is the contract's own.
        assert!(
            name == TensorName::Lse || bound == Bounds::of(T::DTYPE).of_tensor(name),
            "{file} {name}: {bound}"
        );
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
fn not_one_bit_of_flash_attention_2s_dropout_mask_differs() {
    let mut compared = 0;
    for file in FILES {
        let vector = vector(file);
        let (Some(dropped), Some(rule)) = (vector.dropped, vector.problem.keep_rule()) else {
            assert_eq!(file, "f_f16_d128_p00");
            continue;
        };
        let shape @ [.., rows, columns] = vector.problem.probs();
        assert_eq!(dropped.len(), shape.into_iter().product::<usize>(), "{file}");
        for (sequence, head, i) in vector.problem.rows() {
            let row = ((sequence.stream * shape[1] + head) * rows + i) * columns;
            for j in vector.problem.visibility_in(&sequence).keys_of(i as i64).positions() {
                let expected = !rule.keep(sequence.stream, head, i, j);
                assert_eq!(dropped[row + j], expected, "{file} at {:?}", [sequence.stream, head, i, j]);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 991_980 + 95_550 + 72_312 + 63_762, "all visible entries of the files with dropout");
}

#[test]
fn flash_attention_2s_windows_and_packed_sequences_show_what_ours_do() {
    let mut compared = 0;
    for file in FILES {
        let vector = vector(file);
        let Some(visible) = vector.visible else { continue };
        let shape @ [.., rows, columns] = vector.problem.probs();
        let mut ours = vec![false; shape.into_iter().product()];
        for (sequence, head, i) in vector.problem.rows() {
            let row = ((sequence.stream * shape[1] + head) * rows + i) * columns;
            for j in vector.problem.visibility_in(&sequence).keys_of(i as i64).positions() {
                ours[row + j] = true;
            }
        }
        assert!(ours == visible, "{file}");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn a_file_that_is_none_says_so() {
    let missing = Vector::load(&directory().join("missing.safetensors")).unwrap_err().to_string();
    assert!(missing.contains("missing.safetensors"), "{missing}");
    let readme = Vector::load(&directory().join("README.md")).unwrap_err().to_string();
    assert!(readme.contains("README.md"), "{readme}");
}
