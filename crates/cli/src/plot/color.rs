//! Brightness is magnitude, hue says whether it was dropped. What has neither is told apart from both.

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Nothing to see here: no query of the cell sees a key of it. No step of either ramp is near it, nor is paper.
pub(super) const HIDDEN: Rgb = [192, 195, 202];
/// NaN or infinite: no probability, neither kept nor dropped.
pub(super) const NOT_A_NUMBER: Rgb = [190, 40, 255];

/// From the darkest to the brightest, each a step lighter than the one before. The dark ends differ too: a dropped
/// probability of zero is still dropped.
const KEPT: [Rgb; 6] =
    [[8, 18, 38], [9, 50, 79], [13, 98, 122], [42, 158, 158], [128, 216, 190], [238, 253, 240]];
const DROPPED: [Rgb; 6] =
    [[46, 9, 30], [98, 16, 50], [163, 31, 56], [226, 80, 48], [251, 158, 78], [255, 243, 202]];

/// The color of a level; `dropped` is the share that was dropped.
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
    fn what_is_no_probability_looks_like_none() {
        let apart = |a: Rgb, b: Rgb| (0..3).map(|c| a[c].abs_diff(b[c])).max().unwrap_or(0);
        for share in 0..=10 {
            // Cells that cover several entries mix the ramps, and come nearer to grey.
            let least = if share % 10 == 0 { 30 } else { 18 };
            for level in 0..=50 {
                let color = color(level as f32 / 50.0, share as f32 / 10.0);
                assert!(apart(color, HIDDEN) > least && apart(color, NOT_A_NUMBER) > 100, "{color:?}");
            }
        }
        assert!(apart([255; 3], HIDDEN) > 50 && apart(HIDDEN, NOT_A_NUMBER) > 100);
    }
}
