//! Map, axes, legend, title.

use super::color::{HIDDEN, Rgb, Scale, color};
use super::{Grid, Subject};
use crate::plot::grid::Axis;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, register_font};
use std::error::Error;
use std::sync::Once;

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// The font travels with the program: servers have none.
static FONT: &[u8] = include_bytes!("../../assets/DejaVuSans-subset.ttf");
const FONT_NAME: &str = "signflash";

static INK: RGBColor = RGBColor(28, 32, 40);
static FAINT: RGBColor = RGBColor(104, 112, 124);

// Twice what a screen of ordinary density needs: letters and cells stay sharp when the picture is shown smaller.
const LEFT: i32 = 190;
const TOP: i32 = 212;
const BOTTOM: i32 = 150;
const RIGHT: i32 = 420;
const TICK: i32 = 12;
/// What the legend needs, even beside a map of one query.
const MIN_HEIGHT: i32 = 620;
/// Width of a bar of the legend, and the gap between the two.
const BAR: i32 = 48;
const BAR_GAP: i32 = 6;

/// From where plotters centres a small line to the middle of its digits.
const MIDDLE: i32 = 4;

const TITLE_PX: f64 = 50.0;
const LABEL_PX: f64 = 38.0;
const SMALL_PX: f64 = 33.0;

/// The picture as PNG.
pub(super) fn draw(subject: &Subject<'_>, grid: &Grid) -> Result<Vec<u8>, Box<dyn Error>> {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // A font that does not parse shows as an error of the first text drawn.
        let _ = register_font(FONT_NAME, FontStyle::Normal, FONT);
    });
    let layout = Layout::new(grid);
    let (width, height) = layout.size;
    let mut pixels = vec![255; 3 * (width * height) as usize];
    let scale = grid.scale(subject.view.bin);
    {
        let area = BitMapBackend::with_buffer(&mut pixels, layout.size).into_drawing_area();
        title(&area, subject, grid)?;
        axes(&area, &layout, grid)?;
        legend(&area, &layout, subject, grid, scale)?;
        area.present()?;
    }
    bars(&mut pixels, &layout);
    map(&mut pixels, &layout, subject, grid, scale);
    encode(&pixels, layout.size)
}

struct Layout {
    /// The map's pixels.
    map: (i32, i32),
    size: (u32, u32),
}

impl Layout {
    fn new(grid: &Grid) -> Self {
        let map = (grid.keys.len_pixels() as i32, grid.queries.len_pixels() as i32);
        // The legend and the title need room even beside a small map.
        let (width, height) = (map.0.max(800), map.1.max(MIN_HEIGHT));
        Self { map, size: ((LEFT + width + RIGHT) as u32, (TOP + height + BOTTOM) as u32) }
    }

    /// Upper left corner of the legend's bars.
    fn bars(&self) -> [i32; 2] {
        [LEFT + self.map.0 + 60, TOP + 62]
    }

    fn bar_len(&self) -> i32 {
        (self.map.1 * 45 / 100).clamp(360, 680)
    }
}

fn style(px: f64, color: &'static RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT_NAME, px).into_font()).color(color).pos(Pos::new(h, v))
}

fn title(area: &Area<'_>, subject: &Subject<'_>, grid: &Grid) -> Drawn {
    let (head, batch) = (subject.view.head, subject.view.batch);
    let heading = format!("Attention of head {head}, batch {batch}");
    area.draw_text(&heading, &style(TITLE_PX, &INK, HPos::Left, VPos::Top), (LEFT, 28))?;
    let problem = subject.problem;
    let mut facts = vec![subject.name.clone(), subject.dtype.to_string()];
    let shape = problem.shape();
    facts.push(match (subject.view.queries, subject.view.keys) {
        (None, None) => format!(
            "{} × {}",
            counted(shape.seqlen_q, "query", "queries"),
            counted(shape.seqlen_k, "key", "keys")
        ),
        _ => {
            let (queries, keys) = (&grid.queries.entries, &grid.keys.entries);
            format!("queries {queries:?} of {}, keys {keys:?} of {}", shape.seqlen_q, shape.seqlen_k)
        }
    });
    if problem.causal() {
        facts.push("causal".into());
    }
    facts.push(match problem.dropout() {
        Some(dropout) if dropout.is_active() => format!("dropout_p {}", dropout.p()),
        _ => "no dropout".into(),
    });
    area.draw_text(&facts.join("  ·  "), &style(SMALL_PX, &FAINT, HPos::Left, VPos::Top), (LEFT, 94))?;
    area.draw_text(&coverage(subject, grid), &style(SMALL_PX, &FAINT, HPos::Left, VPos::Top), (LEFT, 138))?;
    Ok(())
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// How many entries a pixel covers: never left unsaid.
fn coverage(subject: &Subject<'_>, grid: &Grid) -> String {
    let (rows, columns) = (grid.queries.bin, grid.keys.bin);
    if rows * columns == 1 {
        return "each square is one entry".into();
    }
    let what = match subject.view.bin {
        crate::cli::Bin::Mean => "mean",
        crate::cli::Bin::Max => "largest",
    };
    format!("each pixel covers {rows} × {columns} entries: {what} probability, share dropped")
}

fn axes(area: &Area<'_>, layout: &Layout, grid: &Grid) -> Drawn {
    let (width, height) = layout.map;
    let (right, bottom) = (LEFT + width, TOP + height);
    for inset in [1, 2] {
        let frame = [(LEFT - inset, TOP - inset), (right + inset - 1, bottom + inset - 1)];
        area.draw(&Rectangle::new(frame, ShapeStyle::from(&FAINT)))?;
    }
    let below = style(SMALL_PX, &INK, HPos::Center, VPos::Top);
    for key in ticks(&grid.keys) {
        let x = LEFT + grid.keys.pixel_of(key) as i32;
        area.draw(&Rectangle::new([(x - 1, bottom), (x, bottom + TICK)], FAINT.filled()))?;
        area.draw_text(&key.to_string(), &below, (x, bottom + TICK + 8))?;
    }
    let beside = style(SMALL_PX, &INK, HPos::Right, VPos::Center);
    for query in ticks(&grid.queries) {
        let y = TOP + grid.queries.pixel_of(query) as i32;
        area.draw(&Rectangle::new([(LEFT - 2 - TICK, y - 1), (LEFT - 2, y)], FAINT.filled()))?;
        area.draw_text(&query.to_string(), &beside, (LEFT - TICK - 12, y + MIDDLE))?;
    }
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top);
    area.draw_text("key j", &name, (LEFT + width / 2, bottom + 78))?;
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    area.draw_text("query i", &name, (30, TOP + height / 2))?;
    Ok(())
}

/// Round numbers, about one every 240 pixels; powers of two where the axis ends at one's multiple.
fn ticks(axis: &Axis) -> Vec<usize> {
    let len = axis.entries.len();
    let wanted = (axis.len_pixels() / 240).clamp(1, 8);
    let binary = axis.entries.end.is_multiple_of(32);
    let step = |k: u32| {
        let decimal = 10usize.saturating_pow(k / 3).saturating_mul([1, 2, 5][k as usize % 3]);
        if binary { 1usize << k } else { decimal }
    };
    let step = (0..60).map(step).find(|step| len / step <= wanted).unwrap_or(len);
    let first = axis.entries.start.next_multiple_of(step);
    let mut ticks: Vec<usize> = (first..axis.entries.end).step_by(step).collect();
    let last = axis.entries.end - 1;
    // The last entry says how long the axis is, unless its number would touch a neighbour's.
    if ticks.last().is_none_or(|&tick| axis.pixel_of(last) - axis.pixel_of(tick) > 110) {
        ticks.push(last);
    }
    ticks
}

fn legend(area: &Area<'_>, layout: &Layout, subject: &Subject<'_>, grid: &Grid, scale: Scale) -> Drawn {
    let [x, top] = layout.bars();
    area.draw_text("probability", &style(LABEL_PX, &INK, HPos::Left, VPos::Top), (x, TOP - 6))?;
    let right = x + 2 * BAR + BAR_GAP;
    let beside = style(SMALL_PX, &INK, HPos::Left, VPos::Center);
    for magnitude in scale.ticks() {
        let y = top + ((1.0 - scale.level(magnitude)) * (layout.bar_len() - 1) as f32) as i32;
        area.draw(&Rectangle::new([(right, y - 1), (right + TICK, y)], FAINT.filled()))?;
        let beyond = match magnitude {
            x if x == scale.bright && x < 1.0 => "≥ ",
            x if x == scale.dark => "≤ ",
            _ => "",
        };
        area.draw_text(&format!("{beyond}{}", number(magnitude)), &beside, (right + TICK + 10, y + MIDDLE))?;
    }
    swatches(area, (x, top + layout.bar_len() + 52), subject, grid)
}

/// The two bars of the legend: kept, dropped.
fn bars(pixels: &mut [u8], layout: &Layout) {
    let [left, top] = layout.bars();
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

/// What the hues mean, and how much of each there is.
fn swatches(area: &Area<'_>, (x, y): (i32, i32), subject: &Subject<'_>, grid: &Grid) -> Drawn {
    let (visible, dropped) = grid.counts;
    let percent = |part: u64| if visible == 0 { 0.0 } else { 100.0 * part as f64 / visible as f64 };
    let mut lines: Vec<(Rgb, String)> = vec![
        (color(0.62, 0.0), format!("kept  {:.2} %", percent(visible - dropped))),
        (color(0.62, 1.0), format!("dropped  {:.2} %", percent(dropped))),
    ];
    if subject.problem.causal() {
        lines.push((HIDDEN, "not visible".into()));
    }
    let text = style(SMALL_PX, &INK, HPos::Left, VPos::Center);
    for (index, ([r, g, b], line)) in lines.into_iter().enumerate() {
        let y = y + 54 * index as i32;
        let square = [(x, y - 16), (x + 31, y + 15)];
        area.draw(&Rectangle::new(square, RGBColor(r, g, b).filled()))?;
        if [r, g, b] == HIDDEN {
            area.draw(&Rectangle::new(square, ShapeStyle::from(&FAINT)))?;
        }
        area.draw_text(&line, &text, (x + 48, y + MIDDLE))?;
    }
    Ok(())
}

fn number(x: f32) -> String {
    if x >= 0.001 { x.to_string() } else { format!("{x:.0e}").replace('-', "\u{2212}") }
}

fn map(pixels: &mut [u8], layout: &Layout, subject: &Subject<'_>, grid: &Grid, scale: Scale) {
    let width = layout.size.0 as usize;
    for y in 0..grid.queries.len_pixels() {
        let start = 3 * ((TOP as usize + y) * width + LEFT as usize);
        let row = &mut pixels[start..start + 3 * grid.keys.len_pixels()];
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let cell = grid.cell(y / grid.queries.pixels, x / grid.keys.pixels);
            *pixel = match cell.magnitude(subject.view.bin) {
                Some(magnitude) => color(scale.level(magnitude), cell.dropped_share()),
                None => HIDDEN,
            };
        }
    }
}

fn encode(pixels: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}
