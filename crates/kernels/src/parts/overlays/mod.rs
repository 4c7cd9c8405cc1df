//! What is added to scores: a bias, and a mask, each a number for each query and key in global memory.
//!
//! A lane reads the numbers of its own entries of an accumulator, where rows are queries ([`ByQueries`]) or keys
//! ([`ByKeys`]). It does so before the product that makes the scores is waited for, so that they are on their way
//! meanwhile; what is read stays as it is until it is added.
//!
//! Nothing outside of a tensor is read: what lies before or behind it is read at its edge instead, and is hidden. Of a
//! dense tensor that follows from what queries see; a tensor of packed sequences may be smaller than a sequence, whose
//! lengths only the GPU knows, and what lies behind it there is hidden here.
mod boxes;
mod by_keys;
mod by_queries;
mod holes;
mod numbers;

pub(crate) use boxes::{BOX_KEYS, BoxRead, OwnPart, box_bytes};
pub(crate) use by_keys::{ByKeys, QueriesRead};
pub(crate) use by_queries::{ByQueries, KeysRead};
pub(crate) use holes::KeyMask;
pub(crate) use numbers::load_one;

use super::args::{ScoreTensor, ScoreTensorVals, kernel_args};
use super::sequence::Sequence;
use super::visibility::SeenRange;
use crate::config::{Layout, OverlayKind, Overlays};
use signflash_ptx::{Arg, Cta, F32, GlobalAddr, Pred, Thread, U32, U64, Val};

kernel_args! {
    /// The bias.
    BiasArgs / BiasVals {
        /// Any strides.
        bias: ScoreTensor,
    }
}

kernel_args! {
    /// The mask.
    MaskArgs / MaskVals {
        /// Any strides.
        mask: ScoreTensor,
    }
}

kernel_args! {
    /// Which keys a mask leaves, whatever the query (`padding.rs`).
    PaddingArgs / PaddingVals {
        /// For each sequence the first key (u32), behind the last, and whether some between them are hidden.
        ranges: u64,
        /// From one sequence to the next; 0 if all have the same.
        ranges_step: u64,
    }
}

/// All of it, as far as there is any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct OverlayArgs {
    pub(crate) bias: Option<BiasArgs>,
    pub(crate) mask: Option<MaskArgs>,
    pub(crate) padding: Option<PaddingArgs>,
}

impl OverlayArgs {
    pub(crate) fn push(self, args: &mut Vec<Arg>) {
        if let Some(bias) = self.bias {
            bias.push(args);
        }
        if let Some(mask) = self.mask {
            mask.push(args);
        }
        if let Some(padding) = self.padding {
            padding.push(args);
        }
    }
}

/// The same on the device, each with what a kernel is built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverlayVals<'k> {
    bias: Option<(OverlayKind, ScoreTensorVals<'k>)>,
    mask: Option<(OverlayKind, ScoreTensorVals<'k>)>,
    padding: Option<PaddingVals<'k>>,
    /// Whether a mask of keys is asked where it hides some, and not read for every tile.
    asks: bool,
    /// Whether sequences are packed.
    packed: bool,
}

impl<'k> OverlayVals<'k> {
    /// Of a kernel that is built for these; none if nothing is added to its scores.
    pub(crate) fn declare(cta: Cta<'k>, kinds: Overlays, layout: Layout) -> Option<Self> {
        let packed = layout.is_packed();
        (!kinds.is_none()).then(|| OverlayVals {
            bias: kinds.bias.map(|kind| (kind, BiasVals::declare(cta).bias)),
            mask: kinds.mask.map(|kind| (kind, MaskVals::declare(cta).mask)),
            padding: kinds.padding.then(|| PaddingVals::declare(cta)),
            asks: false,
            packed,
        })
    }

    /// Both, as far as they are read for every tile.
    fn tensors<T>(&self, of: impl Fn(OverlayKind, &ScoreTensorVals<'k>) -> T) -> Both<T> {
        Both {
            bias: self.bias.as_ref().filter(|(kind, _)| !kind.boxes).map(|(kind, tensor)| of(*kind, tensor)),
            mask: self.mask.as_ref().filter(|_| !self.asks).map(|(kind, tensor)| of(*kind, tensor)),
        }
    }

    /// Which keys of a sequence some query may see, as far as is known of all queries at once: those of packed sequences
    /// that the tensors have, and those between the first and the last that a mask leaves.
    #[track_caller]
    pub(crate) fn range(&self, t: Thread<'k>, sequence: Sequence<'k>) -> Option<SeenRange<'k>> {
        let tensors = [self.bias, self.mask].into_iter().flatten().filter(|_| self.packed);
        let keys = tensors.fold(sequence.seqlen_k, |keys, (_, tensor)| keys.min(tensor.columns));
        match &self.padding {
            Some(args) => {
                let own = self.sequence_number(sequence).widen().mul_add(args.ranges_step, args.ranges);
                let [begin, end, has_holes, _] = t.load_constant::<U32, 4>(GlobalAddr::new(own));
                Some(SeenRange { begin: Some(begin), end: end.min(keys), has_holes: Some(has_holes.ne(0)) })
            }
            None => self.packed.then_some(SeenRange { begin: None, end: keys, has_holes: None }),
        }
    }

    /// The number of a sequence in the tensors, which do not know of what is left over behind the last packed one.
    #[track_caller]
    fn sequence_number(&self, sequence: Sequence<'k>) -> Val<'k, U32> {
        sequence.packed.map_or(sequence.number, |begins| sequence.number.min(begins.count - 2))
    }

    /// Where the matrix of a head of a sequence begins.
    #[track_caller]
    fn matrix(
        &self,
        tensor: &ScoreTensorVals<'k>,
        sequence: Sequence<'k>,
        head: Val<'k, U32>,
    ) -> Val<'k, U64> {
        let start = self.sequence_number(sequence).widen().mul_add(tensor.batch, tensor.ptr);
        head.widen().mul_add(tensor.head, start)
    }
}

/// Something of the bias and of the mask.
#[derive(Clone, Copy, Debug)]
struct Both<T> {
    bias: Option<T>,
    mask: Option<T>,
}

impl<T> Both<T> {
    fn map<U>(&self, of: impl Fn(&T) -> U) -> Both<U> {
        Both { bias: self.bias.as_ref().map(&of), mask: self.mask.as_ref().map(&of) }
    }
}

/// What is added to one score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlay<'k> {
    /// The bias.
    pub(crate) number: Option<Val<'k, F32>>,
    /// Whether the key is seen, as far as bias and mask say.
    pub(crate) seen: Val<'k, Pred>,
}

/// What was read for a tile, as it is used.
pub(crate) trait OverlayOf<'k> {
    /// What is added to a group of 8 columns of an accumulator, for each of its registers.
    #[track_caller]
    fn of(&self, group: usize) -> [Overlay<'k>; 4];
}

/// What was read, if anything was, of whichever orientation.
pub(crate) fn dynamic<'a, 'k, T: OverlayOf<'k>>(read: &'a Option<T>) -> Option<&'a dyn OverlayOf<'k>> {
    read.as_ref().map(|read| read as &dyn OverlayOf<'k>)
}

impl<'k> Overlay<'k> {
    /// Of a bias and of what a mask says, one of which there is.
    #[track_caller]
    fn of(number: Option<Val<'k, F32>>, mask: Option<Val<'k, Pred>>) -> Self {
        let seen = [number.map(|number| !number.eq(f32::NEG_INFINITY)), mask];
        let seen = seen.into_iter().flatten().reduce(|a, b| a & b).expect("a bias or a mask");
        Overlay { number, seen }
    }
}

impl<'k> ScoreTensorVals<'k> {
    /// How far a row of it is from the first; one before the first or behind the last is taken for the last.
    #[track_caller]
    fn row_bytes(&self, row: Val<'k, U32>) -> Val<'k, U64> {
        row.min(self.rows - 1).widen() * self.row
    }
}
