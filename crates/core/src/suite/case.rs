//! One named case: a problem, its operands, and how they lie in memory and are cut.

use super::inputs::Values;
use super::layout::Layout;
use super::scores::{CaseScores, Extent};
use super::vectors::Vector;
use crate::{Dropout, Dtype, Problem, ScaleRule, Shape, Shard, Slopes, Window};

/// Where a problem is cut into pieces that are computed one by one; every list holds inner positions, in order.
///
/// ```
/// use signflash_core::suite::{Case, Cuts, Reference, run_case};
/// let cuts = Cuts { rows: vec![5, 16], columns: vec![13], ..Cuts::default() }; // six pieces
/// let report = run_case("mine", &Case::new(20, 30).dropout(0.2).cut(cuts), &Reference);
/// assert!(report.failures.is_empty(), "{report}");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Cuts {
    pub batches: Vec<usize>,
    /// Query heads; at whole groups.
    pub heads: Vec<usize>,
    pub rows: Vec<usize>,
    pub columns: Vec<usize>,
}

/// Changes the operands of a case, as to put a NaN where it belongs.
pub type Adjust = fn(&Problem, &mut Values);

/// A named case. Built up from the defaults of [`Case::new`].
///
/// ```
/// use signflash_core::suite::{Case, Layout};
/// let case = Case::new(17, 33).heads(4, 2).causal().dropout(0.1).layout(Layout::Bhsd);
/// assert_eq!(case.problem().shape().num_heads_k, 2);
/// ```
#[derive(Clone, Debug)]
pub struct Case {
    pub(super) dtypes: Vec<Dtype>,
    pub(super) layout: Layout,
    pub(super) cuts: Cuts,
    shape: Shape,
    /// Of queries and of keys, if they are packed.
    cu_seqlens: Option<[Vec<u32>; 2]>,
    window: Window,
    causal: bool,
    diagonal: Option<i64>,
    softmax_scale: Option<f64>,
    dropout: Option<(f32, u64, u64)>,
    scale_rule: ScaleRule,
    shard: Shard,
    std: (f64, f64),
    dlse: bool,
    pub(super) adjust: Option<Adjust>,
    arrange: Option<Adjust>,
    fill: Option<f64>,
    /// Products of q and k are near this power of two, and exact.
    pub(super) products_near: Option<super::binades::Products>,
    vector: Option<&'static str>,
    scores: CaseScores,
}

impl Case {
    /// All dtypes; batch 1, 2 heads, head_dim 64; no causality, no dropout; operands normal with a standard deviation
    /// of 1.
    pub fn new(seqlen_q: usize, seqlen_k: usize) -> Self {
        Self {
            dtypes: vec![Dtype::F32, Dtype::F16, Dtype::Bf16],
            layout: Layout::Bshd,
            cuts: Cuts::default(),
            shape: Shape::new(1, seqlen_q, seqlen_k).heads(2, 2).head_dim(64),
            cu_seqlens: None,
            window: Window::FULL,
            causal: false,
            diagonal: None,
            softmax_scale: None,
            dropout: None,
            scale_rule: ScaleRule::Unbiased,
            shard: Shard::default(),
            std: (1.0, 1.0),
            dlse: false,
            adjust: None,
            arrange: None,
            fill: None,
            products_near: None,
            vector: None,
            scores: CaseScores::default(),
        }
    }

    /// A file of FlashAttention-2's results, whose inputs are the case's.
    pub fn vector(file: &'static str, dtype: Dtype) -> Self {
        Self { dtypes: vec![dtype], vector: Some(file), ..Self::new(0, 0) }
    }

    /// Only some dtypes.
    pub fn dtypes(self, dtypes: &[Dtype]) -> Self {
        Self { dtypes: dtypes.to_vec(), ..self }
    }

    /// Another batch size.
    pub fn batch(mut self, batch: usize) -> Self {
        self.shape.batch = batch;
        self
    }

    /// Other numbers of query and key heads.
    pub fn heads(mut self, num_heads: usize, num_heads_k: usize) -> Self {
        (self.shape.num_heads, self.shape.num_heads_k) = (num_heads, num_heads_k);
        self
    }

    /// Another head_dim.
    pub fn head_dim(mut self, head_dim: usize) -> Self {
        self.shape = self.shape.head_dim(head_dim);
        self
    }

    /// Another head_dim of v.
    pub fn head_dim_v(mut self, head_dim_v: usize) -> Self {
        self.shape.head_dim_v = head_dim_v;
        self
    }

    /// Scores saturate there.
    pub fn softcap(mut self, softcap: f64) -> Self {
        self.scores.softcap = Some(softcap);
        self
    }

    /// With ALiBi.
    pub fn alibi(mut self, slopes: Slopes) -> Self {
        self.scores.alibi = Some(slopes);
        self
    }

    /// With a bias: of this dtype, for all or each of batch, heads and queries.
    pub fn bias(mut self, dtype: Dtype, extents: [Extent; 3]) -> Self {
        self.scores.bias = Some((dtype, extents));
        self
    }

    /// With a mask, for all or each of batch, heads and queries.
    pub fn mask(mut self, extents: [Extent; 3]) -> Self {
        self.scores.mask = Some(extents);
        self
    }

    /// With sinks.
    pub fn sinks(mut self) -> Self {
        self.scores.sinks = true;
        self
    }

    /// Causal, bottom-right aligned.
    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }

    /// Query 0 faces this key.
    pub fn diagonal(self, diagonal: i64) -> Self {
        Self { diagonal: Some(diagonal), ..self }
    }

    /// Causal, where query 0 faces this key.
    pub fn causal_from(self, diagonal: i64) -> Self {
        self.causal().diagonal(diagonal)
    }

    /// A query sees so many keys before the one that it faces, and behind it.
    pub fn window(self, left: impl Into<Option<usize>>, right: impl Into<Option<usize>>) -> Self {
        Self { window: Window { left: left.into(), right: right.into() }, ..self }
    }

    /// Sequences of so many queries and keys, one behind the other. The queries and keys that the case had are left
    /// over behind the last.
    ///
    /// ```
    /// use signflash_core::suite::Case;
    /// let case = Case::new(0, 2).packed(&[3, 4], &[5, 0]);
    /// let problem = case.problem();
    /// assert_eq!((problem.shape().seqlen_q, problem.shape().seqlen_k), (7, 7));
    /// assert_eq!(problem.cu_seqlens(), Some([&[0, 3, 7][..], &[0, 5, 5][..]]));
    /// ```
    pub fn packed(mut self, lengths_q: &[u32], lengths_k: &[u32]) -> Self {
        let [q, k] = [lengths_q, lengths_k].map(|lengths| {
            let sums = (0..=lengths.len()).map(|end| lengths[..end].iter().sum());
            sums.collect::<Vec<u32>>()
        });
        self.shape.seqlen_q += q[lengths_q.len()] as usize;
        self.shape.seqlen_k += k[lengths_k.len()] as usize;
        self.cu_seqlens = Some([q, k]);
        self
    }

    /// Another factor of the scores.
    pub fn softmax_scale(self, scale: f64) -> Self {
        Self { softmax_scale: Some(scale), ..self }
    }

    /// Dropout at a seed of the suite's.
    pub fn dropout(self, p: f32) -> Self {
        self.dropout_at(p, 0x51_67f1_a54e, 0)
    }

    /// Dropout at a random state.
    pub fn dropout_at(self, p: f32, seed: u64, offset: u64) -> Self {
        Self { dropout: Some((p, seed, offset)), ..self }
    }

    /// FlashAttention-2's scale of kept probabilities.
    pub fn nominal(self) -> Self {
        Self { scale_rule: ScaleRule::Nominal, ..self }
    }

    /// The problem is itself a piece.
    pub fn shard(self, shard: Shard) -> Self {
        Self { shard, ..self }
    }

    /// Other standard deviations of q and k.
    pub fn std(self, q: f64, k: f64) -> Self {
        Self { std: (q, k), ..self }
    }

    /// With one number everywhere in q, k and v.
    pub fn filled(self, x: f64) -> Self {
        Self { fill: Some(x), ..self }
    }

    /// With a gradient that arrives through lse, NaN where a query sees no key.
    pub fn dlse(self) -> Self {
        Self { dlse: true, ..self }
    }

    /// Another order of storage.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Computed in pieces, which together must give the whole.
    pub fn cut(self, cuts: Cuts) -> Self {
        Self { cuts, ..self }
    }

    /// With operands of its own that some skip: NaNs and infinities.
    pub fn adjust(self, adjust: Adjust) -> Self {
        Self { adjust: Some(adjust), ..self }
    }

    /// With numbers of its own that everybody must take: of a mask, or -inf in a bias.
    pub fn arrange(self, arrange: Adjust) -> Self {
        Self { arrange: Some(arrange), ..self }
    }

    /// The whole problem.
    ///
    /// # Panics
    /// If the case's numbers make no problem, or its file cannot be read.
    pub fn problem(&self) -> Problem {
        if let Some(vector) = self.load() {
            return vector.problem;
        }
        let Window { left, right } = self.window;
        let problem = Problem::builder(self.shape).window(left, right).causal(self.causal).shard(self.shard);
        let problem = match &self.cu_seqlens {
            Some([q, k]) => problem.packed(q, k),
            None => problem,
        };
        let problem = match self.diagonal {
            Some(diagonal) => problem.diagonal(diagonal),
            None => problem,
        };
        let problem = match self.softmax_scale {
            Some(scale) => problem.softmax_scale(scale),
            None => problem,
        };
        let problem = match self.dropout {
            Some((p, seed, offset)) => {
                let dropout = Dropout::new(p, seed, offset).expect("a case's p is in [0, 1)");
                problem.dropout(dropout.with_scale_rule(self.scale_rule))
            }
            None => problem,
        };
        self.scores.declare(problem).build().expect("a case is a valid problem")
    }

    /// Its operands, not yet rounded to a dtype.
    ///
    /// # Panics
    /// As [`problem`](Self::problem).
    pub fn values(&self) -> Values {
        if let Some(vector) = self.load() {
            return vector.inputs;
        }
        let (q_std, k_std) = self.std;
        let seed = (self.shape.seqlen_q * 1009 + self.shape.seqlen_k) as u64; // cases of one shape share operands
        let mut values = Values::normal(&self.shape, seed, q_std, k_std);
        self.layout.tie(&self.shape, &mut values);
        if self.dlse {
            values = values.with_dlse(&self.problem(), seed);
        }
        values = values.with_scores(&self.problem(), seed);
        if let Some(x) = self.fill {
            [&mut values.q, &mut values.k, &mut values.v].into_iter().for_each(|values| values.fill(x));
        }
        if let Some(products) = self.products_near {
            super::binades::place(&self.problem(), &mut values, products);
        }
        for change in [self.arrange, self.adjust].into_iter().flatten() {
            change(&self.problem(), &mut values);
        }
        values
    }

    /// Whether its pieces see only some of the keys, so that their backward must be given out and lse of the whole: what
    /// differentiates its own forward cannot run it.
    pub fn cuts_keys(&self) -> bool {
        !self.cuts.columns.is_empty()
    }

    /// Whether it is of a file.
    pub(super) fn is_vector(&self) -> bool {
        self.vector.is_some()
    }

    fn load(&self) -> Option<Vector> {
        self.vector.map(|file| {
            Vector::load(&super::vectors::directory().join(file)).unwrap_or_else(|error| panic!("{error}"))
        })
    }
}
