//! Every refusal names the argument, what was expected, what came and, where there is one, the remedy.

use signflash_core::{
    Dropout, GradInputs, Gradients, Inputs, Outputs, Piece, Problem, ProblemError, Probs, Shape, Shard,
    TensorMut, TensorRef,
};

const SHAPE: Shape = Shape::new(2, 3, 5).heads(4, 2).head_dim(8);

fn refused(shape: Shape) -> String {
    Problem::builder(shape).build().unwrap_err().to_string()
}

#[test]
fn dropout_p() {
    for (p, shown) in [(1.0, "1"), (-0.5, "-0.5"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = Dropout::new(p, 0, 0).unwrap_err().to_string();
        let expected = format!("dropout_p must be in [0, 1), got {shown}; it is the probability of dropping");
        assert_eq!(message, expected);
    }
    assert!(Dropout::new(0.0, 0, 0).is_ok() && Dropout::new(1.0 - f32::EPSILON / 2.0, 0, 0).is_ok());
}

#[test]
fn softmax_scale() {
    let as_f32 = "finite as f32, too (up to 3.4e38)";
    for (scale, wanted, shown) in
        [(f64::NAN, "finite", "NaN"), (f64::INFINITY, "finite", "inf"), (1e300, as_f32, "1e300")]
    {
        let message = Problem::builder(SHAPE).softmax_scale(scale).build().unwrap_err().to_string();
        let expected =
            format!("softmax_scale must be {wanted}, got {shown}; leave it out for 1 / sqrt(head_dim)");
        assert_eq!(message, expected);
    }
    assert!(Problem::builder(SHAPE).softmax_scale(-2.0).build().is_ok());
}

#[test]
fn head_dim() {
    assert_eq!(refused(SHAPE.head_dim(0)), "head_dim must be from 1 to 256, got 0");
    assert_eq!(refused(SHAPE.head_dim(257)), "head_dim must be from 1 to 256, got 257");
}

#[test]
fn head_groups() {
    for (num_heads, num_heads_k) in [(4, 3), (4, 0), (0, 2), (2, 4)] {
        assert_eq!(
            refused(SHAPE.heads(num_heads, num_heads_k)),
            format!(
                "num_heads must be a positive multiple of num_heads_k, got num_heads {num_heads} and num_heads_k \
                 {num_heads_k}; each key head serves num_heads / num_heads_k query heads"
            )
        );
    }
}

#[test]
fn an_unfinished_shape() {
    let sizes = Shape::new(1, 2, 3);
    assert!(refused(sizes).starts_with("head_dim must be"));
    assert!(refused(sizes.heads(2, 1)).starts_with("head_dim must be"));
    assert!(
        refused(sizes.head_dim(8))
            .starts_with("num_heads must be a positive multiple of num_heads_k, got num_heads 0")
    );
    assert!(Problem::builder(sizes.head_dim(8).heads(2, 1)).build().is_ok());
}

#[test]
fn pieces() {
    let whole = Problem::builder(SHAPE).causal(true).build().unwrap();
    let all = Piece::of(&whole);
    let refused = |piece: Piece| whole.piece(&piece).unwrap_err().to_string();
    assert_eq!(refused(Piece { rows: 2..4, ..all.clone() }), "piece.rows must lie within 0..3, got 2..4");
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = Piece { columns: 3..2, ..all.clone() };
    assert_eq!(refused(reversed), "piece.columns must lie within 0..5, got 3..2");
    assert_eq!(
        refused(Piece { heads: 1..3, ..all.clone() }),
        "piece.heads must be whole groups of 2, which share a key head, or lie within one, got 1..3"
    );
    let one = whole.piece(&Piece { heads: 3..4, ..all.clone() }).unwrap();
    assert_eq!((one.shape().num_heads, one.shape().num_heads_k, one.shard().first_head), (1, 1, 3));
    let heads_of_none = whole.piece(&Piece { heads: 1..1, ..all }).unwrap_err().to_string();
    assert!(heads_of_none.starts_with("num_heads must be"), "{heads_of_none}");
}

#[test]
fn too_large() {
    let max = (u32::MAX / 2) as usize;
    let reach = max - 1023; // tiles reach beyond a sequence's end
    let message = |argument, max: usize, got: usize| {
        format!("{argument} must be at most {max} to be addressable, got {got}; cut the problem into shards")
    };
    assert_eq!(refused(SHAPE.batch(max + 1)), message("batch", max, max + 1));
    assert_eq!(refused(SHAPE.seqlen_q(reach + 1)), message("seqlen_q", reach, reach + 1));
    assert_eq!(refused(SHAPE.seqlen_k(usize::MAX)), message("seqlen_k", reach, usize::MAX));
    let product = refused(SHAPE.batch(max).seqlen_q(reach));
    assert!(product.starts_with("batch * num_heads * seqlen must be at most "), "{product}");
}

#[test]
fn shard() {
    let build =
        |shard| Problem::builder(SHAPE).shard(shard).build().map(drop).map_err(|error| error.to_string());
    let whole = Some(16);
    assert_eq!(build(Shard { first_head: 12, num_heads_total: whole, ..Shard::default() }), Ok(()));
    assert_eq!(
        build(Shard { first_head: 13, num_heads_total: whole, ..Shard::default() }).unwrap_err(),
        "shard.num_heads_total is 16, but the shard holds heads 13 to 17; give the number of query heads of the \
         whole problem"
    );
    let without_total = build(Shard { first_head: 4, ..Shard::default() }).unwrap_err();
    assert!(without_total.contains("but the shard holds heads 4 to 8"), "{without_total}");
    let far = build(Shard { first_row: usize::MAX, ..Shard::default() }).unwrap_err();
    assert!(far.starts_with("shard.first_row must be at most "), "{far}");
}

/// Storage for any tensor of SHAPE.
const STORAGE: [f32; 512] = [0.0; 512];

fn good() -> Inputs<'static, f32> {
    Inputs::new(
        TensorRef::bshd(&STORAGE, SHAPE.q()),
        TensorRef::bshd(&STORAGE, SHAPE.k()),
        TensorRef::bhsd(&STORAGE, SHAPE.v()),
    )
}

fn problem() -> Problem {
    Problem::builder(SHAPE).build().unwrap()
}

#[test]
fn shapes_of_inputs() {
    assert_eq!(good().check(&problem()), Ok(()));
    let k_like_q = Inputs::new(good().q, TensorRef::bshd(&STORAGE, SHAPE.q()), good().v);
    assert_eq!(
        k_like_q.check(&problem()).unwrap_err().to_string(),
        "k has shape [2, 3, 4, 8], expected [2, 5, 2, 8] (batch, seqlen, num_heads, head_dim)"
    );
    let transposed = Inputs::new(good().q, good().k, TensorRef::bshd(&STORAGE, [2, 2, 5, 8]));
    assert!(transposed.check(&problem()).unwrap_err().to_string().starts_with("v has shape [2, 2, 5, 8]"));
}

#[test]
fn the_last_stride() {
    let q = TensorRef::strided(&STORAGE, SHAPE.q(), [96, 32, 1, 4]);
    assert_eq!(
        Inputs::new(q, good().k, good().v).check(&problem()).unwrap_err().to_string(),
        "q must have stride 1 in its last dimension, got 4; make it contiguous there"
    );
    let one = Problem::builder(SHAPE.head_dim(1)).build().unwrap();
    let (q, k) = (one.shape().q(), one.shape().k());
    let x = TensorRef::bshd(&STORAGE, k);
    let inputs = Inputs::new(TensorRef::strided(&STORAGE, q, [12, 4, 1, 99]), x, x);
    assert_eq!(inputs.check(&one), Ok(()), "a dimension of one element has no stride");
}

#[test]
fn storage() {
    let q = TensorRef::bshd(&STORAGE[..191], SHAPE.q());
    assert_eq!(
        Inputs::new(q, good().k, good().v).check(&problem()).unwrap_err().to_string(),
        "q needs 192 elements of storage by its shape and strides, got 191; pass all of its storage, or the strides it \
         was stored with"
    );
    let q = TensorRef::strided(&STORAGE, SHAPE.q(), [usize::MAX, 32, 8, 1]);
    let overflow = Inputs::new(q, good().k, good().v).check(&problem()).unwrap_err();
    assert!(matches!(overflow, ProblemError::Storage { needed: usize::MAX, got: 512, .. }), "{overflow}");
    let broadcast = TensorRef::strided(&STORAGE[..40], SHAPE.k(), [0, 8, 0, 1]);
    assert_eq!(Inputs::new(good().q, broadcast, good().v).check(&problem()), Ok(()));
}

fn check_outputs(
    out_shape: [usize; 4],
    out_strides: [usize; 4],
    lse_len: usize,
    probs_shape: [usize; 4],
) -> Result<(), String> {
    let (mut out, mut lse, mut probs) = (STORAGE, vec![0.0; lse_len], STORAGE);
    let outputs = Outputs::new(TensorMut::strided(&mut out, out_shape, out_strides), &mut lse)
        .probs(TensorMut::bshd(&mut probs, probs_shape));
    outputs.check(&problem()).map_err(|error| error.to_string())
}

#[test]
fn outputs() {
    let (q, strides, probs) = (SHAPE.q(), [96, 32, 8, 1], SHAPE.probs());
    assert_eq!(check_outputs(q, strides, 24, probs), Ok(()));
    assert_eq!(
        check_outputs(q, strides, 23, probs).unwrap_err(),
        "lse has shape [23], expected [2, 4, 3] (batch, num_heads, seqlen_q), dense"
    );
    assert_eq!(
        check_outputs(q, strides, 24, [2, 3, 4, 5]).unwrap_err(),
        "probs has shape [2, 3, 4, 5], expected [2, 4, 3, 5] (batch, num_heads, seqlen_q, seqlen_k)"
    );
    assert_eq!(
        check_outputs(q, [0, 32, 8, 1], 24, probs).unwrap_err(),
        "out is written, so its strides must give every index an element of its own, got strides [0, 32, 8, 1] for \
         shape [2, 3, 4, 8]; write to a tensor that is not broadcast"
    );
    assert!(check_outputs(q, [96, 32, 7, 1], 24, probs).unwrap_err().starts_with("out is written"));
}

#[test]
fn an_empty_output_shares_no_elements() {
    let empty = Problem::builder(SHAPE.seqlen_k(0)).build().unwrap();
    let (mut out, mut lse, mut probs) = (STORAGE, [0.0; 24], []);
    let outputs = Outputs::new(TensorMut::bshd(&mut out, SHAPE.out()), &mut lse)
        .probs(TensorMut::bshd(&mut probs, empty.shape().probs()));
    assert_eq!(outputs.check(&empty), Ok(()));
}

#[test]
fn what_the_backward_reads_and_writes() {
    let (q, k) = (SHAPE.q(), SHAPE.k());
    let x = TensorRef::bshd(&STORAGE, q);
    let inputs = GradInputs::new(good(), x, &STORAGE[..24], x);
    assert_eq!(inputs.check(&problem()), Ok(()));
    let name = |inputs: GradInputs<'_, f32>| inputs.check(&problem()).unwrap_err().to_string();
    assert!(
        name(
            GradInputs::new(inputs.inputs, TensorRef::bshd(&STORAGE, k), inputs.lse, inputs.dout)
                .dlse(inputs.dlse)
        )
        .starts_with("out has shape")
    );
    assert!(
        name(
            GradInputs::new(inputs.inputs, inputs.out, inputs.lse, TensorRef::bshd(&STORAGE, k))
                .dlse(inputs.dlse)
        )
        .starts_with("dout has shape")
    );
    assert!(
        name(GradInputs::new(inputs.inputs, inputs.out, &STORAGE[..25], inputs.dout).dlse(inputs.dlse))
            .starts_with("lse has shape [25]")
    );
    let dlse = |len| inputs.dlse(&STORAGE[..len]);
    assert_eq!(dlse(24).check(&problem()), Ok(()));
    assert_eq!(
        name(dlse(23)),
        "dlse has shape [23], expected [2, 4, 3] (batch, num_heads, seqlen_q), dense; pass None if lse has no gradient"
    );

    let refused = |dq: [usize; 4], dk: [usize; 4], dv: [usize; 4]| {
        let (mut a, mut b, mut c) = (STORAGE, STORAGE, STORAGE);
        let gradients = Gradients::new(
            TensorMut::bshd(&mut a, dq),
            TensorMut::bshd(&mut b, dk),
            TensorMut::bshd(&mut c, dv),
        );
        gradients.check(&problem()).map_err(|error| error.to_string())
    };
    assert_eq!(refused(q, k, k), Ok(()));
    assert!(refused(k, k, k).unwrap_err().starts_with("dq has shape"));
    assert!(refused(q, q, k).unwrap_err().starts_with("dk has shape"));
    assert!(refused(q, k, q).unwrap_err().starts_with("dv has shape"));
}

#[test]
fn probs_of_another_problem() {
    let refused = Probs::new(&problem(), TensorRef::bshd(&STORAGE, SHAPE.q())).unwrap_err().to_string();
    assert_eq!(
        refused,
        "probs has shape [2, 3, 4, 8], expected [2, 4, 3, 5] (batch, num_heads, seqlen_q, seqlen_k)"
    );
}

#[test]
fn a_diagonal_behind_which_positions_would_overflow_is_refused() {
    const LONG: usize = (1 << 31) - 200;
    let build = |queries, keys, diagonal, causal| {
        let shape = Shape::new(1, queries, keys).heads(1, 1).head_dim(1);
        Problem::builder(shape).causal(causal).diagonal(diagonal).build().map(|_| ())
    };
    const SOME: usize = LONG - 1000;
    assert_eq!(build(SOME, 400, -5, true), Ok(()));
    for (queries, keys, diagonal) in [(SOME, 400, 300), (400, SOME, -300), (1 << 30, 1 << 30, (1 << 30) - 5)]
    {
        let refused = build(queries, keys, diagonal, true).unwrap_err().to_string();
        assert!(
            refused
                .starts_with("a sequence's length and the diagonal and the window together must be at most"),
            "{refused}"
        );
        assert_eq!(build(queries, keys, diagonal, false), Ok(()));
    }
    assert_eq!(build(1 << 30, 1 << 30, (1 << 30) + 5, true), Ok(()), "nothing is hidden");
    let window = |left, right| {
        let shape = Shape::new(1, 1 << 30, 1 << 30).heads(1, 1).head_dim(1);
        Problem::builder(shape).window(left, right).build().map(|_| ())
    };
    const HALF: usize = 1 << 29;
    assert_eq!(window(Some(HALF), Some(HALF)), Ok(()));
    assert_eq!(window(None, Some(1 << 30)), Ok(()), "nothing is hidden");
    for (left, right) in [(Some((1 << 30) - 5), Some(0)), (None, Some((1 << 30) - 5)), (Some(HALF), None)] {
        let refused = window(left, right).unwrap_err().to_string();
        assert!(refused.contains("the window together must be at most 2147482624"), "{refused}");
    }
    let refused = build(LONG, 400, 0, false).unwrap_err().to_string();
    assert!(refused.starts_with("seqlen_q must be at most 2147482624"), "{refused}");
}
