//! Brightness is magnitude, hue is the mask.

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Nothing to see here: causality hides it.
pub(super) const HIDDEN: Rgb = [236, 238, 241];

/// From 0 to the brightest, each a step lighter than the one before. Both start at the same near-black.
const KEPT: [Rgb; 6] =
    [[9, 13, 26], [10, 52, 82], [12, 103, 127], [40, 162, 160], [125, 216, 190], [236, 253, 239]];
const DROPPED: [Rgb; 6] =
    [[9, 13, 26], [86, 17, 52], [161, 30, 60], [226, 77, 49], [251, 156, 76], [255, 243, 200]];

/// Where a magnitude lies between black and the brightest. The root spreads the many small probabilities.
pub(super) fn level(magnitude: f32, brightest: f32) -> f32 {
    if magnitude.is_nan() { 1.0 } else { (magnitude / brightest).clamp(0.0, 1.0).sqrt() }
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
}
