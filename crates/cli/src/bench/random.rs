//! Numbers that look random and are the same every time.

/// splitmix64 (Steele, Lea and Flood 2014).
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of the numbers from `least` to `most`, each about as likely.
    pub(super) fn within(&mut self, least: u32, most: u32) -> u32 {
        let count = u64::from(most - least) + 1;
        least + ((u128::from(self.next()) * u128::from(count)) >> 64) as u32
    }
}

/// About normal numbers, the same every time: the sum of twelve uniform ones.
pub(super) struct Normal(pub(super) Random);

impl Normal {
    pub(super) fn next(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..3 {
            let four = self.0.next(); // numbers of 16 bits
            sum += (0..4).map(|i| ((four >> (16 * i)) & 0xffff) as f32 / 65536.0).sum::<f32>();
        }
        sum
    }
}
