//! Where things stand in the picture, and how long its texts are.

use super::grid::Grid;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::sync::Once;

/// The font travels with the program: servers have none.
static FONT: &[u8] = include_bytes!("../../assets/DejaVuSans-subset.ttf");
const FONT_NAME: &str = "signflash";

pub(super) static INK: RGBColor = RGBColor(28, 32, 40);
pub(super) static FAINT: RGBColor = RGBColor(104, 112, 124);

// Twice what a screen of ordinary density needs: letters and cells stay sharp when the picture is shown smaller.
pub(super) const TITLE_PX: f64 = 50.0;
pub(super) const LABEL_PX: f64 = 38.0;
pub(super) const SMALL_PX: f64 = 33.0;
/// From one line of small text to the next.
pub(super) const LINE: i32 = 44;
/// From the upper edge to the title, and to the lines below it.
pub(super) const TITLE_TOP: i32 = 28;
pub(super) const FACTS_TOP: i32 = 94;
/// The frame is dark and wide enough to part the map's edge from the paper: a bright first column, a thing that
/// many heads have, would vanish between white and white.
pub(super) const FRAME: i32 = 5;
pub(super) const TICK: i32 = 12;
/// From plotters' centre of a small line to the middle of its digits.
pub(super) const MIDDLE: i32 = 4;

const LEFT: i32 = 190;
const BOTTOM: i32 = 150;
const RIGHT: i32 = 500;
/// From the map to the legend.
const LEGEND_GAP: i32 = 60;
/// From the legend's heading to its bars, from those to the squares, and from square to square.
pub(super) const BARS_BELOW: i32 = 112;
pub(super) const SQUARES_BELOW: i32 = 52;
pub(super) const SQUARE_LINE: i32 = 54;

/// The places of everything.
pub(super) struct Layout {
    /// Upper left corner of the map.
    pub(super) left: i32,
    pub(super) top: i32,
    /// The map's pixels.
    pub(super) map: (i32, i32),
    pub(super) size: (u32, u32),
    /// What stands below the title.
    pub(super) lines: Vec<String>,
}

impl Layout {
    /// A picture of `grid` with these facts, each a list of pieces that may be broken between, and this many lines
    /// in the legend.
    pub(super) fn new(
        grid: &Grid,
        facts: &[Vec<String>],
        legend_lines: usize,
    ) -> Result<Self, Box<dyn Error>> {
        register();
        let map = (grid.keys.len_pixels() as i32, grid.queries.len_pixels() as i32);
        let numbers = text_width(&grid.queries.entries.end.to_string(), SMALL_PX)?;
        let left = LEFT.max(100 + FRAME + TICK + 12 + numbers);
        let width = left + map.0 + RIGHT;
        let mut lines = Vec::new();
        for pieces in facts {
            lines.extend(wrapped(pieces, width - left - 40)?);
        }
        let top = FACTS_TOP + LINE * lines.len() as i32 + 30;
        let mut layout = Self { left, top, map, size: (0, 0), lines };
        let legend = BARS_BELOW + layout.bar_len() + SQUARES_BELOW + SQUARE_LINE * legend_lines as i32;
        layout.size = (width as u32, (top + (map.1 + BOTTOM).max(legend)) as u32);
        Ok(layout)
    }

    /// Upper left corner of the legend.
    pub(super) fn legend(&self) -> (i32, i32) {
        (self.left + self.map.0 + LEGEND_GAP, self.top - 6)
    }

    pub(super) fn bar_len(&self) -> i32 {
        (self.map.1 * 45 / 100).clamp(280, 680)
    }
}

fn register() {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // A font that does not parse shows as an error of the first text drawn.
        let _ = register_font(FONT_NAME, FontStyle::Normal, FONT);
    });
}

pub(super) fn style(px: f64, color: &'static RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT_NAME, px).into_font()).color(color).pos(Pos::new(h, v))
}

pub(super) fn text_width(text: &str, px: f64) -> Result<i32, Box<dyn Error>> {
    Ok((FONT_NAME, px).into_font().box_size(text)?.0 as i32)
}

/// Lines of as many pieces as fit, points between them; a piece longer than a line loses its middle.
fn wrapped(pieces: &[String], width: i32) -> Result<Vec<String>, Box<dyn Error>> {
    let mut lines: Vec<String> = Vec::new();
    for piece in pieces {
        let piece = shortened(piece, width)?;
        let longer = lines.last().map(|line| format!("{line}  ·  {piece}"));
        match longer {
            Some(longer) if text_width(&longer, SMALL_PX)? <= width => {
                lines.pop();
                lines.push(longer);
            }
            _ => lines.push(piece),
        }
    }
    Ok(lines)
}

fn shortened(text: &str, width: i32) -> Result<String, Box<dyn Error>> {
    let letters: Vec<char> = text.chars().collect();
    let mut short = text.to_string();
    let mut kept = letters.len();
    while text_width(&short, SMALL_PX)? > width && kept > 2 {
        kept -= 1;
        let (start, end) = (kept.div_ceil(2), letters.len() - kept / 2);
        short = letters[..start].iter().chain(&['…']).chain(&letters[end..]).collect();
    }
    Ok(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_too_long_break_between_pieces_and_lose_their_middle() {
        register();
        let pieces = ["a-file-of-a-very-long-name".repeat(9), "f16".into(), "dropout_p 0.5".into()];
        let lines = wrapped(&pieces, 600).unwrap();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("a-file") && lines[0].contains('…') && lines[0].ends_with("name"));
        assert_eq!(lines[1], "f16  ·  dropout_p 0.5");
        for line in lines {
            assert!(text_width(&line, SMALL_PX).unwrap() <= 600, "{line}");
        }
    }
}
