//! Biases that the copy engine brings: boxes of 64 keys of a tile's queries, as it leaves them in shared memory.
//!
//! A lane's numbers lie in pieces of 4 bytes in eight rows, of which the unit that loads takes one after the other: beside products
//! that read shared memory through the same unit, that alone took longer than the products. From boxes `ldmatrix` reads
//! them as accumulators have them, four matrices at once.
use super::numbers::Two;
use super::{Overlay, OverlayOf, OverlayVals};
use crate::config::OverlayKind;
use crate::parts::sequence::Sequence;
use signflash_ptx::{B32, BoxStart, Order, SmemAddr, TileLayout, U32, U64, Val, Warp};
use std::cell::Cell;

/// Keys of a box.
pub(crate) const BOX_KEYS: u32 = 64;

/// Bytes of a box of so many queries.
pub(crate) fn box_bytes(queries: u32) -> u32 {
    queries * BOX_KEYS * 2
}

/// What rows of an accumulator are, and where a warp's are in a step's boxes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OwnPart<'k> {
    /// Queries: of 64, the warp's 16.
    Queries,
    /// Keys: of the box that begins here, the 16 of this number.
    Keys(Val<'k, U32>),
}

/// A step's numbers of a warp.
#[derive(Debug)]
pub(crate) struct BoxRead<'k> {
    warp: Warp<'k>,
    kind: OverlayKind,
    own: SmemAddr<'k>,
    part: OwnPart<'k>,
    /// The pair of groups of eight columns that was read last.
    last: Cell<Option<(usize, [Val<'k, B32>; 4])>>,
}

impl<'k> OverlayVals<'k> {
    /// The bias, if it comes in boxes.
    pub(crate) fn boxed(&self) -> Option<OverlayKind> {
        self.bias.as_ref().map(|(kind, _)| *kind).filter(|kind| kind.boxes)
    }

    /// Where a box begins, from this query of a sequence's head on.
    #[track_caller]
    pub(crate) fn box_at(
        &self,
        (sequence, head): (Sequence<'k>, Val<'k, U32>),
        query: Val<'k, U32>,
    ) -> BoxStart<'k> {
        let (_, tensor) = self.bias.as_ref().expect("a bias");
        // What there is one of is everybody's.
        let own = |stride: Val<'k, U64>, number: Val<'k, U32>| stride.ne(0u64).select::<U32>(number, 0u32);
        self.box_of([own(tensor.batch, sequence.number), own(tensor.head, head)], query)
    }

    /// The same of the bias's own batch and head.
    pub(crate) fn box_of(&self, [batch, head]: [Val<'k, U32>; 2], query: Val<'k, U32>) -> BoxStart<'k> {
        [query, head, batch].into()
    }
}

impl<'k> BoxRead<'k> {
    pub(crate) fn new(warp: Warp<'k>, kind: OverlayKind, boxes: SmemAddr<'k>, part: OwnPart<'k>) -> Self {
        let own = match part {
            OwnPart::Queries => boxes.plus((warp.index() & 3) * TileLayout::new(BOX_KEYS).bytes(16)),
            OwnPart::Keys(_) => boxes,
        };
        BoxRead { warp, kind, own, part, last: Cell::new(None) }
    }

    /// Of 16 columns: for each eight of them a word of each of the thread's rows.
    #[track_caller]
    fn words(&self, pair: usize) -> [Val<'k, B32>; 4] {
        if let Some((_, words)) = self.last.get().filter(|(last, _)| *last == pair) {
            return words;
        }
        let (layout, pair16) = (TileLayout::new(BOX_KEYS), pair as u32);
        let lanes = self.warp.tile_lanes(layout, Order::Down);
        let words = match self.part {
            OwnPart::Queries => {
                let own = self.own.at(pair16 / 4 * box_bytes(64));
                self.warp.load_matrices(&lanes, own, 0, pair16 % 4)
            }
            OwnPart::Keys(number) => {
                let own = self.own.plus(lanes.column(self.warp, number)).at(layout.bytes(16 * pair16));
                let [a, b, c, d] = self.warp.load_matrices_at(own, true);
                [a, c, b, d]
            }
        };
        self.last.set(Some((pair, words)));
        words
    }
}

impl<'k> OverlayOf<'k> for BoxRead<'k> {
    fn of(&self, group: usize) -> [Overlay<'k>; 4] {
        let words = self.words(group / 2);
        std::array::from_fn(|register| {
            let two = Two::Halves(words[2 * (group % 2) + register / 2]);
            Overlay::of(Some(two.number(self.kind, register % 2)), None)
        })
    }
}
