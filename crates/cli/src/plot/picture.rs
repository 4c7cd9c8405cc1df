//! Title, map, axes.

use super::axis::Axis;
use super::color::{HIDDEN, NOT_A_NUMBER, color};
use super::grid::Shown;
use super::layout::{
    FACTS_TOP, FAINT, FRAME, INK, LABEL_PX, LINE, Layout, MIDDLE, SMALL_PX, TICK, TITLE_PX, TITLE_TOP, style,
    text_width,
};
use super::legend::{self, percent};
use super::scale::Scale;
use super::{Grid, Subject};
use crate::args::Bin;
use crate::text;
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, VPos};
use std::error::Error;

pub(super) type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
pub(super) type Drawn = Result<(), Box<dyn Error>>;

/// The picture as PNG.
pub(super) fn draw(subject: &Subject<'_>, grid: &Grid) -> Result<Vec<u8>, Box<dyn Error>> {
    let scale = grid.scale(subject.view.bin);
    let facts = [problem(subject, grid), reading(subject, grid, &scale)];
    let layout = Layout::new(grid, &facts, legend::squares(grid).len())?;
    let (width, height) = layout.size;
    let mut pixels = vec![255; 3 * (width * height) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, layout.size).into_drawing_area();
        title(&area, &layout, subject)?;
        axes(&area, &layout, grid)?;
        legend::draw(&area, &layout, subject, grid, &scale)?;
        area.present()?;
    }
    legend::bars(&mut pixels, &layout);
    map(&mut pixels, &layout, subject, grid, &scale);
    encode(&pixels, layout.size)
}

fn title(area: &Area<'_>, layout: &Layout, subject: &Subject<'_>) -> Drawn {
    let (head, batch) = (subject.view.head, subject.view.batch);
    let heading = format!("Attention of head {head}, batch {batch}");
    area.draw_text(&heading, &style(TITLE_PX, &INK, HPos::Left, VPos::Top), (layout.left, TITLE_TOP))?;
    let faint = style(SMALL_PX, &FAINT, HPos::Left, VPos::Top);
    for (index, line) in layout.lines.iter().enumerate() {
        area.draw_text(line, &faint, (layout.left, FACTS_TOP + LINE * index as i32))?;
    }
    Ok(())
}

/// Whose attention it is.
fn problem(subject: &Subject<'_>, grid: &Grid) -> Vec<String> {
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
    facts.extend(text::seen(problem));
    facts.push(match problem.dropout() {
        Some(dropout) if dropout.is_active() => format!("dropout_p {}", dropout.p()),
        // A file whose probabilities were dropped without a word of it.
        _ if grid.counts.dropped > 0 => "dropout_p not given".into(),
        _ => "no dropout".into(),
    });
    facts
}

fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// How to read it: how many entries a cell covers and what is too dark to see are never left unsaid.
fn reading(subject: &Subject<'_>, grid: &Grid, scale: &Scale) -> Vec<String> {
    let (queries, keys) = (&grid.queries, &grid.keys);
    let cell = if queries.pixels == keys.pixels { "square" } else { "rectangle" };
    let mut facts = if queries.bin * keys.bin == 1 {
        vec![format!("each {cell} is one entry")]
    } else {
        let what = match subject.view.bin {
            Bin::Mean => ["brightness: mean probability", "hue: how much of it was dropped"],
            Bin::Max => ["brightness: largest probability", "hue: whether it was dropped"],
        };
        let covers = format!("each {cell} covers {} × {} entries", queries.bin, keys.bin);
        [covers].into_iter().chain(what.map(str::to_string)).collect()
    };
    match scale.darkest_hold {
        Some(share) => facts.push(format!("the darkest hold {} of the probability", percent(share))),
        None if grid.counts.kept + grid.counts.dropped > 0 => facts.push("all probabilities are 0".into()),
        None => facts.push("nothing to see: no entry is visible and a number".into()),
    }
    facts
}

fn axes(area: &Area<'_>, layout: &Layout, grid: &Grid) -> Drawn {
    let ((left, top), (width, height)) = ((layout.left, layout.top), layout.map);
    let (right, bottom) = (left + width + FRAME, top + height + FRAME);
    // A filled rectangle of plotters ends before its second corner.
    area.draw(&Rectangle::new([(left - FRAME, top - FRAME), (right, bottom)], INK.filled()))?;
    let below = style(SMALL_PX, &INK, HPos::Center, VPos::Top);
    let apart = text_width(&grid.keys.entries.end.to_string(), SMALL_PX)? + 50;
    for key in grid.keys.ticks(apart.max(150) as usize) {
        let x = left + grid.keys.pixel_of(key) as i32;
        area.draw(&Rectangle::new([(x - 1, bottom), (x + 1, bottom + TICK)], FAINT.filled()))?;
        area.draw_text(&key.to_string(), &below, (x, bottom + TICK + 8))?;
    }
    let beside = style(SMALL_PX, &INK, HPos::Right, VPos::Center);
    for query in grid.queries.ticks(110) {
        let y = top + grid.queries.pixel_of(query) as i32;
        let x = left - FRAME;
        area.draw(&Rectangle::new([(x - TICK, y - 1), (x, y + 1)], FAINT.filled()))?;
        area.draw_text(&query.to_string(), &beside, (x - TICK - 10, y + MIDDLE))?;
    }
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top);
    area.draw_text("key j", &name, (left + width / 2, bottom + 78))?;
    let name = style(LABEL_PX, &INK, HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    area.draw_text("query i", &name, (30, top + height / 2))?;
    Ok(())
}

fn map(pixels: &mut [u8], layout: &Layout, subject: &Subject<'_>, grid: &Grid, scale: &Scale) {
    let width = layout.size.0 as usize;
    let (queries, keys): (&Axis, &Axis) = (&grid.queries, &grid.keys);
    for row in 0..queries.cells() {
        let colors = (0..keys.cells()).map(|column| match grid.shown(row, column, subject.view.bin) {
            Shown::Probability { magnitude, dropped } => color(scale.level(magnitude), dropped),
            Shown::NotANumber => NOT_A_NUMBER,
            Shown::Hidden => HIDDEN,
        });
        let line: Vec<u8> = colors.flat_map(|color| color.repeat(keys.pixels)).collect();
        for y in row * queries.pixels..(row + 1) * queries.pixels {
            let start = 3 * ((layout.top as usize + y) * width + layout.left as usize);
            pixels[start..start + line.len()].copy_from_slice(&line);
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
