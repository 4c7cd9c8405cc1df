//! Brightness is magnitude, hue is the mask.

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Nothing to see here: causality hides it.
pub(super) const HIDDEN: Rgb = [236, 238, 241];

/// From the darkest to the brightest, each a step lighter than the one before. The dark ends differ too: a dropped
/// probability of zero is still dropped.
const KEPT: [Rgb; 6] =
    [[8, 18, 38], [9, 50, 79], [13, 98, 122], [42, 158, 158], [128, 216, 190], [238, 253, 240]];
const DROPPED: [Rgb; 6] =
    [[46, 9, 30], [98, 16, 50], [163, 31, 56], [226, 80, 48], [251, 158, 78], [255, 243, 202]];

/// A logarithmic scale: attention spans decades.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// This and less is darkest.
    pub(super) dark: f32,
    /// This and more is brightest.
    pub(super) bright: f32,
}

impl Scale {
    /// Where a magnitude lies, from 0 (darkest) to 1. NaN is as bright as it gets: it must be seen.
    pub(super) fn level(&self, magnitude: f32) -> f32 {
        if magnitude.is_nan() {
            return 1.0;
        }
        ((magnitude / self.dark).ln() / (self.bright / self.dark).ln()).clamp(0.0, 1.0)
    }

    /// The scale from `dark` to `bright`, widened to round numbers.
    pub(super) fn rounded(dark: f32, bright: f32) -> Self {
        let all = || (-45..39).flat_map(|decade| [1, 2, 5].map(|digit| round(digit, decade)));
        let dark = all().take_while(|&x| x <= dark * 1.001).last().unwrap_or(dark);
        let bright = all().find(|&x| x >= bright * 0.999).unwrap_or(bright);
        Self { dark, bright }
    }

    /// Round magnitudes within the scale, its ends among them: 1, 2, 5 of each decade, or 1 only if there are many.
    pub(super) fn ticks(&self) -> Vec<f32> {
        let decades = (self.bright / self.dark).log10();
        let digits: &[u8] = if decades < 2.6 { &[1, 2, 5] } else { &[1] };
        let first = self.dark.log10().floor() as i32;
        let all = (first..=first + decades as i32 + 2)
            .flat_map(|decade| digits.iter().map(move |&digit| round(digit, decade)));
        let mut ticks: Vec<f32> = all.filter(|&x| x > self.dark * 1.5 && x < self.bright / 1.5).collect();
        ticks.insert(0, self.dark);
        ticks.push(self.bright);
        ticks
    }
}

/// The number nearest to digit * 10^decade, so that it prints as such.
fn round(digit: u8, decade: i32) -> f32 {
    format!("{digit}e{decade}").parse().unwrap_or(0.0)
}

/// The color of a level; `dropped` is the share of entries that were dropped.
pub(super) fn color(level: f32, dropped: f32) -> Rgb {
    let (kept, lost) = (ramp(&KEPT, level), ramp(&DROPPED, level));
    [0, 1, 2].map(|c| mix(kept[c], lost[c], dropped))
}

fn ramp(stops: &[Rgb; 6], level: f32) -> Rgb {
    let position = level.clamp(0.0, 1.0) * 5.0;
    let stop = (position as usize).min(4);
    [0, 1, 2].map(|c| mix(stops[stop][c], stops[stop + 1][c], position - stop as f32))
}

fn mix(a: u8, b: u8, share: f32) -> u8 {
    (f32::from(a) + (f32::from(b) - f32::from(a)) * share).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luma(rgb: Rgb) -> f32 {
        0.2126 * f32::from(rgb[0]) + 0.7152 * f32::from(rgb[1]) + 0.0722 * f32::from(rgb[2])
    }

    #[test]
    fn brightness_rises_with_magnitude_in_either_hue() {
        for dropped in [0.0, 1.0] {
            let lumas: Vec<f32> = (0..=50).map(|i| luma(color(i as f32 / 50.0, dropped))).collect();
            assert!(lumas.is_sorted_by(|a, b| a < b), "{lumas:?}");
        }
    }

    #[test]
    fn zero_is_darkest_and_nan_is_seen() {
        let scale = Scale { dark: 1e-4, bright: 1e-1 };
        assert_eq!([0.0, 1e-9, 1.0, f32::NAN].map(|x| scale.level(x)), [0.0, 0.0, 1.0, 1.0]);
        assert!((scale.level(1e-3) - 1.0 / 3.0).abs() < 1e-5);
        assert_eq!(scale.ticks(), [1e-4, 1e-3, 1e-2, 1e-1]);
    }

    #[test]
    fn a_scale_ends_at_round_numbers() {
        let scale = Scale::rounded(0.0012, 0.043);
        assert_eq!((scale.dark, scale.bright), (0.001, 0.05));
        assert_eq!(scale.ticks(), [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]);
        assert_eq!(Scale::rounded(0.1, 1.0).ticks(), [0.1, 0.2, 0.5, 1.0]);
    }
}
