//! Philox-4x32, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// Multiplier of counter word 0.
pub const MUL_0: u32 = 0xD251_1F53;
/// Multiplier of counter word 2.
pub const MUL_2: u32 = 0xCD9E_8D57;
/// What key word 0 grows by after each round.
pub const WEYL_0: u32 = 0x9E37_79B9;
/// What key word 1 grows by after each round.
pub const WEYL_1: u32 = 0xBB67_AE85;
/// Rounds of the dropout mask, as in FlashAttention-2.
pub const DROPOUT_ROUNDS: usize = 7;

/// Four random words for a key and a counter. The published generator has 10 rounds, the dropout mask takes 7.
///
/// ```
/// use signflash_core::dropout::philox::philox4x32;
/// // The first known answer that the authors publish.
/// let words = philox4x32::<10>([0, 0], [0, 0, 0, 0]);
/// assert_eq!(words, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[inline(always)]
pub const fn philox4x32<const ROUNDS: usize>(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let mut round = 0;
    while round < ROUNDS {
        let p0 = MUL_0 as u64 * c0 as u64;
        let p2 = MUL_2 as u64 * c2 as u64;
        (c0, c1, c2, c3) = ((p2 >> 32) as u32 ^ c1 ^ k0, p2 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
        round += 1;
    }
    [c0, c1, c2, c3]
}
