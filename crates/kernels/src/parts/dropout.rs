//! What is dropped, on the GPU: Philox where FlashAttention-2 draws it, and what is done with its bytes.
//!
//! One call gives a lane 16 bytes, which are its 16 entries of a block of 16 rows and 32 columns. With g = lane / 4 and
//! c = lane % 4, byte e of word w is row g + 8 * (e / 2), column 8 w + 2 c + e % 2: just the order of a tensor-core
//! accumulator, so that words need no exchange between lanes when rows are queries.
use super::args::DropoutVals;
use super::sequence::Sequence;
use signflash_core::dropout::philox::{DROPOUT_ROUNDS, MUL_0, MUL_2, WEYL_0, WEYL_1};
use signflash_ptx::{B32, F32, GlobalAddr, Thread, U32, U64, Val, Warp};

type Word<'k> = Val<'k, U32>;

/// The generator, keyed.
#[derive(Clone, Debug)]
pub(crate) struct Philox<'k> {
    /// A pair for each round.
    keys: Vec<[Word<'k>; 2]>,
    offset: Val<'k, U64>,
    first_stream: Val<'k, U64>,
    num_heads_total: Val<'k, U64>,
}

/// The random stream of one (batch, head), for one lane.
#[derive(Debug)]
pub(crate) struct Stream<'k> {
    keys: Vec<[Word<'k>; 2]>,
    counter: [Word<'k>; 2],
}

/// Both halves of a product.
fn split<'k>(product: Val<'k, U64>) -> (Word<'k>, Word<'k>) {
    ((product >> 32u32).low(), product.low())
}

impl<'k> Philox<'k> {
    /// Reads the seed where it is, and derives the keys of all rounds.
    #[track_caller]
    pub(crate) fn new(warp: Warp<'k>, args: &DropoutVals<'k>) -> Self {
        let t = warp.threads();
        let words = |x: Val<'k, U64>| [x.low().var(), (x >> 32u32).low().var()];
        let (seed, offset) = (words(args.seed), words(args.offset));
        t.when(args.seed_and_offset_ptr.ne(0u64), |t| {
            let [a, b] = t.load::<U32, 2>(GlobalAddr::new(args.seed_and_offset_ptr));
            let [c, d] = t.load::<U32, 2>(GlobalAddr::new(args.seed_and_offset_ptr).at(8));
            for (word, value) in seed.iter().chain(&offset).zip([a, b, c, d]) {
                word.set(value);
            }
        });
        let [seed, offset] = [seed, offset].map(|words| words.map(|word| warp.uniform(word.get())));
        let key = |round: u32| [0, 1].map(|i| seed[i] + [WEYL_0, WEYL_1][i].wrapping_mul(round));
        Philox {
            keys: (0..DROPOUT_ROUNDS as u32).map(key).collect(),
            offset: offset[1].mul_wide(0x1_0000u32) * 0x1_0000u64 + offset[0].widen(),
            first_stream: args.first_stream,
            num_heads_total: args.num_heads_total,
        }
    }

    /// The stream of a head of a sequence.
    #[track_caller]
    pub(crate) fn stream(&self, t: Thread<'k>, sequence: Sequence<'k>, head: Val<'k, U32>) -> Stream<'k> {
        let stream = sequence.number.widen().mul_add(self.num_heads_total, head.widen() + self.first_stream);
        let counter = stream.mul_add(32u64, self.offset) + t.lane().widen();
        Stream { keys: self.keys.clone(), counter: [counter.low(), (counter >> 32u32).low()] }
    }

    /// The lane's 16 bytes of a block, as [`Stream::block`], from what its row and its column have in common with
    /// others: 9 of 14 products.
    ///
    /// Of the first round nothing depends on both row and column, nor of the second; of the third a half.
    #[track_caller]
    pub(crate) fn block(&self, row: &StreamRow<'k>, column: &StreamColumn<'k>) -> [Val<'k, B32>; 4] {
        let (high, low) = product0(column.high ^ row.second);
        let [third_0, third_1, third_2] = row.third;
        let mut x = [third_0 ^ column.low, third_1, high ^ third_2, low];
        for [k0, k1] in &self.keys[3..] {
            let ((high0, low0), (high1, low1)) = (product0(x[0]), product2(x[2]));
            x = [xor3(high1, x[1], *k0), low1, xor3(high0, x[3], *k1), low0];
        }
        x.map(|word| word.cast())
    }
}

impl<'k> Stream<'k> {
    /// The lane's 16 bytes of a block.
    ///
    /// All rounds are written out here; those parts of the first three that depend only on the lane and on the row are
    /// moved out of a loop over columns by ptxas, which leaves 10 of 14 products a call (counted in its output).
    #[track_caller]
    pub(crate) fn block(&self, row16: Word<'k>, column32: Word<'k>) -> [Val<'k, B32>; 4] {
        let mut x = [self.counter[0], self.counter[1], row16, column32];
        for [k0, k1] in &self.keys {
            let ((high0, low0), (high1, low1)) = (product0(x[0]), product2(x[2]));
            x = [xor3(high1, x[1], *k0), low1, xor3(high0, x[3], *k1), low0];
        }
        x.map(|word| word.cast())
    }

    /// What a column's number is mixed with, of this lane.
    #[track_caller]
    pub(crate) fn lane(&self) -> Word<'k> {
        product0(self.counter[0]).0 ^ self.keys[0][1]
    }

    /// What blocks of one row have in common.
    #[track_caller]
    pub(crate) fn row(&self, row16: Word<'k>) -> StreamRow<'k> {
        let (keys, [c0, c1]) = (&self.keys, self.counter);
        let (low0, (high1, low1)) = (product0(c0).1, product2(row16));
        let (next_high, next_low) = product0(xor3(high1, c1, keys[0][0]));
        let (last_high, last_low) = product2(xor3(next_high, low0, keys[1][1]));
        StreamRow {
            second: low1 ^ keys[1][0],
            third: [last_high ^ keys[2][0], last_low, next_low ^ keys[2][1]],
        }
    }
}

/// High and low half of the product of even words.
#[track_caller]
fn product0<'k>(x: Word<'k>) -> (Word<'k>, Word<'k>) {
    split(x.mul_wide(MUL_0))
}

/// High and low half of the product of odd words.
#[track_caller]
fn product2<'k>(x: Word<'k>) -> (Word<'k>, Word<'k>) {
    split(x.mul_wide(MUL_2))
}

/// Words of a [`StreamRow`].
pub(crate) const ROW_WORDS: usize = 4;

/// What the blocks of one row of a stream have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamRow<'k> {
    second: Word<'k>,
    third: [Word<'k>; 3],
}

impl<'k> StreamRow<'k> {
    /// In an order that [`from_words`](Self::from_words) knows.
    pub(crate) fn words(&self) -> [Word<'k>; ROW_WORDS] {
        let [a, b, c] = self.third;
        [self.second, a, b, c]
    }

    pub(crate) fn from_words([second, a, b, c]: [Word<'k>; ROW_WORDS]) -> Self {
        StreamRow { second, third: [a, b, c] }
    }
}

/// What the blocks of one column of a stream have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamColumn<'k> {
    high: Word<'k>,
    low: Word<'k>,
}

impl<'k> StreamColumn<'k> {
    /// From [`Stream::lane`].
    #[track_caller]
    pub(crate) fn new(lane: Word<'k>, column32: Word<'k>) -> Self {
        let (high, low) = product2(lane ^ column32);
        StreamColumn { high, low }
    }
}

#[track_caller]
fn xor3<'k>(a: Word<'k>, b: Word<'k>, c: Word<'k>) -> Word<'k> {
    a.cast::<B32>().xor3(b.cast(), c.cast()).cast()
}

/// What keeps or drops, in packed 16-bit form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedKeep<'k> {
    /// The threshold in both halves.
    threshold: Val<'k, B32>,
}

impl<'k> PackedKeep<'k> {
    #[track_caller]
    pub(crate) fn new(args: &DropoutVals<'k>) -> Self {
        PackedKeep { threshold: (args.threshold | args.threshold << 16u32).cast() }
    }

    /// All ones in the halves whose entry is kept, of a pair of columns: of row g, or (`lower`) of row g + 8.
    ///
    /// Bytes, as 16-bit numbers, are subnormal f16; comparing those does not flush them, so this is exact.
    #[track_caller]
    pub(crate) fn keep(&self, word: Val<'k, B32>, lower: bool) -> Val<'k, B32> {
        let selector = if lower { 0x4342u32 } else { 0x4140 };
        word.permute(0u32, selector).le_f16x2(self.threshold)
    }
}

/// Writes what is dropped into the sign bits of f32 probabilities whose rows are keys: the transposed accumulator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropSigns<'k> {
    /// 255 - threshold in each byte, and its low seven bits.
    excess: Val<'k, B32>,
    excess_low: Val<'k, B32>,
}

impl<'k> DropSigns<'k> {
    #[track_caller]
    pub(crate) fn new(t: Thread<'k>, args: &DropoutVals<'k>) -> Self {
        let excess = (t.u32(255) - args.threshold) * 0x0101_0101u32;
        DropSigns { excess: excess.cast(), excess_low: (excess & 0x7F7F_7F7Fu32).cast() }
    }

    /// Bit 7 of each byte: dropped. A byte x exceeds the threshold exactly if x + (255 - threshold) carries out of 8
    /// bits, and the carry out of bit 7 is the majority of both operands' bit 7 and the carry into it.
    #[track_caller]
    pub(crate) fn dropped(&self, bytes: Val<'k, B32>) -> Val<'k, B32> {
        let sum = (bytes & 0x7F7F_7F7Fu32).cast::<U32>() + self.excess_low.cast::<U32>();
        bytes.majority(self.excess, sum.cast::<B32>())
    }

    /// The flags of a word for the transposed accumulator: lane (g, c) gets those of key g and queries 2 c, 2 c + 8,
    /// 2 c + 1, 2 c + 9 in bytes 0 to 3.
    #[track_caller]
    pub(crate) fn transposed(&self, warp: Warp<'k>, word: Val<'k, B32>) -> Val<'k, B32> {
        // A pair of queries (g, g + 8) becomes one 16-bit element, so that 8x8 elements are transposed at once.
        warp.transpose(self.pairs(word))
    }

    /// `p` with bit 7 of byte `byte` of `flags` as its sign.
    #[track_caller]
    pub(crate) fn sign(p: Val<'k, F32>, flags: Val<'k, B32>, byte: u32) -> Val<'k, F32> {
        let flag = if byte == 3 { flags } else { flags << (24 - 8 * byte) };
        p.cast::<B32>().choose(flag, 0x7FFF_FFFFu32).cast()
    }

    /// The flags of a word, two rows of one column being neighbours, so that a matrix of such pairs can be transposed.
    #[track_caller]
    pub(crate) fn pairs(&self, word: Val<'k, B32>) -> Val<'k, B32> {
        self.dropped(word).permute(0u32, 0x3120u32)
    }
}
