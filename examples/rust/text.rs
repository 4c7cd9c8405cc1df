//! What both frameworks' `train-text` share: the text, and the picture of the losses.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Characters as numbers.
pub(crate) struct Text {
    pub(crate) symbols: Vec<char>,
    pub(crate) learn: Vec<u32>,
    pub(crate) unseen: Vec<u32>,
}

impl Text {
    /// The files, or without any this repository's own pages; the last tenth is not learnt.
    pub(crate) fn read(files: &[PathBuf]) -> std::io::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = files.to_vec();
        if files.is_empty() {
            let pages = std::fs::read_dir(root.join("docs"))?.map(|entry| Ok(entry?.path()));
            files = pages.collect::<std::io::Result<Vec<_>>>()?;
            files.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
            files.sort();
        }
        let mut text = String::new();
        for file in files {
            text.push_str(&std::fs::read_to_string(file)?);
        }
        let mut symbols: Vec<char> = text.chars().collect();
        symbols.sort();
        symbols.dedup();
        let number = |symbol| symbols.binary_search(&symbol).expect("every character was collected") as u32;
        let mut learn: Vec<u32> = text.chars().map(number).collect();
        let unseen = learn.split_off(learn.len() * 9 / 10);
        Ok(Self { symbols, learn, unseen })
    }

    /// Numbers as characters.
    pub(crate) fn write(&self, numbers: &[u32]) -> String {
        numbers.iter().map(|&number| self.symbols[number as usize]).collect()
    }
}

/// Rows of a batch, each `seqlen + 1` long: what is read, and shifted by one what is to be said. The same in every run.
pub(crate) struct Batches(u64);

impl Batches {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self, data: &[u32], rows: usize, seqlen: usize) -> Vec<u32> {
        let mut batch = Vec::with_capacity(rows * (seqlen + 1));
        for _ in 0..rows {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (self.0 >> 33) as usize % (data.len() - seqlen - 1);
            batch.extend_from_slice(&data[start..=start + seqlen]);
        }
        batch
    }
}

/// The losses of one training.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(usize, f32)>,
}

/// Draws losses over steps as a picture of 720 x 400.
pub(crate) fn draw(path: &Path, curves: &[Curve]) -> std::io::Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let last = points().map(|&(step, _)| step).max().unwrap_or(1).max(1) as f32;
    let top = points().map(|&(_, loss)| loss).fold(0.1, f32::max);
    let place = |step: usize, loss: f32| (50.0 + 640.0 * step as f32 / last, 360.0 - 320.0 * loss / top);
    let mut svg = String::from(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="720" height="400" font-family="sans-serif">"#,
    );
    svg.push_str(r#"<rect width="720" height="400" fill="white"/><path d="M50 40V360H690" fill="none" stroke="gray"/>"#);
    let _ = write!(
        svg,
        r#"<text x="8" y="45">{top:.1}</text><text x="690" y="385" text-anchor="end">step {last}</text>"#
    );
    for (n, (curve, colour)) in curves.iter().zip(["#d55e00", "#e69f00", "#0072b2", "#56b4e9"]).enumerate() {
        let line: Vec<String> = curve
            .points
            .iter()
            .map(|&(step, loss)| place(step, loss))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = write!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            line.join(" ")
        );
        let _ = write!(svg, r#"<text x="420" y="{}" fill="{colour}">{}</text>"#, 60 + 20 * n, curve.name);
    }
    svg.push_str("</svg>\n");
    std::fs::write(path, svg)
}
