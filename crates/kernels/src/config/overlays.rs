//! What kernels depend on of the tensors that are added to scores.
use super::depends::{HopperCommon, Scores};
use std::fmt;

/// The tensors that are added to scores, as far as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Overlays {
    /// A bias.
    pub bias: Option<OverlayKind>,
    /// A mask of bytes: -inf is added where it is 0.
    pub mask: Option<OverlayKind>,
    /// Whether it is known of each sequence which of its keys the mask leaves: the first of them and the last.
    pub padding: bool,
}

/// How a kernel reads a tensor that has a number for each query and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OverlayKind {
    /// What it consists of.
    pub numbers: Numbers,
    /// Whether the numbers of all queries are the same.
    pub per_key: bool,
    /// Whether the numbers of two neighbouring keys are read at once.
    pub pairs: bool,
    /// Whether the copy engine brings them, in boxes, instead.
    pub boxes: bool,
}

/// Formats of such numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Numbers {
    F32,
    F16,
    Bf16,
    /// Of a mask.
    Bytes,
}

impl Overlays {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.bias.is_none() && self.mask.is_none()
    }

    /// The same for Hopper's own kernels: where it is known which keys a mask leaves, they ask it of single keys.
    pub(crate) fn asking(self) -> Self {
        let ask = |kind: OverlayKind| OverlayKind { pairs: kind.pairs && !self.padding, ..kind };
        Overlays { mask: self.mask.map(ask), ..self }
    }

    /// The same with a bias in boxes.
    pub(crate) fn boxed(self) -> Self {
        let boxed = |kind: OverlayKind| OverlayKind { pairs: false, boxes: true, ..kind };
        Overlays { bias: self.bias.map(boxed), ..self }
    }

    /// Whether a bias comes in boxes.
    pub(crate) fn has_boxes(&self) -> bool {
        self.bias.is_some_and(|kind| kind.boxes)
    }

    /// The mask that is read for every tile, if there is one.
    pub(crate) fn mask_read(&self) -> Option<OverlayKind> {
        self.mask.filter(|_| !self.padding)
    }

    /// Registers that a thread of Hopper's forward reads for each 8 columns of an accumulator, where it has 4 scores.
    pub(crate) fn registers(&self) -> u32 {
        let of = |kind: OverlayKind| {
            let two = if kind.pairs && kind.numbers != Numbers::F32 { 1 } else { 2 };
            match (kind.boxes, kind.per_key) {
                (true, _) => 0,
                (false, true) => two,
                (false, false) => 2 * two,
            }
        };
        [self.bias, self.mask_read()].into_iter().flatten().map(of).sum()
    }

    /// Whether some are other numbers for each query.
    pub(crate) fn are_by_query(&self) -> bool {
        [self.bias, self.mask].into_iter().flatten().any(|kind| !kind.per_key)
    }

    /// The same for kernels whose accumulators' rows are keys.
    pub(crate) fn by_keys(self) -> Self {
        let by_keys = |kind: OverlayKind| OverlayKind { pairs: kind.is_transposed(), ..kind };
        Overlays { bias: self.bias.map(by_keys), mask: self.mask.map(by_keys), ..self }
    }
}

impl HopperCommon {
    /// The same with a bias in boxes.
    pub(crate) fn boxed(self) -> Self {
        HopperCommon { scores: Scores { overlays: self.scores.overlays.boxed(), ..self.scores }, ..self }
    }
}

impl OverlayKind {
    /// Whether two keys are read at once where accumulators' rows are keys: then their numbers are transposed between
    /// lanes, which needs numbers of up to 16 bits.
    pub(crate) fn is_transposed(self) -> bool {
        self.pairs && !self.per_key && self.numbers != Numbers::F32
    }
}

impl Numbers {
    /// Bytes of one.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Numbers::F32 => 4,
            Numbers::F16 | Numbers::Bf16 => 2,
            Numbers::Bytes => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Numbers::F32 => "_f32",
            Numbers::F16 => "_f16",
            Numbers::Bf16 => "_bf16",
            Numbers::Bytes => "",
        }
    }
}

impl fmt::Display for Overlays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, kind) in [("bias", self.bias), ("mask", self.mask)] {
            if let Some(OverlayKind { numbers, per_key, pairs, boxes }) = kind {
                let (key, two) = (
                    if per_key { "key" } else { "" },
                    if boxes {
                        "box"
                    } else if pairs {
                        "x2"
                    } else {
                        ""
                    },
                );
                write!(f, "_{key}{name}{}{two}", numbers.name())?;
            }
        }
        f.write_str(if self.padding { "_padded" } else { "" })
    }
}
