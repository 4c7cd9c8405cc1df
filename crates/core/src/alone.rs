//! One sequence of a problem, as a problem of its own.

use crate::error::{ProblemError, TensorName};
use crate::operands::Inputs;
use crate::problem::Problem;
use crate::scores::{ScoreInputs, Scores};
use crate::sequence::Sequence;
use crate::shape::Shard;
use crate::tensor::TensorRef;
use std::ops::Range;

impl Problem {
    /// One of its sequences as a problem of batch 1 that is not packed: its queries see the keys that they see here, and
    /// dropout keeps what it keeps here. Its tensors are [shares](Sequence::share) of this problem's.
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, Span};
    /// let shape = Shape::new(1, 5, 7).heads(2, 1).head_dim(16);
    /// let packed = Problem::builder(shape).causal(true).packed(&[0, 2, 5], &[0, 4, 7]).build()?;
    /// let first = packed.alone(&packed.sequence(0).unwrap())?;
    /// assert_eq!((first.shape().seqlen_q, first.shape().seqlen_k, first.is_packed()), (2, 4, false));
    /// assert_eq!(first.visibility().keys_of(0), Span { begin: 0, end: 3 });
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    ///
    /// # Errors
    /// A [`ProblemError`], if there were so many sequences before it that its random stream has no number.
    pub fn alone(&self, sequence: &Sequence) -> Result<Problem, ProblemError> {
        let (shape, shard) = (self.shape(), self.shard());
        let shard = Shard {
            first_batch: shard.first_batch + sequence.stream,
            num_heads_total: shard.num_heads_total.or(Some(shape.num_heads)),
            ..*shard
        };
        let shape = shape.batch(1).seqlen_q(sequence.seqlen_q).seqlen_k(sequence.seqlen_k);
        let scores = match self.is_left_over(sequence) {
            true => Scores::NONE,
            false => self.scores.of_sequence(sequence.seqlen_q, sequence.seqlen_k),
        };
        self.to_builder().unpacked().shape(shape).shard(shard).declared(scores).build()
    }
}

impl Sequence {
    /// Its share of a tensor of the whole problem, which is not copied: of lse and dlse that of
    /// (batch, num_heads, seqlen_q, 1).
    ///
    /// ```
    /// use signflash_core::{Problem, Shape, TensorName, TensorRef};
    /// let shape = Shape::new(1, 3, 3).heads(1, 1).head_dim(2);
    /// let packed = Problem::builder(shape).packed(&[0, 1, 3], &[0, 1, 3]).build()?;
    /// let k = TensorRef::bshd(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], shape.k());
    /// let share = packed.sequence(1).unwrap().share(TensorName::K, &k);
    /// assert_eq!((share.shape, share.at([0, 0, 0, 1])), ([1, 2, 1, 2], 4.0));
    /// # Ok::<(), signflash_core::ProblemError>(())
    /// ```
    pub fn share<'a, T>(&self, tensor: TensorName, x: &TensorRef<'a, T>) -> TensorRef<'a, T> {
        let queries = self.first_q..self.first_q + self.seqlen_q;
        let keys = self.first_k..self.first_k + self.seqlen_k;
        let (heads, last) = (0..x.shape[2], 0..x.shape[3]);
        let batch = self.batch..self.batch + 1;
        let place: [Range<usize>; 4] = match tensor {
            TensorName::Q | TensorName::Dq | TensorName::Out | TensorName::Dout => {
                [batch, queries, heads, last]
            }
            TensorName::K | TensorName::V | TensorName::Dk | TensorName::Dv => [batch, keys, heads, last],
            TensorName::Lse | TensorName::Dlse => [batch, 0..x.shape[1], queries, last],
            TensorName::Probs => {
                [self.stream..self.stream + 1, 0..x.shape[1], 0..self.seqlen_q, 0..self.seqlen_k]
            }
            TensorName::Bias | TensorName::Mask | TensorName::Dbias => self.place_in_bias(x.shape),
            TensorName::AlibiSlopes => [0..1, 0..1, self.one_of(x.shape[2]), last],
            TensorName::Sinks | TensorName::Dsinks => [0..1, 0..1, 0..1, last],
        };
        x.part(place)
    }

    /// Its share of what the forward of the whole problem reads. What is [left over](Problem::is_left_over) has no
    /// scores, and so nothing that they are made of.
    pub fn inputs<'a, T>(&self, whole: &Problem, inputs: &Inputs<'a, T>) -> Inputs<'a, T> {
        let own = Inputs::new(
            self.share(TensorName::Q, &inputs.q),
            self.share(TensorName::K, &inputs.k),
            self.share(TensorName::V, &inputs.v),
        );
        if whole.is_left_over(self) {
            return own;
        }
        let ScoreInputs { alibi_slopes, bias, mask, sinks } = inputs.scores;
        let scores = ScoreInputs::default()
            .alibi_slopes(alibi_slopes.map(|slopes| self.share(TensorName::AlibiSlopes, &slopes)))
            .bias(bias.map(|bias| bias.part(self.place_in_bias(bias.layout()[0]))))
            .mask(mask.map(|mask| self.share(TensorName::Mask, &mask)))
            .sinks(sinks);
        own.scores(scores)
    }

    /// Where it lies in a bias or a mask of this shape: packed or not, its number is its batch there.
    pub(crate) fn place_in_bias(&self, shape: [usize; 4]) -> [Range<usize>; 4] {
        let [sequences, heads, queries, _] = shape;
        let rows = if queries == 1 { 0..1 } else { 0..self.seqlen_q };
        [self.one_of(sequences), 0..heads, rows, 0..self.seqlen_k]
    }

    /// Its place among as many as there are, or the one of all.
    pub(crate) fn one_of(&self, sequences: usize) -> Range<usize> {
        if sequences == 1 { 0..1 } else { self.stream..self.stream + 1 }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Dropout, Inputs, Piece, Problem, Shape, Shard, TensorName, TensorRef, oracle};

    fn numbers(len: usize, salt: usize) -> Vec<f32> {
        (0..len).map(|n| ((n * 37 + salt * 11) % 19) as f32 / 8.0 - 1.0).collect()
    }

    #[test]
    fn what_a_sequence_gives_alone_it_gives_among_others() {
        let shape = Shape::new(1, 13, 12).heads(2, 1).head_dim(4);
        let dropout = Dropout::new(0.4, 5, 0).unwrap();
        let shard = Shard { first_batch: 3, first_head: 1, num_heads_total: Some(5), ..Shard::default() };
        let packed = Problem::builder(shape)
            .window(Some(2), Some(1))
            .softmax_scale(0.7)
            .dropout(dropout)
            .shard(shard)
            .packed(&[0, 4, 4, 11], &[0, 3, 5, 11])
            .build()
            .unwrap();
        let (q, k, v) = (numbers(13 * 8, 1), numbers(12 * 4, 2), numbers(12 * 4, 3));
        let inputs = Inputs::new(
            TensorRef::bshd(&q, shape.q()),
            TensorRef::bshd(&k, shape.k()),
            TensorRef::bshd(&v, shape.v()),
        );
        let whole = oracle::forward(&packed, &inputs).unwrap();
        let out = TensorRef::bshd(&whole.out, shape.out());
        let lse = TensorRef::bshd(&whole.lse, shape.of(TensorName::Lse));
        for sequence in packed.sequences() {
            let alone = packed.alone(&sequence).unwrap();
            let inputs = sequence.inputs(&packed, &inputs);
            let forward = oracle::forward(&alone, &inputs).unwrap();
            let same = |tensor, whole: &TensorRef<'_, f64>, own: &[f64], shape| {
                let (share, own) = (sequence.share(tensor, whole), TensorRef::bshd(own, shape));
                assert_eq!(share.shape, own.shape, "{tensor} of {sequence:?}");
                assert_eq!(elements(&share), elements(&own), "{tensor} of {sequence:?}");
            };
            same(TensorName::Out, &out, &forward.out, alone.shape().out());
            same(TensorName::Lse, &lse, &forward.lse, alone.shape().of(TensorName::Lse));
        }
    }

    /// In order.
    fn elements(x: &TensorRef<'_, f64>) -> Vec<f64> {
        let [a, b, c, d] = x.shape;
        let index = |n: usize| [n / d / c / b, n / d / c % b, n / d % c, n % d];
        (0..a * b * c * d).map(|n| x.at(index(n))).collect()
    }

    #[test]
    fn a_share_of_probs_begins_at_its_first_column() {
        let shape = Shape::new(1, 2, 4).heads(1, 1).head_dim(8);
        let whole = Problem::builder(shape).build().unwrap();
        let stored = numbers(8, 1);
        let probs = TensorRef::bshd(&stored, shape.probs());
        let piece = Piece { columns: 3..4, ..Piece::of(&whole) };
        assert_eq!(piece.share(&whole, TensorName::Probs, &probs).at([0, 0, 1, 0]), stored[7]);
    }
}
