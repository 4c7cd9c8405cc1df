//! Why a problem cannot be run.

use std::fmt;
use std::ops::Range;

/// The tensor that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // each variant is the tensor of that name
pub enum TensorName {
    Q,
    K,
    V,
    Out,
    Lse,
    Probs,
    Dout,
    Dlse,
    Dq,
    Dk,
    Dv,
    AlibiSlopes,
    Bias,
    Mask,
    Sinks,
    Dbias,
    Dsinks,
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::Lse => "lse",
            Self::Probs => "probs",
            Self::Dout => "dout",
            Self::Dlse => "dlse",
            Self::Dq => "dq",
            Self::Dk => "dk",
            Self::Dv => "dv",
            Self::AlibiSlopes => "alibi_slopes",
            Self::Bias => "bias",
            Self::Mask => "mask",
            Self::Sinks => "sinks",
            Self::Dbias => "dbias",
            Self::Dsinks => "dsinks",
        })
    }
}

/// Why a problem or its tensors were refused. Every message names the argument, what was expected, what came and,
/// where there is one, the remedy.
///
/// ```
/// use signflash_core::Dropout;
/// let refused = Dropout::new(1.0, 0, 0).unwrap_err();
/// assert_eq!(refused.to_string(), "dropout_p must be in [0, 1), got 1; it is the probability of dropping");
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// dropout_p outside [0, 1) or NaN.
    #[error("dropout_p must be in [0, 1), got {got}; it is the probability of dropping")]
    DropoutP {
        /// What came.
        got: f32,
    },
    /// softmax_scale that is infinite or NaN.
    #[error("softmax_scale must be {}, got {got:e}; leave it out for 1 / sqrt(head_dim)", finite(*got))]
    SoftmaxScale {
        /// What came.
        got: f64,
    },
    /// head_dim outside 1..=256.
    #[error("head_dim must be from 1 to {max}, got {got}", max = crate::MAX_HEAD_DIM)]
    HeadDim {
        /// What came.
        got: usize,
    },
    /// head_dim of v outside 1..=256.
    #[error("head_dim of v must be from 1 to {max}, got {got}", max = crate::MAX_HEAD_DIM)]
    HeadDimV {
        /// What came.
        got: usize,
    },
    /// A softcap that caps nothing, or that is no number of f32.
    #[error("softcap must be positive and finite as f32, got {got:e}; leave it out for none")]
    Softcap {
        /// What came.
        got: f64,
    },
    /// A bias or a mask of a shape that does not broadcast to the scores.
    #[error("{tensor} has shape {got:?}, expected its dimension {dimension} to be {expected}")]
    ScoreShape {
        /// Which tensor.
        tensor: TensorName,
        /// What came.
        got: Vec<usize>,
        /// Which of its dimensions, from 0.
        dimension: usize,
        /// What would do, and what that is.
        expected: String,
    },
    /// A bias, or its gradient, of another dtype than the problem says.
    #[error("{tensor} must be {expected} as the problem says, got {got}; build the problem with its dtype")]
    ScoreDtype {
        /// Which tensor.
        tensor: TensorName,
        /// What the problem says.
        expected: crate::Dtype,
        /// What came.
        got: crate::Dtype,
    },
    /// What a problem says its scores have, and nobody gave.
    #[error("the problem has {}, and the inputs have none; give it with Inputs::scores", article(*tensor))]
    ScoreMissing {
        /// Which tensor.
        tensor: TensorName,
    },
    /// What was given, and the problem does not know of.
    #[error("{tensor} was given, and the problem has none; build it with {}", declared_by(*tensor))]
    ScoreUndeclared {
        /// Which tensor.
        tensor: TensorName,
    },
    /// What an engine does not compute.
    #[error("{engine} does not compute {feature}; another engine may, and the f64 oracle does")]
    NotComputed {
        /// Which engine.
        engine: &'static str,
        /// What it lacks.
        feature: crate::Feature,
    },
    /// num_heads is no multiple of num_heads_k, or one of them is 0.
    #[error(
        "num_heads must be a positive multiple of num_heads_k, got num_heads {num_heads} and num_heads_k \
         {num_heads_k}; each key head serves num_heads / num_heads_k query heads"
    )]
    HeadGroups {
        /// Query heads.
        num_heads: usize,
        /// Key heads.
        num_heads_k: usize,
    },
    /// A size so large that its index arithmetic would overflow.
    #[error("{argument} must be at most {max} to be addressable, got {got}; cut the problem into shards")]
    TooLarge {
        /// Which size.
        argument: &'static str,
        /// What came.
        got: usize,
        /// The largest accepted value.
        max: usize,
    },
    /// A diagonal so far outside that its index arithmetic would overflow.
    #[error(
        "diagonal must be from -{max} to {max}, got {got}; beyond seqlen_k every query sees all keys, below -seqlen_q none"
    )]
    Diagonal {
        /// What came.
        got: i64,
        /// The largest accepted value.
        max: i64,
    },
    /// A number of cu_seqlens that is none, or that no sequence can begin or end at.
    #[error("{argument}[{index}] must be {expected}, got {}; it is where a sequence begins, and the last ends", Shown(*got))]
    CuSeqlens {
        /// Of queries, or of keys.
        argument: &'static str,
        /// Which of its numbers.
        index: usize,
        /// What would do.
        expected: String,
        /// What came, if anything.
        got: Option<u32>,
    },
    /// Different numbers of sequences of queries and of keys.
    #[error(
        "cu_seqlens_q and cu_seqlens_k must have as many numbers, one more than there are sequences, got {q} and {k}"
    )]
    CuSeqlensCount {
        /// Numbers of cu_seqlens_q.
        q: usize,
        /// Numbers of cu_seqlens_k.
        k: usize,
    },
    /// A setting that packed sequences do not go with.
    #[error("{argument} must be {expected} with packed sequences (cu_seqlens), got {got}; {remedy}")]
    Packed {
        /// Which setting.
        argument: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What came.
        got: i64,
        /// What to do.
        remedy: &'static str,
    },
    /// Tensors in the host's memory, whose sequences' lengths only a device knows.
    #[error(
        "cu_seqlens must be known to the host to compute there, got {sequences} sequences whose lengths lie on a device; copy them"
    )]
    LengthsOnDevice {
        /// How many sequences.
        sequences: usize,
    },
    /// A piece that does not lie within the problem.
    #[error("{argument} must lie within 0..{len}, got {got:?}")]
    Piece {
        /// Which of its ranges.
        argument: &'static str,
        /// What came.
        got: Range<usize>,
        /// How many the whole has.
        len: usize,
    },
    /// A piece of several groups of heads, not all of them whole.
    #[error(
        "piece.heads must be whole groups of {group}, which share a key head, or lie within one, got {got:?}"
    )]
    PieceHeads {
        /// What came.
        got: Range<usize>,
        /// Query heads per key head.
        group: usize,
    },
    /// The shard lies outside the whole that it names.
    #[error(
        "shard.num_heads_total is {total}, but the shard holds heads {first} to {end}; give the number of query \
         heads of the whole problem"
    )]
    ShardHeads {
        /// Heads of the whole.
        total: usize,
        /// First head of the shard.
        first: usize,
        /// One past its last head.
        end: usize,
    },
    /// A tensor of the wrong shape.
    #[error("{tensor} has shape {got:?}, expected {expected:?} {meaning}")]
    Shape {
        /// Which tensor.
        tensor: TensorName,
        /// What the problem asks for.
        expected: Vec<usize>,
        /// What came.
        got: Vec<usize>,
        /// The names of the dimensions.
        meaning: &'static str,
    },
    /// The last dimension is not dense.
    #[error("{tensor} must have stride 1 in its last dimension, got {got}; make it contiguous there")]
    LastStride {
        /// Which tensor.
        tensor: TensorName,
        /// What came.
        got: usize,
    },
    /// Shape and strides reach beyond the storage.
    #[error(
        "{tensor} needs {needed} elements of storage by its shape and strides, got {got}; pass all of its storage, or \
         the strides it was stored with"
    )]
    Storage {
        /// Which tensor.
        tensor: TensorName,
        /// What shape and strides address; `usize::MAX` if it cannot be counted.
        needed: usize,
        /// What came.
        got: usize,
    },
    /// A tensor has elements, but no memory that could hold them.
    #[error(
        "{tensor} has {elements} elements at address {address:#x}, {why}; its storage was freed, or it is a view that \
         no copy was made of"
    )]
    Address {
        /// Which tensor.
        tensor: TensorName,
        /// How many elements there are.
        elements: usize,
        /// Where the first should be.
        address: usize,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Two indices of an output name the same element.
    #[error(
        "{tensor} is written, so its strides must give every index an element of its own, got strides {strides:?} for \
         shape {shape:?}; write to a tensor that is not broadcast"
    )]
    Overlap {
        /// Which tensor.
        tensor: TensorName,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides.
        strides: Vec<usize>,
    },
}

/// A number, or that there is none.
struct Shown(Option<u32>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("nothing"),
        }
    }
}

/// The operand of scores, as one speaks of it.
const fn article(tensor: TensorName) -> &'static str {
    match tensor {
        TensorName::AlibiSlopes => "alibi_slopes",
        TensorName::Bias => "a bias",
        TensorName::Mask => "a mask",
        _ => "sinks",
    }
}

/// Which method of the builder declares it.
const fn declared_by(tensor: TensorName) -> &'static str {
    match tensor {
        TensorName::AlibiSlopes => "ProblemBuilder::alibi",
        TensorName::Bias | TensorName::Dbias => "ProblemBuilder::bias",
        TensorName::Mask => "ProblemBuilder::mask",
        _ => "ProblemBuilder::sinks",
    }
}

/// What a scale must be, said so that a finite one that is too large for the kernels finds itself.
const fn finite(scale: f64) -> &'static str {
    if scale.is_finite() { "finite as f32, too (up to 3.4e38)" } else { "finite" }
}
