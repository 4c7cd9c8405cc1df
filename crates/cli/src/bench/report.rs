//! Rows for people and for programs.

use super::case::{Case, Measured, Sequences};
use super::joins::Joins;
use crate::args::{COMMIT, VERSION};
use crate::engine::Engine;
use crate::errors::Error;
use crate::settings::AXES;
use crate::table::table;
use serde_json::{Value, json};
use std::io::{self, Write};

const MIB: f64 = 1024.0 * 1024.0;

/// A measured case.
pub(super) struct Row {
    case: Case,
    measured: Measured,
    flops: f64,
    device: String,
    machine: String,
    variant: String,
    cpu: Option<(&'static str, usize)>,
    peak_gflops: Option<f64>,
}

impl Row {
    /// Of a case, on an engine with this peak rate.
    ///
    /// # Errors
    /// [`Error::Problem`].
    pub(super) fn new(
        case: &Case,
        measured: &Measured,
        engine: &Engine,
        peak_gflops: Option<f64>,
    ) -> Result<Self, Error> {
        let cpu = match engine {
            Engine::Cpu(engine) => Some((engine.isa().name(), engine.threads())),
            Engine::Cuda(_) => None,
        };
        let (device, machine, variant) = (engine.device(), engine.machine(), engine.variant());
        let (case, measured, flops) = (case.clone(), *measured, case.flops(&case.problem()?));
        Ok(Self { case, measured, flops, device, machine, variant, cpu, peak_gflops })
    }

    fn gflops(&self) -> f64 {
        self.flops / self.measured.median_ms / 1e6
    }

    fn percent_of_peak(&self) -> Option<f64> {
        Some(100.0 * self.gflops() / self.peak_gflops?)
    }

    fn extra_mib(&self) -> f64 {
        self.measured.extra_bytes as f64 / MIB
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let Case { dtype, ref sequences, heads, heads_k, head_dim, ref settings, .. } = self.case;
        let (batch, seqlen, lengths) = match sequences {
            Sequences::Batch { batch, seqlen } => (Some(*batch), Some(*seqlen), None),
            Sequences::Packed { text, .. } => (None, None, Some(text)),
        };
        let mut row = json!({
            "device": self.device,
            "machine": self.machine,
            "variant": self.variant,
            "isa": self.cpu.map(|(isa, _)| isa),
            "threads": self.cpu.map(|(_, threads)| threads),
            "version": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "dtype": dtype.to_string(),
            "pass": self.case.pass_name(),
            "batch": batch,
            "lengths": lengths,
            "sequences": sequences.count(),
            "tokens": sequences.tokens(),
            "heads": heads,
            "heads_k": heads_k,
            "head_dim": head_dim,
            "head_dim_v": self.case.head_dim_v,
            "seqlen": seqlen,
            "ms": self.measured.median_ms,
            "ms_min": self.measured.min_ms,
            "reps": self.measured.reps,
            "first_ms": self.measured.first_ms,
            "gflops": self.gflops(),
            "peak_gflops": self.peak_gflops,
            "percent_of_peak": self.percent_of_peak(),
            "extra_mib": self.extra_mib(),
        });
        for axis in AXES {
            row[axis.name] = (axis.json)(settings);
        }
        for (name, value) in self.case.joins.json() {
            row[name] = value;
        }
        row
    }

    /// With columns of what joins scores where their names are shown.
    fn cells(&self, shown: &[&str]) -> Vec<String> {
        let case = &self.case;
        let head_dim = match (case.head_dim, case.head_dim_v) {
            (of_q, of_v) if of_q == of_v => of_q.to_string(),
            (of_q, of_v) => format!("{of_q}, v {of_v}"),
        };
        let shape = [case.pass_name().to_string(), case.dtype.to_string(), head_dim, case.sequences.cell()];
        let joins = case.joins.named().into_iter().filter(|(name, _)| shown.contains(name));
        let joins = joins.map(|(_, cell)| cell.unwrap_or_else(|| "no".to_string()));
        let settings = AXES.iter().map(|axis| (axis.cell)(&case.settings));
        let measured = [
            format!("{:.2}", self.measured.median_ms),
            format!("{:.1}", self.gflops()),
            // Of the CPU the share of its peak is known, of a GPU the time of the first call.
            match (self.percent_of_peak(), self.measured.first_ms) {
                (Some(percent), _) => format!("{percent:.0}"),
                (None, first_ms) => first_ms.map_or_else(String::new, |ms| format!("{ms:.1}")),
            },
            format!("{:.1}", self.extra_mib()),
        ];
        shape.into_iter().chain(settings).chain(joins).chain(measured).collect()
    }
}

/// For people.
pub(super) fn print(rows: &[Row], engine: &Engine, stdout: &mut dyn Write) -> io::Result<()> {
    writeln!(stdout, "signflash {VERSION}, {}, {}", engine.machine(), engine.variant())?;
    if let Some(row) = rows.first() {
        let Case { ref sequences, heads, heads_k, .. } = row.case;
        let sequences = match sequences {
            Sequences::Batch { batch, .. } => format!("batch {batch}"),
            Sequences::Packed { .. } => "packed sequences".to_string(),
        };
        writeln!(stdout, "{sequences}, heads {heads}, key heads {heads_k}")?;
    }
    let mut peaks: Vec<(String, f64)> = Vec::new();
    for row in rows {
        let dtype = row.case.dtype.to_string();
        if peaks.iter().all(|(known, _)| *known != dtype) {
            peaks.extend(row.peak_gflops.map(|gflops| (dtype, gflops)));
        }
    }
    for (dtype, gflops) in peaks {
        writeln!(stdout, "multiply-adds in registers, {dtype}: {gflops:.1} GFLOP/s")?;
    }
    let last = if matches!(engine, Engine::Cpu(_)) { "% of peak" } else { "first ms" };
    let mut header = vec!["pass", "dtype", "head_dim", "seqlen"];
    header.extend(AXES.iter().map(|axis| axis.name));
    let joins = rows.iter().flat_map(|row| row.case.joins.named());
    let there: Vec<&str> = joins.filter(|(_, cell)| cell.is_some()).map(|(name, _)| name).collect();
    let names = Joins::default().named().map(|(name, _)| name);
    let shown: Vec<&str> = names.into_iter().filter(|name| there.contains(name)).collect();
    header.extend(&shown);
    header.extend(["ms", "GFLOP/s", last, "extra MiB"]);
    writeln!(stdout, "{}", table(&header, rows.iter().map(|row| row.cells(&shown)), 2))
}
