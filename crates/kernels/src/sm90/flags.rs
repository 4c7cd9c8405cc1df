//! Dropout: flags that the loading warps draw, and masks that the multiplying warps make of them.
//!
//! The generator's word order is the accumulator's (`parts/dropout.rs`), so that lane l of a loading warp draws what lane
//! l of a multiplying warp needs, and leaves it there as it is: 16 bytes for 16 rows and 32 columns, "dropped" in the
//! sign bit of each. `prmt` replicates the sign of a byte, so that one instruction makes of two flags the mask of a packed
//! pair of probabilities.
use super::pipeline::FLAG_BLOCK_BYTES;
use super::softmax::Masks;
use crate::config::Warpgroups;
use crate::parts::args::DropoutVals;
use crate::parts::dropout::{Philox, ROW_WORDS, SignMask, StreamRow};
use crate::parts::work::Work;
use signflash_ptx::{B32, BulkRing, BulkRingConsumer, BulkRingProducer, U32, Val, Var, Warp};

/// Draws flags: warp w of a loading warpgroup those of warp w of one or more that multiply.
pub(super) struct FlagWriter<'a, 'k> {
    shape: &'a Warpgroups,
    philox: Philox<'k>,
    sign: SignMask<'k>,
    served: Vec<Served<'k>>,
    /// Bytes from a stage's start to the lane's first 16.
    own: Val<'k, U32>,
    /// The 16 rows of the whole that the first one served has in the first tile.
    first_row16: Val<'k, U32>,
    first_column32: Val<'k, U32>,
}

/// A multiplying warpgroup: its ring, and what of the generator does not change within a tile.
struct Served<'k> {
    ring: BulkRingProducer<'k>,
    row: [Var<'k, U32>; ROW_WORDS],
}

impl<'a, 'k> FlagWriter<'a, 'k> {
    /// For the rings of all multiplying warpgroups.
    pub(super) fn new(
        warp: Warp<'k>,
        rings: BulkRing<'k>,
        shape: &'a Warpgroups,
        args: &DropoutVals<'k>,
    ) -> Self {
        let t = warp.threads();
        let (loader, number) = ((warp.index() >> 2u32) - shape.groups, warp.index() & 3);
        assert!(shape.groups.is_multiple_of(shape.loaders), "each loader serves as many: {shape:?}");
        let serve = |i: u32| {
            let ring = rings.nth(loader + i * shape.loaders).producer(t);
            Served { ring, row: [(); ROW_WORDS].map(|()| t.u32(0).var()) }
        };
        FlagWriter {
            shape,
            philox: Philox::new(warp, args),
            sign: SignMask::new(t, args),
            served: (0..shape.groups / shape.loaders).map(serve).collect(),
            own: number * (shape.step / 32 * FLAG_BLOCK_BYTES) + t.lane() * 16,
            first_row16: args.first_row16 + loader * 4 + number,
            first_column32: args.first_column32,
        }
    }

    /// For another tile of queries.
    pub(super) fn begin(&mut self, warp: Warp<'k>, work: Work<'k>) {
        let shape = self.shape;
        let stream = self.philox.stream(warp.threads(), work.batch, work.head);
        let first = self.first_row16 + work.block * (shape.rows() / 16);
        for (i, served) in self.served.iter().enumerate() {
            let words = stream.row(first + 4 * shape.loaders * i as u32).words();
            served.row.iter().zip(words).for_each(|(var, word)| var.set(word));
        }
    }

    /// Those of one step, of all served at once: the more independent chains of products, the better.
    pub(super) fn write(&mut self, warp: Warp<'k>, step: Val<'k, U32>) {
        let (t, columns32) = (warp.threads(), self.shape.step / 32);
        let FlagWriter { philox, sign, served, own, .. } = self;
        let first = self.first_column32 + step * columns32;
        let row_of =
            |served: &Served<'k>| StreamRow::from_words(std::array::from_fn(|i| served.row[i].get()));
        let rows: Vec<StreamRow<'k>> = served.iter().map(row_of).collect();
        let mut rings: Vec<_> = served.iter_mut().map(|served| &mut served.ring).collect();
        BulkRingProducer::fill_with_stores(&mut rings, warp, |stages| {
            for (stage, row) in stages.iter().zip(&rows) {
                let to = stage.plus(*own);
                for i in 0..columns32 {
                    let words = philox.block(row, first + i);
                    t.store(to.at(i * FLAG_BLOCK_BYTES), words.map(|word| sign.dropped(word)));
                }
            }
        });
    }
}

/// Selectors of `prmt` that replicate the sign bits of the lower two bytes, or of the upper two, over 16 bits each.
const DROPPED: [u32; 2] = [0x9988, 0xBBAA];

/// Reads flags, and makes masks of them.
pub(super) struct FlagReader<'k> {
    ring: BulkRingConsumer<'k>,
    /// Bytes from a stage's start to the lane's first 16.
    own: Val<'k, U32>,
    columns32: u32,
}

impl<'k> FlagReader<'k> {
    /// For one warpgroup, from the rings of all.
    pub(super) fn new(warp: Warp<'k>, rings: BulkRing<'k>, group: Val<'k, U32>, shape: &Warpgroups) -> Self {
        let columns32 = shape.step / 32;
        let own = (warp.index() & 3) * (columns32 * FLAG_BLOCK_BYTES) + warp.threads().lane() * 16;
        FlagReader { ring: rings.nth(group).consumer(warp), own, columns32 }
    }

    /// Waits for the next step's flags: for each 32 columns four words.
    pub(super) fn words(&mut self, warp: Warp<'k>) -> Vec<[Val<'k, B32>; 4]> {
        let stage = self.ring.wait(warp);
        let from = stage.address().plus(self.own);
        let words = (0..self.columns32).map(|i| warp.threads().load(from.at(i * FLAG_BLOCK_BYTES))).collect();
        stage.release(warp);
        words
    }

    /// Runs `body` with the masks of the next step. What is kept of a packed pair is worked out when `body` asks for it.
    pub(super) fn read(&mut self, warp: Warp<'k>, body: impl FnOnce(Masks<'_, 'k>)) {
        let words = self.words(warp);
        body(&|k16| Some(dropped(&words, k16).map(|mask| !mask)));
    }
}

/// Of 16 columns what is dropped of the four packed pairs of an operand: all ones in the halves.
#[track_caller]
pub(super) fn dropped<'k>(words: &[[Val<'k, B32>; 4]], k16: usize) -> [Val<'k, B32>; 4] {
    let words = &words[k16 / 2][2 * (k16 % 2)..];
    let dropped = |word: Val<'k, B32>, lower: usize| word.permute(0u32, DROPPED[lower]);
    [dropped(words[0], 0), dropped(words[0], 1), dropped(words[1], 0), dropped(words[1], 1)]
}
