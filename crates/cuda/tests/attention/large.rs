//! More scores in one call than 32 bits can count, all of probs written.

use crate::gpu::{gpu, say};
use crate::tensors::{Both, matrix, read, read_f32};
use signflash_core::judge::Distance;
use signflash_core::{Bounds, Dropout, Dtype, KeepRule, Problem, Shape, bf16};
use signflash_cuda::{CudaEngine, DeviceBuffer};
use signflash_kernels::{BackwardCall, ForwardCall, Half};

const LEN: usize = 46_400; // 46400^2 > 2^31
const DIM: usize = 16;
/// Rows that are computed in f64: at the start, in the middle, and behind the 2^31st score.
const ROWS: [usize; 6] = [0, 1, 23_199, 46_283, 46_350, LEN - 1];

/// What the operands and the forward left, to compute single rows from.
struct Known<'a> {
    rule: KeepRule,
    scale: f64,
    keep_scale: f64,
    q: &'a [bf16],
    k: &'a [bf16],
    v: &'a [bf16],
    dout: &'a [bf16],
    lse: &'a [f32],
    delta: &'a [f64],
}

fn row(x: &[bf16], i: usize) -> impl Iterator<Item = f64> + '_ {
    x[i * DIM..(i + 1) * DIM].iter().map(|x| f64::from(x.to_f32()))
}

fn dot(a: &[bf16], i: usize, b: &[bf16], j: usize) -> f64 {
    row(a, i).zip(row(b, j)).map(|(a, b)| a * b).sum()
}

impl Known<'_> {
    fn score(&self, i: usize, j: usize) -> f64 {
        self.scale * dot(self.q, i, self.k, j)
    }

    fn lse(&self, i: usize) -> f64 {
        (0..LEN).map(|j| self.score(i, j).exp()).sum::<f64>().ln()
    }

    /// keep_scale where kept, else 0.
    fn kept(&self, i: usize, j: usize) -> f64 {
        if self.rule.keep(0, 0, i, j) { self.keep_scale } else { 0.0 }
    }

    fn out(&self, i: usize, lse: f64) -> Vec<f64> {
        sum(|j| (self.score(i, j) - lse).exp() * self.kept(i, j), self.v)
    }

    fn ds(&self, i: usize, j: usize) -> f64 {
        let p = (self.score(i, j) - f64::from(self.lse[i])).exp();
        self.scale * p * (self.kept(i, j) * dot(self.dout, i, self.v, j) - self.delta[i])
    }

    fn dq(&self, i: usize) -> Vec<f64> {
        sum(|j| self.ds(i, j), self.k)
    }

    fn dk(&self, j: usize) -> Vec<f64> {
        sum(|i| self.ds(i, j), self.q)
    }

    fn dv(&self, j: usize) -> Vec<f64> {
        sum(|i| (self.score(i, j) - f64::from(self.lse[i])).exp() * self.kept(i, j), self.dout)
    }
}

/// The sum over rows of `x`, each times its weight.
fn sum(weight: impl Fn(usize) -> f64, x: &[bf16]) -> Vec<f64> {
    (0..LEN).fold(vec![0.0; DIM], |mut sum, n| {
        let w = weight(n);
        sum.iter_mut().zip(row(x, n)).for_each(|(sum, x)| *sum += w * x);
        sum
    })
}

fn assert_close(name: &str, i: usize, got: &[bf16], want: &[f64]) {
    // One row of 16 numbers, not the norm of a tensor: three times the contract's bound of gradients.
    let bound = 3.0 * Bounds::of(Dtype::Bf16).gradients;
    let distance = Distance::between(row(got, i).zip(want.iter().copied()), bound);
    assert!(distance.is_right(), "{name}, row {i}: relative error {:.1e}", distance.error());
}

#[test]
fn more_than_2_31_scores() {
    let Some(device) = gpu() else { return };
    let engine = CudaEngine::new(&device).unwrap();
    let stream = engine.stream();
    let shape = Shape::new(1, LEN, LEN).heads(1, 1).head_dim(DIM);
    let problem = Problem::builder(shape).dropout(Dropout::new(0.1, 5, 0).unwrap()).build().unwrap();
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| Both::normal(stream, LEN * DIM, seed));
    let [out, dq, dk, dv] = [(); 4].map(|()| DeviceBuffer::alloc(&device, 2 * LEN * DIM).unwrap());
    let lse = DeviceBuffer::alloc(&device, 4 * LEN).unwrap();
    let mut probs = DeviceBuffer::alloc(&device, 2 * LEN * LEN).unwrap();
    probs.fill(stream, 0xFF).unwrap(); // NaNs
    let space = engine.backward_workspace_bytes(&problem, false) as usize;
    let workspace = DeviceBuffer::alloc(&device, space).unwrap();
    let tensor = |buffer| matrix(buffer, DIM);
    let inputs = [&q, &k, &v].map(|both| tensor(&both.buffer));
    let call = ForwardCall::new(&problem, Half::Bf16, inputs, tensor(&out), lse.ptr());
    let call = call.with_probs(Some(matrix(&probs, LEN)));
    let gradients = [&dq, &dk, &dv].map(tensor);
    let back = BackwardCall::of(&call, tensor(&dout.buffer), gradients, workspace.ptr());
    // SAFETY: all buffers are as large as the problem says and live until the stream is done.
    unsafe {
        engine.forward_on(stream, &call).unwrap();
        engine.backward_on(stream, &back).unwrap();
    }
    let (out, lse) = (read(&out, stream), read_f32(&lse, stream));
    let delta: Vec<f64> = (0..LEN).map(|i| dot(&out, i, &dout.host, i)).collect();
    let known = Known {
        rule: problem.keep_rule().unwrap(),
        scale: problem.softmax_scale(),
        keep_scale: problem.keep_scale(),
        q: &q.host,
        k: &k.host,
        v: &v.host,
        dout: &dout.host,
        lse: &lse,
        delta: &delta,
    };
    let (dq, dk, dv) = (read(&dq, stream), read(&dk, stream), read(&dv, stream));
    for i in ROWS {
        let want = known.lse(i);
        assert!((f64::from(lse[i]) - want).abs() < 1e-5, "lse {i}: {} {want}", lse[i]);
        assert_close("out", i, &out, &known.out(i, want));
        assert_close("dq", i, &dq, &known.dq(i));
        assert_close("dk", i, &dk, &known.dk(i));
        assert_close("dv", i, &dv, &known.dv(i));
    }
    check_probs(&known, &read(&probs, stream));
}

/// Every entry is a number, and the rows' are right, sign and magnitude.
fn check_probs(known: &Known<'_>, probs: &[bf16]) {
    say(&format!("{} probabilities", probs.len()));
    assert!(probs.iter().all(|p| p.is_finite()), "an entry was not written");
    for (i, j) in ROWS.into_iter().flat_map(|i| (0..LEN).map(move |j| (i, j))) {
        let got = probs[i * LEN + j];
        assert_eq!(got.is_sign_positive(), known.rule.keep(0, 0, i, j), "sign at {i}, {j}");
        let want = (known.score(i, j) - f64::from(known.lse[i])).exp();
        assert!((f64::from(got.to_f32().abs()) - want).abs() <= want / 200.0, "probability at {i}, {j}");
    }
}
