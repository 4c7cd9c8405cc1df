//! Map, axes, legend, title.

use super::color::{HIDDEN, Rgb, color, level};
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

const LEFT: i32 = 104;
const TOP: i32 = 112;
const BOTTOM: i32 = 84;
const RIGHT: i32 = 232;
const TICK: i32 = 7;

const TITLE_PX: f64 = 27.0;
const LABEL_PX: f64 = 21.0;
const SMALL_PX: f64 = 18.0;

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
    let brightest = grid.brightest(subject.view.bin);
    {
        let area = BitMapBackend::with_buffer(&mut pixels, layout.size).into_drawing_area();
        title(&area, subject, grid)?;
        axes(&area, &layout, grid)?;
        legend(&area, &layout, subject, grid, brightest)?;
        area.present()?;
    }
    map(&mut pixels, &layout, subject, grid, brightest);
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
        let (width, height) = (map.0.max(420), map.1.max(400));
        Self { map, size: ((LEFT + width + RIGHT) as u32, (TOP + height + BOTTOM) as u32) }
    }
}

fn style(px: f64, color: &'static RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT_NAME, px).into_font()).color(color).pos(Pos::new(h, v))
}

fn title(area: &Area<'_>, subject: &Subject<'_>, grid: &Grid) -> Drawn {
    let (head, batch) = (subject.view.head, subject.view.batch);
    let heading = format!("Attention of head {head}, batch {batch}");
    area.draw_text(&heading, &style(TITLE_PX, &INK, HPos::Left, VPos::Top), (LEFT, 18))?;
    let problem = subject.problem;
    let mut facts = vec![subject.name.clone(), subject.dtype.to_string()];
    facts.push(format!("{} queries × {} keys", grid.queries.entries.len(), grid.keys.entries.len()));
    if problem.causal() {
        facts.push("causal".into());
    }
    facts.push(match problem.dropout() {
        Some(dropout) if dropout.is_active() => format!("dropout_p {}", dropout.p()),
        _ => "no dropout".into(),
    });
    area.draw_text(&facts.join("  ·  "), &style(SMALL_PX, &FAINT, HPos::Left, VPos::Top), (LEFT, 52))?;
    area.draw_text(&coverage(subject, grid), &style(SMALL_PX, &FAINT, HPos::Left, VPos::Top), (LEFT, 76))?;
    Ok(())
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
    let frame = Rectangle::new([(LEFT - 1, TOP - 1), (right, bottom)], ShapeStyle::from(&FAINT));
    area.draw(&frame)?;
    let below = style(SMALL_PX, &INK, HPos::Center, VPos::Top);
    for key in ticks(&grid.keys) {
        let x = LEFT + grid.keys.pixel_of(key) as i32;
        area.draw(&PathElement::new([(x, bottom), (x, bottom + TICK)], FAINT))?;
        area.draw_text(&key.to_string(), &below, (x, bottom + TICK + 4))?;
    }
    let beside = style(SMALL_PX, &INK, HPos::Right, VPos::Center);
    for query in ticks(&grid.queries) {
        let y = TOP + grid.queries.pixel_of(query) as i32;
        area.draw(&PathElement::new([(LEFT - 1 - TICK, y), (LEFT - 1, y)], FAINT))?;
        area.draw_text(&query.to_string(), &beside, (LEFT - TICK - 6, y))?;
    }
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top);
    area.draw_text("key j", &name, (LEFT + width / 2, bottom + 42))?;
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    area.draw_text("query i", &name, (18, TOP + height / 2))?;
    Ok(())
}

/// Round numbers, about one every 130 pixels; powers of two where the axis ends at one's multiple.
fn ticks(axis: &Axis) -> Vec<usize> {
    let len = axis.entries.len();
    let wanted = (axis.len_pixels() / 130).clamp(1, 8);
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
    if ticks.last().is_none_or(|&tick| axis.pixel_of(last) - axis.pixel_of(tick) > 60) {
        ticks.push(last);
    }
    ticks
}

fn legend(area: &Area<'_>, layout: &Layout, subject: &Subject<'_>, grid: &Grid, brightest: f32) -> Drawn {
    const BAR: i32 = 26;
    let x = LEFT + layout.map.0.max(1) + 36;
    let length = (layout.map.1.max(400) * 45 / 100).clamp(160, 360);
    let small = |h| style(SMALL_PX, &INK, h, VPos::Center);
    area.draw_text("probability", &style(LABEL_PX, &INK, HPos::Left, VPos::Top), (x, TOP - 4))?;
    let top = TOP + 36;
    let bars = [("kept", 0.0), ("dropped", 1.0)];
    for (index, (_, dropped)) in bars.into_iter().enumerate() {
        let left = x + index as i32 * (BAR + 4);
        for y in 0..length {
            let [r, g, b] = color(1.0 - y as f32 / (length - 1) as f32, dropped);
            let line = [(left, top + y), (left + BAR - 1, top + y)];
            area.draw(&Rectangle::new(line, RGBColor(r, g, b).filled()))?;
        }
    }
    let right = x + 2 * BAR + 4;
    for part in [0.0f32, 0.05, 0.25, 0.5, 0.75, 1.0] {
        let y = top + ((1.0 - level(part, 1.0)) * (length - 1) as f32) as i32;
        area.draw(&PathElement::new([(right, y), (right + TICK, y)], FAINT))?;
        let or_more = if part == 1.0 { "≥ " } else { "" };
        let text = format!("{or_more}{}", number(part * brightest));
        area.draw_text(&text, &small(HPos::Left), (right + TICK + 5, y))?;
    }
    swatches(area, (x, top + length + 26), subject, grid)
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
        let y = y + 30 * index as i32;
        let square = [(x, y - 9), (x + 17, y + 8)];
        area.draw(&Rectangle::new(square, RGBColor(r, g, b).filled()))?;
        if index == 2 {
            area.draw(&Rectangle::new(square, ShapeStyle::from(&FAINT)))?;
        }
        area.draw_text(&line, &text, (x + 27, y))?;
    }
    Ok(())
}

fn number(x: f32) -> String {
    match x {
        0.0 => "0".into(),
        x if x >= 0.1 => format!("{x:.2}"),
        x if x >= 0.001 => format!("{x:.4}"),
        x => format!("{x:.1e}"),
    }
}

fn map(pixels: &mut [u8], layout: &Layout, subject: &Subject<'_>, grid: &Grid, brightest: f32) {
    let width = layout.size.0 as usize;
    for y in 0..grid.queries.len_pixels() {
        let start = 3 * ((TOP as usize + y) * width + LEFT as usize);
        let row = &mut pixels[start..start + 3 * grid.keys.len_pixels()];
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let cell = grid.cell(y / grid.queries.pixels, x / grid.keys.pixels);
            *pixel = match cell.magnitude(subject.view.bin) {
                Some(magnitude) => color(level(magnitude, brightest), cell.dropped_share()),
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
