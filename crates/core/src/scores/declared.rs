//! What a problem says of its scores: which operands they have besides q and k, and of which shapes.

use crate::dtype::Dtype;
use crate::error::{ProblemError, TensorName};
use crate::lengths::Lengths;
use crate::piece::Piece;
use crate::shape::Shape;

/// How many slopes [ALiBi](crate::ProblemBuilder::alibi) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slopes {
    /// One a head.
    PerHead,
    /// One a head of each sequence, of a batch or packed.
    PerSequence,
}

/// A [bias](crate::ProblemBuilder::bias) of scores, as a problem declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bias {
    /// Of the bias and of its gradient, whatever that of q is.
    pub dtype: Dtype,
    /// (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k).
    pub shape: [usize; 4],
}

/// All of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Scores {
    pub(crate) softcap: Option<f64>,
    pub(crate) alibi: Option<Slopes>,
    pub(crate) bias: Option<Bias>,
    pub(crate) mask: Option<[usize; 4]>,
    pub(crate) sinks: bool,
}

impl Scores {
    pub(crate) const NONE: Self = Self { softcap: None, alibi: None, bias: None, mask: None, sinks: false };

    /// Whether these can be of a problem of such a shape.
    pub(crate) fn check(&self, shape: &Shape, lengths: &Lengths) -> Result<(), ProblemError> {
        if let Some(got) = self.softcap.filter(|&cap| !((cap as f32).is_normal() && cap > 0.0)) {
            return Err(ProblemError::Softcap { got });
        }
        let tensors = [(TensorName::Bias, self.bias.map(|bias| bias.shape)), (TensorName::Mask, self.mask)];
        for (tensor, got) in tensors {
            got.map_or(Ok(()), |got| check_shape(tensor, got, shape, lengths))?;
        }
        Ok(())
    }

    /// The shape of alibi_slopes, with so many sequences: (1, 1, 1 or sequences, num_heads).
    pub(crate) fn slopes_shape(&self, sequences: usize, num_heads: usize) -> [usize; 4] {
        match self.alibi {
            None => [0; 4],
            Some(Slopes::PerHead) => [1, 1, 1, num_heads],
            Some(Slopes::PerSequence) => [1, 1, sequences, num_heads],
        }
    }

    /// Those of a piece. One more score a row, which sinks are, counts once: with the first keys.
    pub(crate) fn of_piece(&self, piece: &Piece, is_packed: bool) -> Self {
        let shape = |whole| place_of_piece(whole, piece, is_packed).map(|range| range.len());
        Self {
            bias: self.bias.map(|bias| Bias { shape: shape(bias.shape), ..bias }),
            mask: self.mask.map(shape),
            sinks: self.sinks && piece.columns.start == 0,
            ..*self
        }
    }

    /// Those of one sequence alone.
    pub(crate) fn of_sequence(&self, seqlen_q: usize, seqlen_k: usize) -> Self {
        let shape = |[_, heads, queries, _]: [usize; 4]| {
            [1, heads, if queries == 1 { 1 } else { seqlen_q }, seqlen_k]
        };
        Self {
            bias: self.bias.map(|bias| Bias { shape: shape(bias.shape), ..bias }),
            mask: self.mask.map(shape),
            ..*self
        }
    }
}

/// Where a piece lies in a bias or mask of this shape.
pub(crate) fn place_of_piece(
    shape: [usize; 4],
    piece: &Piece,
    is_packed: bool,
) -> [std::ops::Range<usize>; 4] {
    let Piece { batches, heads, rows, columns } = piece.clone();
    let all = shape.map(|size| 0..size);
    let [of_batch, of_heads, of_rows, of_columns] = if is_packed {
        let [sequences, _, rows, columns] = all.clone();
        [sequences, heads, rows, columns] // no piece is of less
    } else {
        [batches, heads, rows, columns]
    };
    let [a, b, c, _] = all;
    let place = |own: std::ops::Range<usize>, piece| if own.len() == 1 { own } else { piece };
    [place(a, of_batch), place(b, of_heads), place(c, of_rows), of_columns]
}

fn check_shape(
    tensor: TensorName,
    got: [usize; 4],
    shape: &Shape,
    lengths: &Lengths,
) -> Result<(), ProblemError> {
    let Shape { batch, seqlen_q, seqlen_k, num_heads, .. } = *shape;
    let refuse = |dimension, expected: String| {
        Err(ProblemError::ScoreShape { tensor, got: got.to_vec(), dimension, expected })
    };
    let one_or = |size: usize| if size == 1 { "1".to_string() } else { format!("1 or {size}") };
    let (sequences, what) = match lengths {
        Lengths::Batch => (batch, "batch"),
        Lengths::Packed(packed) => (packed.count(), "the number of sequences"),
        Lengths::OnDevice(sequences) => (*sequences, "the number of sequences"),
    };
    if ![1, sequences].contains(&got[0]) {
        return refuse(0, format!("{}, {what}", one_or(sequences)));
    }
    if ![1, num_heads].contains(&got[1]) {
        return refuse(1, format!("{}, num_heads", one_or(num_heads)));
    }
    match lengths {
        Lengths::Batch if ![1, seqlen_q].contains(&got[2]) => {
            refuse(2, format!("{}, seqlen_q", one_or(seqlen_q)))
        }
        Lengths::Batch if got[3] != seqlen_k => {
            refuse(3, format!("{seqlen_k}, seqlen_k; a stride of 0 makes one column many"))
        }
        Lengths::Packed(packed) => {
            let [queries, keys] = packed.longest();
            if got[2] != 1 && got[2] < queries {
                return refuse(2, format!("1 or at least {queries}, the queries of the longest sequence"));
            }
            if got[3] < keys {
                return refuse(3, format!("at least {keys}, the keys of the longest sequence"));
            }
            Ok(())
        }
        Lengths::Batch | Lengths::OnDevice(_) => Ok(()),
    }
}
