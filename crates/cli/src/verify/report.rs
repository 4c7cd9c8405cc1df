//! The table that is printed, and the verdict.

use super::Distances;
use crate::errors::Error;
use crate::table::table;
use signflash_core::judge::Distance;
use std::io::Write;

/// Bounds grow with scores, whose last bits decide more and more. From this one on zeros would be right, too.
const SAYS_NOTHING: f64 = 1.0;

/// The table and its verdict.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Vec<String>>,
    checks: usize,
    failed: Vec<String>,
}

impl Report {
    pub(super) fn check(&mut self, name: &str, passed: bool) -> bool {
        self.checks += 1;
        if !passed {
            self.failed.push(name.to_string());
        }
        passed
    }

    pub(super) fn tensor(&mut self, name: &str, distances: &Distances, with_f64: bool) {
        let shown = |x: f64| format!("{x:.2e}");
        let dashes = || ["-".to_string(), "-".to_string()];
        let both = |distance: &Distance| [shown(distance.error()), shown(distance.bound())];
        let Distances { ours_to_f64, file_to_f64, ours_to_file, apart } = distances;
        let judged = with_f64 || ours_to_file.is_some();
        let mut row = vec![name.to_string()];
        let right = |distance: &Distance, apart: Option<usize>| distance.is_right() && apart.is_none();
        let mut passed = !with_f64 || self.check(&format!("{name} vs f64"), right(ours_to_f64, apart[0]));
        row.extend(if with_f64 { both(ours_to_f64) } else { dashes() });
        let file_to_f64 = file_to_f64.filter(|_| with_f64);
        row.push(file_to_f64.map_or_else(|| "-".to_string(), |distance| shown(distance.error())));
        if let Some(distance) = ours_to_file {
            passed &= self.check(&format!("{name} vs file"), right(distance, apart[1]));
        }
        row.extend(ours_to_file.as_ref().map_or_else(dashes, both));
        let file_is_off = file_to_f64.is_some_and(|distance| !distance.is_right());
        let judged_by = if with_f64 { Some(ours_to_f64) } else { ours_to_file.as_ref() };
        let sequence = apart.iter().flatten().min();
        let mut verdict = match (passed, file_is_off) {
            _ if !judged => "-".to_string(),
            (true, _) if judged_by.is_some_and(|distance| distance.bound() >= SAYS_NOTHING) => {
                "not judged: scores are too large".into()
            }
            (true, false) => "ok".into(),
            (true, true) => "ok; the file's is off".into(),
            (false, true) => "FAILED; the file's is off".into(),
            (false, false) => "FAILED".into(),
        };
        if let Some(sequence) = sequence.filter(|_| !passed) {
            verdict += &format!("; first in sequence {sequence}");
        }
        row.push(verdict);
        self.rows.push(row);
    }

    pub(super) fn print(&self, lines: &[String], stdout: &mut dyn Write) -> std::io::Result<()> {
        let header = ["tensor", "ours vs f64", "bound", "file vs f64", "ours vs file", "bound", "verdict"];
        writeln!(stdout, "{}", table(&header, self.rows.iter().cloned(), 1))?;
        lines.iter().try_for_each(|line| writeln!(stdout, "{line}"))
    }

    pub(super) fn verdict(&self) -> Result<(), Error> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let names = self.failed.join(", ");
        Err(Error::BeyondBounds { failed: self.failed.len(), checks: self.checks, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_lets_everything_pass_is_not_called_ok() {
        for (bound, verdict) in [(1e-6, "ok"), (3.0, "not judged: scores are too large")] {
            let distance = Distance::between([(2.0, 2.0)], bound);
            let mut report = Report::default();
            let distances =
                Distances { ours_to_f64: distance, file_to_f64: None, ours_to_file: None, apart: [None; 2] };
            report.tensor("out", &distances, true);
            assert_eq!(report.rows[0].last().map(String::as_str), Some(verdict));
        }
    }
}
