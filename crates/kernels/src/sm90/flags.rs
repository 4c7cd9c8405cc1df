//! Dropout: selectors that the drawing warps make, by which the multiplying warps pack probabilities.
//!
//! The generator's word order is the accumulator's (`parts/dropout.rs`), so that what lane l of any warp draws is
//! what lane l of a multiplying warp needs: 16 bytes for 16 rows and 32 columns. A byte becomes the half of a
//! selector of `prmt`: the two bytes of a probability in what is packed, or, with the sign bits of both nibbles set,
//! "dropped": twice the sign of a positive number, which is zero. So one instruction packs two probabilities and
//! drops those that are dropped (bf16; f16 has to be rounded by another).
use super::pipeline::FLAG_BLOCK_BYTES;
use crate::config::{HopperCommon, HopperForm};
use crate::parts::args::DropoutVals;
use crate::parts::dropout::{DropSigns, Philox, ROW_WORDS, StreamColumn, StreamRow};
use crate::parts::work::Work;
use signflash_ptx::{B32, BulkRing, BulkRingConsumer, BulkRingProducer, Half, U32, Val, Var, Warp};

/// Selectors of two pairs of which all are kept: bytes 2 and 3 of one f32 and of the other (bf16 is the upper half of
/// f32), or both halves of a packed pair.
pub(super) fn kept(half: Half) -> u32 {
    match half {
        Half::Bf16 => 0x7632_7632,
        Half::F16 => 0x3210_3210,
    }
}

/// What turns both nibbles of a kept byte into the sign of the upper one.
const DROP: u32 = 0x8989_8989;

/// Selector of `prmt` that replicates the sign of each byte over its bits.
const SIGNS: u32 = 0xBA98;

/// Draws flags: each drawing warpgroup those of one or more that multiply.
pub(super) struct FlagWriter<'a, 'k> {
    form: &'a HopperForm,
    philox: Philox<'k>,
    sign: DropSigns<'k>,
    kept: Val<'k, B32>,
    share: Share,
    lane: Var<'k, U32>,
    served: Vec<Served<'k>>,
    /// Bytes from a stage's start to the first 16 of this lane.
    own: Val<'k, U32>,
    /// The 16 rows of the whole that are the first of this warp's, in the first tile.
    first_row16: Val<'k, U32>,
    /// The first 32 columns of this warp's, in the first step.
    first_column32: Val<'k, U32>,
}

/// A multiplying warpgroup: its ring, and what of the generator does not change within a tile, for each 16 rows.
struct Served<'k> {
    ring: BulkRingProducer<'k>,
    rows: Vec<[Var<'k, U32>; ROW_WORDS]>,
}

/// How the four warps of a drawing warpgroup share a step: the fewer columns a warp has, the more of the generator its
/// blocks have in common.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Blocks of 32 columns of a step.
    columns32: u32,
    /// Warps among which they are shared; the rest of the four share the rows.
    column_warps: u32,
}

impl Share {
    fn of(form: &HopperForm) -> Share {
        let columns32 = form.step / 32;
        let column_warps =
            [4, 2, 1].into_iter().find(|warps| columns32.is_multiple_of(*warps)).expect("one does");
        Share { columns32, column_warps }
    }

    /// Bytes from a stage's start to a block's.
    fn place(&self, row16: u32, column32: u32) -> u32 {
        (row16 * self.columns32 + column32) * FLAG_BLOCK_BYTES
    }
}

impl<'a, 'k> FlagWriter<'a, 'k> {
    /// For the rings of all multiplying warpgroups.
    pub(super) fn new(
        warp: Warp<'k>,
        rings: BulkRing<'k>,
        form: &'a HopperForm,
        common: &HopperCommon,
        args: &DropoutVals<'k>,
    ) -> Self {
        let t = warp.threads();
        let share = Share::of(form);
        let (drawer, number) = ((warp.index() >> 2u32) - form.warpgroups, warp.index() & 3);
        let column = number & (share.column_warps - 1);
        let row = (number >> share.column_warps.ilog2()) * share.column_warps;
        assert!(form.warpgroups.is_multiple_of(form.drawers), "each drawer serves as many: {form:?}");
        let zero = || t.u32(0).var();
        let serve = |i: u32| {
            let ring = rings.nth(drawer + i * form.drawers).producer(t);
            Served { ring, rows: (0..share.column_warps).map(|_| [(); ROW_WORDS].map(|()| zero())).collect() }
        };
        FlagWriter {
            form,
            philox: Philox::new(warp, args),
            sign: DropSigns::new(t, args),
            // A number that ptxas does not know (the threshold has 8 bits), so that it stays in a register: two
            // constants would take two instructions.
            kept: ((args.threshold >> 8u32) | kept(common.operands.half)).cast(),
            share,
            lane: zero(),
            served: (0..form.warpgroups / form.drawers).map(serve).collect(),
            own: (row * share.columns32 + column) * FLAG_BLOCK_BYTES + t.lane() * 16,
            first_row16: args.first_row16 + drawer * 4 + row,
            first_column32: args.first_column32 + column,
        }
    }

    /// For another tile of queries.
    pub(super) fn begin(&mut self, warp: Warp<'k>, work: Work<'k>) {
        let form = self.form;
        let stream = self.philox.stream(warp.threads(), work.sequence, work.head);
        self.lane.set(stream.lane());
        let first = self.first_row16 + work.block * (form.rows() / 16);
        for (i, served) in self.served.iter().enumerate() {
            for (r, row) in served.rows.iter().enumerate() {
                let words = stream.row(first + 4 * form.drawers * i as u32 + r as u32).words();
                row.iter().zip(words).for_each(|(var, word)| var.set(word));
            }
        }
    }

    /// Those of one step, of all served at once: the more independent chains of products, the better.
    pub(super) fn write(&mut self, warp: Warp<'k>, step: Val<'k, U32>) {
        let t = warp.threads();
        let FlagWriter { philox, sign, served, own, share, lane, kept, .. } = self;
        let first = self.first_column32 + step * share.columns32;
        let columns = (0..share.columns32).step_by(share.column_warps as usize);
        let mut rings = vec![];
        let mut rows: Vec<Vec<StreamRow<'k>>> = vec![];
        for Served { ring, rows: words } in served.iter_mut() {
            rings.push(ring);
            rows.push(
                words.iter().map(|words| StreamRow::from_words(words.each_ref().map(Var::get))).collect(),
            );
        }
        BulkRingProducer::fill_with_stores(&mut rings, warp, |stages| {
            for column in columns {
                let words = StreamColumn::new(lane.get(), first + column);
                for (stage, rows) in stages.iter().zip(&rows) {
                    for (r, row) in (0..).zip(rows) {
                        let to = stage.plus(*own).at(share.place(r, column));
                        let selectors = philox.block(row, &words).map(|bytes| {
                            let dropped = sign.dropped(bytes).permute(0u32, SIGNS);
                            (dropped & DROP) | *kept
                        });
                        t.store(to, selectors);
                    }
                }
            }
        });
    }
}

/// Reads selectors.
pub(super) struct FlagReader<'k> {
    ring: BulkRingConsumer<'k>,
    /// Bytes from a stage's start to the lane's first 16.
    own: Val<'k, U32>,
    columns32: u32,
}

impl<'k> FlagReader<'k> {
    /// For one warpgroup, from the rings of all.
    pub(super) fn new(
        warp: Warp<'k>,
        rings: BulkRing<'k>,
        wg_number: Val<'k, U32>,
        form: &HopperForm,
    ) -> Self {
        let columns32 = form.step / 32;
        let own = (warp.index() & 3) * (columns32 * FLAG_BLOCK_BYTES) + warp.threads().lane() * 16;
        FlagReader { ring: rings.nth(wg_number).consumer(warp), own, columns32 }
    }

    /// Waits for the next step's: for each 32 columns four words, whose bytes have "dropped" in their sign bits.
    pub(super) fn words(&mut self, warp: Warp<'k>) -> Vec<[Val<'k, B32>; 4]> {
        let stage = self.ring.wait(warp);
        let from = stage.address().plus(self.own);
        let words = (0..self.columns32).map(|i| warp.threads().load(from.at(i * FLAG_BLOCK_BYTES))).collect();
        stage.release(warp);
        words
    }

    /// The selectors of the next step.
    pub(super) fn selectors(&mut self, warp: Warp<'k>) -> Selectors<'k> {
        Selectors(self.words(warp))
    }
}

/// Selectors of `prmt` of a step's pairs: a word has those of two rows, and is shifted when they are asked for.
#[derive(Debug)]
pub(super) struct Selectors<'k>(Vec<[Val<'k, B32>; 4]>);

impl<'k> Selectors<'k> {
    /// Those of 16 keys.
    pub(super) fn of(&self, k16: usize) -> [Val<'k, B32>; 4] {
        let words = &self.0[k16 / 2][2 * (k16 % 2)..];
        let lower = |word: Val<'k, B32>| word >> 16u32;
        [words[0], lower(words[0]), words[1], lower(words[1])]
    }

    /// The same, shifted once more when they are asked for: ptxas must not keep in registers what it has shifted before.
    pub(super) fn anew(&self, warp: Warp<'k>) -> Self {
        Selectors(self.0.iter().map(|words| words.map(|word| warp.shuffle_xor(word, 0))).collect())
    }
}

/// Selectors of `prmt` that replicate the sign bits of the lower two bytes, or of the upper two, over 16 bits each.
const DROPPED: [u32; 2] = [0x9988, 0xBBAA];

/// Of 16 columns what is dropped of the four packed pairs of an operand: all ones in the halves.
#[track_caller]
pub(super) fn dropped<'k>(words: &[[Val<'k, B32>; 4]], k16: usize) -> [Val<'k, B32>; 4] {
    let words = &words[k16 / 2][2 * (k16 % 2)..];
    let dropped = |word: Val<'k, B32>, lower: usize| word.permute(0u32, DROPPED[lower]);
    [dropped(words[0], 0), dropped(words[0], 1), dropped(words[1], 0), dropped(words[1], 1)]
}
