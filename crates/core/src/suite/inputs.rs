//! The operands of a case.

use crate::dropout::philox::philox4x32;
use crate::{Problem, Shape, TensorName};

/// Dense operands: q and dout (batch, seqlen_q, num_heads, head_dim), k and v (batch, seqlen_k, num_heads_k,
/// head_dim), dlse (batch, num_heads, seqlen_q). Not yet rounded to the dtype.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Values {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub dout: Vec<f64>,
    /// `None`: no gradient comes through lse.
    pub dlse: Option<Vec<f64>>,
    /// Of the problem's shapes; empty where it has none.
    pub alibi_slopes: Vec<f64>,
    pub bias: Vec<f64>,
    /// 0 or 1.
    pub mask: Vec<f64>,
    pub sinks: Vec<f64>,
}

impl Values {
    /// Normal variates: q and k of these standard deviations, v and dout of 1, no dlse. The same on every machine
    /// up to the last bits of its logarithm and cosine.
    ///
    /// ```
    /// use signflash_core::{Shape, suite::Values};
    /// let shape = Shape::new(2, 3, 5).heads(4, 2).head_dim(8);
    /// let values = Values::normal(&shape, 1, 5.0, 3.0);
    /// assert_eq!((values.q.len(), values.k.len()), (192, 160));
    /// ```
    pub fn normal(shape: &Shape, seed: u64, q_std: f64, k_std: f64) -> Self {
        let len = |shape: [usize; 4]| shape.into_iter().product();
        Self {
            q: normals(seed, 0, len(shape.q()), q_std),
            k: normals(seed, 1, len(shape.k()), k_std),
            v: normals(seed, 2, len(shape.v()), 1.0),
            dout: normals(seed, 3, len(shape.out()), 1.0),
            dlse: None,
            alibi_slopes: Vec::new(),
            bias: Vec::new(),
            mask: Vec::new(),
            sinks: Vec::new(),
        }
    }

    /// The same with what else the problem's scores are made of: slopes as ALiBi's of eight heads, a normal bias, a mask
    /// that hides a quarter of the keys, normal sinks.
    pub(super) fn with_scores(self, problem: &Problem, seed: u64) -> Self {
        let len = |tensor| problem.shape_of(tensor).into_iter().product();
        let slope = |n| 2f64.powf(-((n % 8) as f64) - 1.0);
        let sinks = if problem.sinks() { len(TensorName::Sinks) } else { 0 };
        Self {
            alibi_slopes: (0..len(TensorName::AlibiSlopes)).map(slope).collect(),
            bias: normals(seed, 5, len(TensorName::Bias), 1.0),
            mask: normals(seed, 6, len(TensorName::Mask), 1.0)
                .iter()
                .map(|x| f64::from(*x > -0.67))
                .collect(),
            sinks: normals(seed, 7, sinks, 1.0),
            ..self
        }
    }

    /// The same with a gradient of lse: normal variates, and NaN where a query sees no key, nor a sink. That must not
    /// matter, and is what autograd gives where an lse of -inf is subtracted from itself.
    pub(super) fn with_dlse(self, problem: &Problem, seed: u64) -> Self {
        let shape = problem.shape();
        let mut dlse = normals(seed, 4, shape.lse_len(), 1.0);
        for (sequence, head, i) in problem.rows() {
            if !problem.sinks() && problem.visibility_in(&sequence).keys_of(i as i64).is_empty() {
                dlse[sequence.lse(shape, i, head)] = f64::NAN;
            }
        }
        Self { dlse: Some(dlse), ..self }
    }
}

/// Of lse and its gradient, which are f32 whatever the dtype.
pub(super) fn as_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Philox with its published 10 rounds, made normal by Box and Muller.
fn normals(seed: u64, stream: u32, len: usize, std: f64) -> Vec<f64> {
    let key = [seed as u32, (seed >> 32) as u32];
    let uniform = |word: u32| (f64::from(word) + 0.5) / 2f64.powi(32); // never 0
    let fours = (0..len.div_ceil(4) as u64).flat_map(|n| {
        let [a, b, c, d] = philox4x32::<10>(key, [n as u32, (n >> 32) as u32, stream, 0]).map(uniform);
        let pair = |radius: f64, turn: f64| {
            let (sin, cos) = (turn * std::f64::consts::TAU).sin_cos();
            let radius = std * (-2.0 * radius.ln()).sqrt();
            [radius * cos, radius * sin]
        };
        pair(a, b).into_iter().chain(pair(c, d))
    });
    fours.take(len).collect()
}
