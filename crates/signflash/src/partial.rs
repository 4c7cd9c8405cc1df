//! Results over some of the keys, put together in f32 by their lse.

use signflash_core::{Problem, Shape};
use std::ops::Range;

/// out and lse of the keys that were added so far: what a device keeps while keys of other devices come by.
///
/// Each [piece](Problem::piece) of the same queries and of other keys is computed with f32 outputs
/// ([`CpuEngine::forward`](crate::CpuEngine::forward) writes them for every dtype, and so does `CudaEngine`) and added; only then is anything
/// rounded. Gradients are sums, and need no more than f32 ones of each piece, from the whole's out and lse. On a GPU calls can add by
/// themselves (`ForwardCall::with_stored`).
///
/// ```
/// use signflash::{CpuEngine, Inputs, Outputs, Partial, Piece, Problem, Shape, TensorMut, TensorName, TensorRef, bf16};
///
/// let shape = Shape::new(1, 6, 8).heads(2, 1).head_dim(16);
/// let whole = Problem::builder(shape).causal(true).build()?;
/// let numbers = |count| (0..count).map(|i| bf16::from_f32((i as f32).sin())).collect::<Vec<_>>();
/// let (q, kv) = (numbers(192), numbers(128));
/// let kv = TensorRef::bshd(&kv, shape.k());
/// let inputs = Inputs::new(TensorRef::bshd(&q, shape.q()), kv, kv);
/// let mut compute = |problem: &Problem, inputs: &Inputs<'_, bf16>| {
///     let (mut out, mut lse) = (vec![0.0f32; 192], vec![0.0; 12]);
///     let mut outputs = Outputs::new(TensorMut::bshd(&mut out, problem.shape().out()), &mut lse);
///     CpuEngine::new().forward(problem, inputs, &mut outputs).map(|()| (out, lse))
/// };
///
/// let mut partial = Partial::of(&whole);
/// for columns in [0..3, 3..8] {
///     let piece = Piece { columns, ..Piece::of(&whole) };
///     let (out, lse) = compute(&whole.piece(&piece)?, &piece.inputs(&whole, &inputs))?;
///     partial.add(0..6, &out, &lse);
/// }
/// let (out, lse) = compute(&whole, &inputs)?;
/// // Here both are f32, of bf16 operands whose weights may be rounded to bf16 in between.
/// assert!(partial.out.iter().zip(&out).all(|(a, b)| (a - b).abs() < 4e-3));
/// assert!(partial.lse.iter().zip(&lse).all(|(a, b)| (a - b).abs() < 1e-5));
/// # Ok::<(), signflash::ProblemError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// (batch, seqlen_q, num_heads, head_dim_v), dense.
    pub out: Vec<f32>,
    /// (batch, num_heads, seqlen_q), dense; -inf where a query has seen no key.
    pub lse: Vec<f32>,
    shape: Shape,
}

impl Partial {
    /// Of the queries of this problem, which have seen no key.
    pub fn of(problem: &Problem) -> Self {
        let shape = *problem.shape();
        let out = vec![0.0; shape.out().into_iter().product()];
        Self { out, lse: vec![f32::NEG_INFINITY; shape.lse_len()], shape }
    }

    /// Adds what some queries see of keys of which none was added before: out (batch, rows, num_heads, head_dim_v) and lse
    /// (batch, num_heads, rows), dense.
    ///
    /// # Panics
    /// If these are longer or shorter, or the rows are not all there.
    pub fn add(&mut self, rows: Range<usize>, out: &[f32], lse: &[f32]) {
        let Shape { batch, seqlen_q, num_heads, head_dim_v, .. } = self.shape;
        let count = rows.len();
        assert!(rows.start <= rows.end && rows.end <= seqlen_q, "rows {rows:?} of {seqlen_q}");
        assert_eq!(lse.len(), batch * num_heads * count, "lse has this many rows");
        assert_eq!(out.len(), lse.len() * head_dim_v, "out has head_dim_v numbers a row");
        for (n, &other) in lse.iter().enumerate() {
            let (b, head, row) = (n / count / num_heads, n / count % num_heads, n % count);
            let own = &mut self.lse[(b * num_heads + head) * seqlen_q + rows.start + row];
            let [both, ours, theirs] = weights(*own, other);
            *own = both;
            let at = ((b * seqlen_q + rows.start + row) * num_heads + head) * head_dim_v;
            let from = ((b * count + row) * num_heads + head) * head_dim_v;
            let added = &out[from..from + head_dim_v];
            for (x, y) in self.out[at..at + head_dim_v].iter_mut().zip(added) {
                *x = *x * ours + y * theirs;
            }
        }
    }
}

/// The lse of both together, and what part of it either has.
fn weights(a: f32, b: f32) -> [f32; 3] {
    let (most, least) = if a < b { (b, a) } else { (a, b) };
    if most == f32::NEG_INFINITY {
        return [most, 0.0, 0.0]; // no key yet; not NaN
    }
    let both = most + (least - most).exp().ln_1p();
    [both, (a - both).exp(), (b - both).exp()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_keys_stay_empty() {
        let shape = Shape::new(2, 3, 4).heads(2, 1).head_dim(2);
        let mut partial = Partial::of(&Problem::builder(shape).build().expect("a problem"));
        let lse =
            [0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        let out: Vec<f32> = (0..16).map(|i| i as f32).collect();
        partial.add(1..3, &out, &lse);
        partial.add(1..3, &out, &lse);
        // (batch, num_heads, seqlen_q): the first row was not added, the second twice, the third saw nothing.
        let expected = [f32::NEG_INFINITY, 2f32.ln(), f32::NEG_INFINITY];
        assert!(partial.lse.chunks(3).all(|rows| rows == expected), "{:?}", partial.lse);
        // (batch, row, head, head_dim_v): rows 0 and 1 of what was added are rows 1 and 2.
        assert_eq!(partial.out[4..8], [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(partial.out[16..20], [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(partial.out[8..12], [0.0; 4]);
    }
}
