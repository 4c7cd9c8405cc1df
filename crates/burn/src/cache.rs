//! Decoding token by token, with the keys and values of the tokens before kept.

use crate::inputs::ScoreInputs;
use crate::multi_head::MultiHeadAttention;
use burn::nn::Linear;
use burn::tensor::Tensor;

/// What a layer keeps of the tokens that it has seen, for [`MultiHeadAttention::forward_cache`]: their keys and values and
/// what came out. It takes the place of `burn::nn::attention::MhaCache`, of which nobody else can read what it holds.
#[derive(Clone, Debug, Default)]
pub struct MhaCache {
    key: Option<Tensor<4>>,
    value: Option<Tensor<4>>,
    output: Option<Tensor<3>>,
    /// Whether keys and values are another sequence's, which does not grow.
    cross: bool,
}

impl MhaCache {
    /// Of self-attention: keys and values grow with the queries.
    pub fn autoregressive() -> Self {
        Self::default()
    }

    /// Of attention to another sequence, whose keys and values are projected by the first call and kept.
    pub fn autoregressive_cross_attention() -> Self {
        Self { cross: true, ..Self::default() }
    }

    /// How many tokens have come out.
    pub fn len(&self) -> usize {
        self.output.as_ref().map_or(0, |output| output.dims()[1])
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl MultiHeadAttention {
    /// Attention of a sequence that grows from call to call: the tensors are (batch, seqlen, d_model) of all its tokens so
    /// far, and so is what comes out; only tokens that are not in the cache are computed. Those of one call see each
    /// other unless the layer is causal or a mask hides them, and none sees a later call's. Masks and a bias are those
    /// of all queries so far.
    ///
    /// ```
    /// use burn::nn::attention::MultiHeadAttentionConfig;
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use signflash_burn::{Generator, MhaCache, MultiHeadAttention, ScoreInputs};
    ///
    /// let device = Device::flex();
    /// let layer = MultiHeadAttentionConfig::new(64, 4).init(&device);
    /// let layer = MultiHeadAttention::from_burn(layer, &Generator::new(42)).causal(true);
    /// let x = Tensor::<3>::random([2, 10, 64], Distribution::Normal(0.0, 1.0), &device);
    /// let mut cache = MhaCache::autoregressive();
    /// for seqlen in 7..=10 {
    ///     let seen = x.clone().narrow(1, 0, seqlen); // the first call computes 7 tokens, each other one more
    ///     let out = layer.forward_cache([seen.clone(), seen.clone(), seen], ScoreInputs::default(), &mut cache);
    ///     assert_eq!(out.dims(), [2, seqlen, 64]);
    /// }
    /// ```
    ///
    /// # Panics
    /// As [`forward_with`](Self::forward_with), or if there is no token that the cache does not have.
    pub fn forward_cache(
        &self,
        [query, key, value]: [Tensor<3>; 3],
        scores: ScoreInputs,
        cache: &mut MhaCache,
    ) -> Tensor<3> {
        let (seen, seqlen) = (cache.len(), query.dims()[1]);
        assert!(
            seqlen > seen,
            "signflash: query has {seqlen} tokens, expected more than the {seen} that the cache has seen; give all \
             tokens so far, or a new MhaCache for another sequence"
        );
        let q = self.heads(query.narrow(1, seen, seqlen - seen), &self.query);
        let k = self.grown(cache.key.take(), cache.cross, ("key", key), &self.key);
        let v = self.grown(cache.value.take(), cache.cross, ("value", value), &self.value);
        (cache.key, cache.value) = (Some(k.clone()), Some(v.clone()));
        let new = self.attend(q, k, v, scores.of_queries(seen, seqlen - seen));
        let output = match cache.output.take() {
            Some(before) => Tensor::cat(vec![before, new], 1),
            None => new,
        };
        cache.output.insert(output).clone()
    }

    /// The projections that were kept, and of the tokens behind them.
    fn grown(
        &self,
        kept: Option<Tensor<4>>,
        cross: bool,
        (name, x): (&str, Tensor<3>),
        linear: &Linear,
    ) -> Tensor<4> {
        let Some(kept) = kept else { return self.heads(x, linear) };
        if cross {
            return kept;
        }
        let (seen, seqlen) = (kept.dims()[2], x.dims()[1]);
        assert!(
            seqlen > seen,
            "signflash: {name} has {seqlen} tokens, expected more than the {seen} that the cache has seen; give all \
             tokens so far, or MhaCache::autoregressive_cross_attention() where they do not grow"
        );
        Tensor::cat(vec![kept, self.heads(x.narrow(1, seen, seqlen - seen), linear)], 2)
    }
}
