//! f32 results are the numbers that would be rounded: by every kernel that writes results, and into tensors of any strides.

use signflash_core::suite::{Case, Values};
use signflash_core::{
    Element, GradInputs, Gradients, Inputs, Outputs, Piece, Problem, ResultOf, TensorMut, TensorRef, bf16,
    f16,
};
use signflash_kernels::{CallError, Gpu, InterpretError, Interpreted};

/// What every tensor holds before.
const BEFORE: f32 = 7.0;

/// out, dq, dk and dv.
type Found = [Vec<f32>; 4];

/// A tensor with `gap` elements behind each row of a head.
fn spread<R>(data: &mut [R], shape: [usize; 4], gap: usize) -> TensorMut<'_, R> {
    let [_, seqlen, heads, columns] = shape;
    let row = heads * (columns + gap);
    TensorMut { data, shape, strides: [seqlen * row, row, columns + gap, 1] }
}

/// What a tensor holds without its gaps, in which nobody has written.
fn without_gaps<R: Element>(data: &[R], shape: [usize; 4], gap: usize) -> Vec<f32> {
    let rows = || data.chunks(shape[3] + gap);
    assert!(rows().all(|row| row[shape[3]..].iter().all(|x| x.to_f32() == BEFORE)), "a gap was written");
    rows().flat_map(|row| &row[..shape[3]]).map(|x| x.to_f32()).collect()
}

fn run<T: Element, R: Element + ResultOf<T>>(on: Interpreted, case: &Case, gap: usize) -> Found {
    let (problem, values): (Problem, Values) = (case.problem(), case.values());
    let shape = *problem.shape();
    let rounded = |x: &[f64]| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<_>>();
    let room = |[batch, seqlen, heads, columns]: [usize; 4]| {
        vec![R::from_f32(BEFORE); batch * seqlen * heads * (columns + gap)]
    };
    let [q, k, v, dout] = [&values.q, &values.k, &values.v, &values.dout].map(|x| rounded(x));
    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    );
    let (mut out, mut lse) = (room(shape.out()), vec![0.0; shape.lse_len()]);
    let mut outputs = Outputs::new(spread(&mut out, shape.out(), gap), &mut lse);
    on.forward(&problem, &inputs, &mut outputs).expect("the operands fit");
    let out = without_gaps(&out, shape.out(), gap);
    let of_forward: Vec<T> = out.iter().map(|&x| T::from_f32(x)).collect();
    let (of_out, of_dout) = (TensorRef::bshd(&of_forward, shape.out()), TensorRef::bshd(&dout, shape.out()));
    let (mut dq, mut dk, mut dv) = (room(shape.q()), room(shape.k()), room(shape.v()));
    let mut gradients = Gradients::new(
        spread(&mut dq, shape.q(), gap),
        spread(&mut dk, shape.k(), gap),
        spread(&mut dv, shape.v(), gap),
    );
    on.backward(&problem, &GradInputs::new(inputs, of_out, &lse, of_dout), &mut gradients)
        .expect("the operands fit");
    let gradients = [(&dq, shape.q()), (&dk, shape.k()), (&dv, shape.v())];
    let [dq, dk, dv] = gradients.map(|(data, shape)| without_gaps(data, shape, gap));
    [out, dq, dk, dv]
}

fn wide_is_what_would_be_rounded<T: Element>(on: Interpreted, case: &Case, gap: usize)
where
    f32: ResultOf<T>,
{
    let (narrow, wide) = (run::<T, T>(on, case, gap), run::<T, f32>(on, case, gap));
    for (name, (narrow, wide)) in ["out", "dq", "dk", "dv"].into_iter().zip(narrow.iter().zip(&wide)) {
        let what = format!("{name} of {} by {on:?}, a gap of {gap}", T::DTYPE);
        let differs =
            wide.iter().zip(narrow).position(|(&wide, &narrow)| T::from_f32(wide).to_f32() != narrow);
        assert_eq!(differs, None, "{what}");
        assert!(wide.iter().zip(narrow).any(|(wide, narrow)| wide != narrow), "{what} was rounded");
    }
}

fn on(gpu: Gpu) -> Interpreted {
    Interpreted { gpu, seed: 0, deterministic: true }
}

#[test]
fn hopper_writes_what_it_would_round() {
    let case = |seqlen| Case::new(seqlen, seqlen).heads(2, 1);
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::HOPPER), &case(70).head_dim(64).causal().dropout(0.1), 0);
    // Columns that fill no box, and rows with something between them.
    wide_is_what_would_be_rounded::<f16>(on(Gpu::HOPPER), &case(40).head_dim(72).batch(2), 8);
    // Where warpgroups share keys.
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::HOPPER), &case(20).head_dim(192).head_dim_v(128), 0);
}

#[test]
fn sequences_that_are_packed_keep_to_their_rows() {
    let case =
        Case::new(3, 5).heads(1, 1).head_dim(64).packed(&[20, 0, 33], &[9, 7, 40]).causal().dropout(0.2);
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::HOPPER), &case, 0);
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::SMALL), &case, 0);
}

#[test]
fn portable_kernels_write_what_they_would_round() {
    let case = |head_dim| Case::new(37, 41).heads(2, 1).head_dim(head_dim).dropout(0.1);
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::SMALL), &case(64), 0);
    wide_is_what_would_be_rounded::<f16>(on(Gpu::AMPERE), &case(40).causal(), 4);
    wide_is_what_would_be_rounded::<bf16>(on(Gpu::SMALL), &case(24).head_dim_v(41), 1);
}

/// The first keys, and then the others, whose results are added: what all keys give, but for the order of a few sums.
fn added_is_the_whole(on: Interpreted, case: &Case, gap: usize) {
    let (problem, values) = (case.problem(), case.values());
    let shape = *problem.shape();
    let half = |x: &[f64]| x.iter().map(|&x| bf16::from_f32(x as f32)).collect::<Vec<_>>();
    let [q, k, v, dout] = [&values.q, &values.k, &values.v, &values.dout].map(|x| half(x));
    let inputs = Inputs::new(
        TensorRef::bshd(&q, shape.q()),
        TensorRef::bshd(&k, shape.k()),
        TensorRef::bshd(&v, shape.v()),
    );
    let one = run::<bf16, f32>(on, case, gap);
    let room =
        |[batch, seqlen, heads, columns]: [usize; 4]| vec![BEFORE; batch * seqlen * heads * (columns + gap)];
    let (mut out, mut lse) = (room(shape.out()), vec![0.0; shape.lse_len()]);
    let cuts = [0..shape.seqlen_k / 64 * 32, shape.seqlen_k / 64 * 32..shape.seqlen_k];
    let pieces = cuts.clone().map(|columns| Piece { columns, ..Piece::of(&problem) });
    for (number, piece) in pieces.iter().enumerate() {
        let (of_piece, read) =
            (problem.piece(piece).expect("it is a piece"), piece.inputs(&problem, &inputs));
        let mut outputs = Outputs::new(spread(&mut out, shape.out(), gap), &mut lse);
        let done = match number {
            0 => on.forward(&of_piece, &read, &mut outputs),
            _ => on.forward_added(&of_piece, &read, &mut outputs),
        };
        done.expect("the operands fit");
    }
    assert_near("out", &without_gaps(&out, shape.out(), gap), &one[0]);
    let rounded: Vec<bf16> = one[0].iter().map(|&x| bf16::from_f32(x)).collect();
    let (of_out, of_dout) = (TensorRef::bshd(&rounded, shape.out()), TensorRef::bshd(&dout, shape.out()));
    let mut dq = room(shape.q());
    for (number, piece) in pieces.iter().enumerate() {
        let (of_piece, read) =
            (problem.piece(piece).expect("it is a piece"), piece.inputs(&problem, &inputs));
        let own = *of_piece.shape();
        let (mut dk, mut dv) = (room(own.k()), room(own.v()));
        let read = GradInputs::new(read, of_out, &lse, of_dout);
        let mut gradients = Gradients::new(
            spread(&mut dq, shape.q(), gap),
            spread(&mut dk, own.k(), gap),
            spread(&mut dv, own.v(), gap),
        );
        match number {
            0 => on.backward(&of_piece, &read, &mut gradients).expect("the operands fit"),
            _ => on.backward_added(&of_piece, &read, &mut gradients).expect("the operands fit"),
        }
        // dk and dv had nothing before but what every tensor has.
        let added = if number == 0 { 0.0 } else { BEFORE };
        for (name, got, shape, one, columns) in
            [("dk", &dk, own.k(), &one[2], shape.head_dim), ("dv", &dv, own.v(), &one[3], shape.head_dim_v)]
        {
            let got: Vec<f32> = without_gaps(got, shape, gap).iter().map(|x| x - added).collect();
            let row = problem.shape().num_heads_k * columns;
            let at = [cuts[number].start * row, cuts[number].end * row];
            assert_near(name, &got, &one[at[0]..at[1]]);
        }
    }
    assert_near("dq", &without_gaps(&dq, shape.q(), gap), &one[1]);
}

fn assert_near(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    assert!(off < 2e-3, "{name} is {off:.1e} off");
}

#[test]
fn results_of_some_keys_are_added_to_those_of_others() {
    let case = |seqlen| Case::new(40, seqlen).heads(2, 1).dropout(0.1);
    added_is_the_whole(on(Gpu::HOPPER), &case(70).head_dim(64), 0);
    // The last keys are seen by some rows alone, and the first ones by others: there are rows that had seen nothing.
    added_is_the_whole(on(Gpu::HOPPER), &case(70).head_dim(72).window(3, 9), 8);
    added_is_the_whole(on(Gpu::SMALL), &case(70).head_dim(64).window(3, 9), 0);
    added_is_the_whole(on(Gpu::AMPERE), &case(66).head_dim(41), 1);
}

/// dq of the sums of a pass over keys, whose order is not the same in both kernels' schedules: with one block there is one.
#[test]
fn dq_of_sums_is_written_as_it_is() {
    let case = Case::new(30, 30).heads(1, 1).head_dim(64).causal();
    for gpu in [Gpu::HOPPER, Gpu::AMPERE] {
        wide_is_what_would_be_rounded::<bf16>(Interpreted::new(gpu), &case, 0);
    }
}

#[test]
fn probs_are_refused_beside_an_f32_out() {
    let case = Case::new(2, 3).heads(1, 1).head_dim(8);
    let (problem, numbers) = (case.problem(), [bf16::ONE; 24]);
    let shape = *problem.shape();
    let [q, k] =
        [shape.q(), shape.k()].map(|shape| TensorRef::bshd(&numbers[..shape.into_iter().product()], shape));
    let (mut out, mut lse, mut probs) = ([0.0f32; 16], [0.0; 2], [0.0f32; 6]);
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse)
        .probs(TensorMut::bshd(&mut probs, shape.probs()));
    let refused = Interpreted::new(Gpu::HOPPER).forward(&problem, &Inputs::new(q, k, k), &mut outputs);
    assert_eq!(refused, Err(InterpretError::Call(CallError::WideProbs)));
}
