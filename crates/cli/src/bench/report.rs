//! Rows for people and for programs.

use super::case::{Case, Measured};
use crate::cli::{COMMIT, VERSION};
use crate::machine;
use crate::table::table;
use serde_json::{Value, json};
use signflash_cpu::CpuEngine;
use std::io::{self, Write};

const MIB: f64 = 1024.0 * 1024.0;

/// A measured case.
pub(super) struct Row {
    case: Case,
    measured: Measured,
    isa: &'static str,
    threads: usize,
    peak_gflops: f64,
}

impl Row {
    /// Of a case, on an engine with this peak rate.
    pub(super) fn new(case: &Case, measured: &Measured, engine: &CpuEngine, peak_gflops: f64) -> Self {
        let (isa, threads) = (engine.isa().name(), engine.threads());
        Self { case: *case, measured: *measured, isa, threads, peak_gflops }
    }

    fn gflops(&self) -> f64 {
        self.case.flops() / self.measured.median_ms / 1e6
    }

    fn percent_of_peak(&self) -> f64 {
        100.0 * self.gflops() / self.peak_gflops
    }

    fn extra_mib(&self) -> f64 {
        self.measured.extra_bytes as f64 / MIB
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let Case { dtype, batch, heads, heads_k, head_dim, seqlen, causal, dropout_p, .. } = self.case;
        json!({
            "device": "cpu",
            "machine": machine::cpu_model(),
            "isa": self.isa,
            "threads": self.threads,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "dtype": dtype.to_string(),
            "pass": self.case.pass_name(),
            "batch": batch,
            "heads": heads,
            "heads_k": heads_k,
            "head_dim": head_dim,
            "seqlen": seqlen,
            "causal": causal,
            "dropout_p": dropout_p.to_string().parse::<f64>().unwrap_or_default(),
            "ms": self.measured.median_ms,
            "ms_min": self.measured.min_ms,
            "reps": self.measured.reps,
            "gflops": self.gflops(),
            "peak_gflops": self.peak_gflops,
            "percent_of_peak": self.percent_of_peak(),
            "extra_mib": self.extra_mib(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let case = &self.case;
        vec![
            case.pass_name().to_string(),
            case.dtype.to_string(),
            case.head_dim.to_string(),
            case.seqlen.to_string(),
            if case.causal { "yes" } else { "no" }.to_string(),
            case.dropout_p.to_string(),
            format!("{:.2}", self.measured.median_ms),
            format!("{:.1}", self.gflops()),
            format!("{:.0}", self.percent_of_peak()),
            format!("{:.1}", self.extra_mib()),
        ]
    }
}

/// For people.
pub(super) fn print(rows: &[Row], engine: &CpuEngine, stdout: &mut dyn Write) -> io::Result<()> {
    let threads = engine.threads();
    writeln!(stdout, "signflash {VERSION}, {}, {}, {threads} threads", machine::cpu_model(), engine.isa())?;
    if let Some(row) = rows.first() {
        let Case { batch, heads, heads_k, .. } = row.case;
        writeln!(stdout, "batch {batch}, heads {heads}, key heads {heads_k}")?;
    }
    let mut peaks: Vec<(String, f64)> = Vec::new();
    for row in rows {
        let dtype = row.case.dtype.to_string();
        if peaks.iter().all(|(known, _)| *known != dtype) {
            peaks.push((dtype, row.peak_gflops));
        }
    }
    for (dtype, gflops) in peaks {
        writeln!(stdout, "multiply-adds in registers, {dtype}: {gflops:.1} GFLOP/s")?;
    }
    let header = [
        "pass",
        "dtype",
        "head_dim",
        "seqlen",
        "causal",
        "dropout_p",
        "ms",
        "GFLOP/s",
        "% of peak",
        "extra MiB",
    ];
    writeln!(stdout, "{}", table(&header, rows.iter().map(Row::cells), 2))
}
