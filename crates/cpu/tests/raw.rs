//! Tensors that are not borrowed: interleaved, strided, empty, without memory.

use signflash_core::suite::Values;
use signflash_core::{Dropout, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef};
use signflash_cpu::raw::{RawGradInputs, RawGradients, RawInputs, RawOutputs, RawTensor};
use signflash_cpu::{CpuEngine, Isa};

fn problem(seqlen: usize, head_dim: usize) -> Problem {
    let shape = Shape::new(2, seqlen, seqlen).heads(2, 2).head_dim(head_dim);
    Problem::builder(shape).causal(true).dropout(Dropout::new(0.2, 3, 0).unwrap()).build().unwrap()
}

/// The portable engine, which Miri can run, too, and small sizes for it.
fn engine() -> CpuEngine {
    CpuEngine::new().with_isa(Isa::Portable).unwrap()
}

const SEQLEN: usize = if cfg!(miri) { 3 } else { 70 };
const HEAD_DIM: usize = if cfg!(miri) { 2 } else { 24 };

/// out, lse, dq, dk, dv of borrowed tensors.
type Results = [Vec<f32>; 5];

fn borrowed(problem: &Problem, [q, k, v, dout]: [&[f32]; 4]) -> Results {
    let shape = problem.shape();
    let of = |x| TensorRef::bshd(x, shape.q());
    let inputs = Inputs::new(of(q), of(k), of(v));
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; shape.lse_len()]);
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
    engine().forward(problem, &inputs, &mut outputs).unwrap();
    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; q.len()]);
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    );
    let inputs = GradInputs::new(inputs, of(&out), &lse, of(dout));
    engine().backward(problem, &inputs, &mut gradients).unwrap();
    [out, lse, dq, dk, dv]
}

/// The `index`-th of `count` tensors of q's shape that lie interleaved, row by row, in one buffer: (batch, seqlen,
/// count, heads, head_dim), as packed q, k and v do.
fn interleaved(buffer: *mut f32, index: usize, count: usize, shape: &Shape) -> RawTensor<f32> {
    let row = shape.num_heads * shape.head_dim;
    let strides = [shape.seqlen_q * count * row, count * row, shape.head_dim, 1];
    RawTensor { first: buffer.wrapping_add(index * row), shape: shape.q(), strides }
}

#[test]
fn operands_and_results_may_lie_interleaved_in_one_buffer() {
    let problem = problem(SEQLEN, HEAD_DIM);
    let shape = *problem.shape();
    let values = Values::normal(&shape, 5, 1.0, 1.0);
    let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let operands = [&values.q, &values.k, &values.v, &values.dout].map(|x| f32s(x));
    let expected = borrowed(&problem, [0, 1, 2, 3].map(|n| operands[n].as_slice()));

    // q, k, v, dout, out, dq, dk, dv: eight tensors in one allocation, each between the others' rows.
    let (len, row) = (operands[0].len(), shape.num_heads * shape.head_dim);
    let mut buffer = vec![f32::NAN; 8 * len];
    for (n, operand) in operands.iter().enumerate() {
        for (r, from) in operand.chunks(row).enumerate() {
            buffer[(r * 8 + n) * row..][..row].copy_from_slice(from);
        }
    }
    let first = buffer.as_mut_ptr();
    let [q, k, v, dout, out, dq, dk, dv] = std::array::from_fn(|n| interleaved(first, n, 8, &shape));
    let inputs = RawInputs::new(q, k, v);
    let mut lse = vec![0.0; shape.lse_len()];
    // SAFETY: all eight lie in `buffer`, which nobody else uses meanwhile, and no two share an element.
    unsafe {
        let outputs = RawOutputs::new(out, &mut lse);
        engine().forward_raw(&problem, &inputs, outputs).unwrap();
        let inputs = RawGradInputs::new(inputs, out, &lse, dout);
        engine().backward_raw(&problem, &inputs, RawGradients::new(dq, dk, dv)).unwrap();
    }
    let of = |n: usize| -> Vec<f32> { buffer.chunks(row).skip(n).step_by(8).flatten().copied().collect() };
    assert_eq!([of(4), lse, of(5), of(6), of(7)], expected);
    for (n, operand) in operands.iter().enumerate() {
        assert_eq!(&of(n), operand, "operand {n} is as it was");
    }
}

#[test]
fn what_has_no_memory_is_refused_by_name() {
    let problem = problem(3, 4);
    let shape = *problem.shape();
    let (mut data, mut lse) = (vec![0.0f32; 200], vec![0.0; shape.lse_len()]);
    let good = interleaved(data.as_mut_ptr(), 0, 1, &shape);
    let null = RawTensor { first: std::ptr::null_mut(), ..good };
    let unaligned = RawTensor { first: good.first.wrapping_byte_add(1), ..good };
    let far = RawTensor { strides: [isize::MAX as usize / 2, 8, 4, 1], ..good };
    let overlapping = RawTensor { strides: [24, 0, 4, 1], ..good };
    let mut message = |q, out| {
        let outputs = RawOutputs::new(out, &mut lse);
        // SAFETY: it is refused.
        unsafe { engine().forward_raw(&problem, &RawInputs::new(q, good, good), outputs) }
            .unwrap_err()
            .to_string()
    };
    assert!(message(null, good).starts_with("q has 48 elements at address 0x0, where nothing is"));
    assert!(message(unaligned, good).contains("no multiple of an element's size"));
    assert!(message(far, good).contains("beyond all memory"));
    assert!(message(good, null).starts_with("out has 48 elements at address 0x0"));
    assert!(message(good, overlapping).contains("out is written"));
}

/// 2^40 heads, and 2^51, of nothing.
#[test]
fn heads_of_nothing_take_no_time() {
    for (batch, seqlen_k, num_heads) in [(1 << 20, 0, 1 << 20), ((1 << 31) - 1, 0, 1 << 20)] {
        let shape = Shape::new(batch, 0, seqlen_k).heads(num_heads, num_heads).head_dim(1);
        let problem = Problem::builder(shape).dropout(Dropout::new(0.5, 1, 0).unwrap()).build().unwrap();
        assert!(borrowed(&problem, [&[]; 4]).iter().all(Vec::is_empty));
    }
}

/// No query: dk and dv are 0, however many heads of queries there are.
#[test]
fn keys_that_no_query_sees_get_zeros() {
    let shape = Shape::new(1, 0, 3).heads(1 << 30, 1).head_dim(8);
    let problem = Problem::builder(shape).build().unwrap();
    let (k, empty) = ([1.0f32; 24], []);
    let (mut dk, mut dv) = ([f32::NAN; 24], [f32::NAN; 24]);
    let q = TensorRef::bshd(&empty, shape.q());
    let k = TensorRef::bshd(&k, shape.k());
    let inputs = GradInputs::new(Inputs::new(q, k, k), q, &[], q);
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut [], shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    );
    engine().backward(&problem, &inputs, &mut gradients).unwrap();
    assert_eq!((dk, dv), ([0.0; 24], [0.0; 24]));
}
