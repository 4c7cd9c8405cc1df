//! Input for probes.
use crate::interp::Random;
use crate::types::Half;

/// What the words of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// Any bits; half of them edge cases: NaNs, infinities, zeros, subnormals, small and large integers.
    Bits,
    /// Pairs of 16-bit floats, eighths of small integers: sums of their products are exact in f32.
    ExactHalves(Half),
    /// Pairs of 16-bit floats between -2 and 2.
    Halves(Half),
    /// Floats that are small integers: their sums do not depend on the order.
    ExactFloats,
}

/// Words that are special to some instruction.
const EDGES: [u32; 44] = [
    // Integers, shift counts, selectors.
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    65,
    0xFF,
    0x3210,
    0x9876,
    0xBA98,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0001,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    // Floats: ones, infinities, NaNs quiet and signalling, the least normal and the greatest subnormal, the greatest.
    0x3F80_0000,
    0xBF80_0000,
    0x7F80_0000,
    0xFF80_0000,
    0x7FC0_0000,
    0xFFC0_1234,
    0x7F80_0001,
    0x0080_0000,
    0x007F_FFFF,
    0x807F_FFFF,
    0x7F7F_FFFF,
    0xFF7F_FFFF,
    // Ties and overflow of the 16-bit formats; pairs of f16 specials.
    0x477F_E000,
    0x477F_F000,
    0x3F80_8000,
    0x3F81_8000,
    0x3F80_1000,
    0x3380_0000,
    0x7E00_7C00,
    0x8000_0001,
];

impl Words {
    /// `count` words, the same for the same seed.
    ///
    /// ```
    /// use signflash_ptx::probe::Words;
    /// assert_eq!(Words::Bits.generate(8, 1), Words::Bits.generate(8, 1));
    /// assert_ne!(Words::Bits.generate(8, 1), Words::Bits.generate(8, 2));
    /// ```
    pub fn generate(self, count: usize, seed: u64) -> Vec<u32> {
        let mut random = Random::new(seed);
        (0..count).map(|_| self.word(&mut random)).collect()
    }

    fn word(self, random: &mut Random) -> u32 {
        match self {
            Words::Bits if random.below(2) == 0 => EDGES[random.below(EDGES.len())],
            Words::Bits => random.below(1 << 32) as u32,
            Words::ExactHalves(half) => pair(half, || (random.below(65) as f32 - 32.0) / 8.0),
            Words::Halves(half) => pair(half, || random.below(1 << 20) as f32 / (1 << 18) as f32 - 2.0),
            Words::ExactFloats => (random.below(2001) as f32 - 1000.0).to_bits(),
        }
    }
}

fn pair(half: Half, mut value: impl FnMut() -> f32) -> u32 {
    let (low, high) = (half.from_f32(value()), half.from_f32(value()));
    u32::from(high) << 16 | u32::from(low)
}
