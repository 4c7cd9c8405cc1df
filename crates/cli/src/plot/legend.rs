//! The legend: what brightness and hue mean, and how much of each hue there is.

use super::color::{HIDDEN, NOT_A_NUMBER, Rgb, color};
use super::layout::{
    BARS_BELOW, FAINT, INK, LABEL_PX, LINE, Layout, MIDDLE, SMALL_PX, SQUARE_LINE, SQUARES_BELOW, TICK, style,
};
use super::picture::{Area, Drawn};
use super::scale::Scale;
use super::{Grid, Subject};
use crate::args::Bin;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Width of a bar, and the gap between the two.
const BAR: i32 = 48;
const BAR_GAP: i32 = 6;

/// The squares of the legend with what stands beside them.
pub(super) fn squares(grid: &Grid) -> Vec<(Rgb, String)> {
    let counts = grid.counts;
    let share = |part: u64| percent(part as f64 / counts.visible().max(1) as f64);
    let mut squares = vec![
        (color(0.62, 0.0), format!("kept  {}", share(counts.kept))),
        (color(0.62, 1.0), format!("dropped  {}", share(counts.dropped))),
    ];
    if counts.not_numbers > 0 {
        squares.push((NOT_A_NUMBER, format!("NaN or infinite  {}", share(counts.not_numbers))));
    }
    if counts.visible() < (grid.queries.entries.len() as u64) * (grid.keys.entries.len() as u64) {
        squares.push((HIDDEN, "not visible".into()));
    }
    squares
}

/// A share, never rounded to nothing or to all.
pub(super) fn percent(share: f64) -> String {
    match format!("{:.2}", 100.0 * share).as_str() {
        "0.00" if share > 0.0 => "< 0.01 %".into(),
        "100.00" if share < 1.0 => "> 99.99 %".into(),
        rounded => format!("{rounded} %"),
    }
}

/// Everything but the bars, which are pixels.
pub(super) fn draw(
    area: &Area<'_>,
    layout: &Layout,
    subject: &Subject<'_>,
    grid: &Grid,
    scale: &Scale,
) -> Drawn {
    let (x, y) = layout.legend();
    let heading = match subject.view.bin {
        _ if grid.queries.bin * grid.keys.bin == 1 => "probability",
        Bin::Mean => "mean probability",
        Bin::Max => "largest probability",
    };
    area.draw_text(heading, &style(LABEL_PX, &INK, HPos::Left, VPos::Top), (x, y))?;
    area.draw_text("logarithmic", &style(SMALL_PX, &FAINT, HPos::Left, VPos::Top), (x, y + LINE))?;
    let right = x + 2 * BAR + BAR_GAP;
    let beside = style(SMALL_PX, &INK, HPos::Left, VPos::Center);
    let top = y + BARS_BELOW;
    for magnitude in scale.ticks(layout.bar_len() as usize / LINE as usize) {
        let y = top + ((1.0 - scale.level(magnitude)) * (layout.bar_len() - 1) as f32) as i32;
        area.draw(&Rectangle::new([(right, y - 1), (right + TICK, y + 1)], FAINT.filled()))?;
        let below = if magnitude == scale.dark { "≤ " } else { "" };
        area.draw_text(&format!("{below}{}", number(magnitude)), &beside, (right + TICK + 10, y + MIDDLE))?;
    }
    let top = top + layout.bar_len() + SQUARES_BELOW;
    for (index, ([r, g, b], text)) in squares(grid).into_iter().enumerate() {
        let y = top + SQUARE_LINE * index as i32;
        area.draw(&Rectangle::new([(x, y - 16), (x + 32, y + 16)], RGBColor(r, g, b).filled()))?;
        area.draw_text(&text, &beside, (x + 48, y + MIDDLE))?;
    }
    Ok(())
}

/// The two bars: kept, dropped.
pub(super) fn bars(pixels: &mut [u8], layout: &Layout) {
    let (left, top) = (layout.legend().0, layout.legend().1 + BARS_BELOW);
    for y in 0..layout.bar_len() {
        let level = 1.0 - y as f32 / (layout.bar_len() - 1) as f32;
        for (index, dropped) in [0.0, 1.0].into_iter().enumerate() {
            let start = left + index as i32 * (BAR + BAR_GAP);
            let start = 3 * ((top + y) as usize * layout.size.0 as usize + start as usize);
            let row = &mut pixels[start..start + 3 * BAR as usize];
            row.as_chunks_mut::<3>().0.fill(color(level, dropped));
        }
    }
}

fn number(x: f32) -> String {
    if (0.001..1e5).contains(&x) { x.to_string() } else { format!("{x:.0e}").replace('-', "\u{2212}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_rounded_to_nothing_or_to_all() {
        let texts = [0.0, 1e-9, 0.1997, 1.0 - 1e-9, 1.0].map(percent);
        assert_eq!(texts, ["0.00 %", "< 0.01 %", "19.97 %", "> 99.99 %", "100.00 %"]);
    }
}
