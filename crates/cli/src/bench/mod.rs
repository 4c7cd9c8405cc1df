//! `signflash bench`.

mod case;
mod check;
mod gpu;
mod joins;
mod lengths;
mod measure;
mod random;
mod report;
mod tensors;

use crate::args::BenchArgs;
use crate::engine::Engine;
use crate::errors::Error;
use crate::progress::Progress;
use crate::settings::Settings;
use case::{Case, Sequences};
pub use joins::JoinAxes;
pub use lengths::Lengths;
use measure::measure;
use report::Row;
use signflash_core::{Dtype, bf16, f16};
use std::io::Write;

/// What every row draws its dropout mask from.
const SEED: u64 = 42;

/// Measures each combination of the lists.
///
/// # Errors
/// [`Error::Argument`], [`Error::Problem`]; [`Error::WrongResult`] where there would be nothing worth timing.
pub fn run(args: &BenchArgs, quiet: bool, stdout: &mut dyn Write) -> Result<(), Error> {
    let cases = cases(args)?;
    let engine = Engine::of(&args.engine)?;
    let mut peaks = Peaks { engine: &engine, known: Vec::new() };
    let progress = Progress::bar("bench", cases.len() as u64, quiet || args.json);
    let mut rows = Vec::new();
    for case in &cases {
        let measured = match case.dtype {
            Dtype::F16 => measure::<f16>(case, &engine, args.reps, args.calls)?,
            Dtype::Bf16 => measure::<bf16>(case, &engine, args.reps, args.calls)?,
            _ => measure::<f32>(case, &engine, args.reps, args.calls)?,
        };
        let row = Row::new(case, &measured, &engine, peaks.of(case.dtype))?;
        if args.json {
            writeln!(stdout, "{}", row.json()).and_then(|()| stdout.flush()).map_err(Error::Stdout)?;
        } else {
            rows.push(row);
        }
        progress.advance(1);
    }
    drop(progress);
    if args.json { Ok(()) } else { report::print(&rows, &engine, stdout).map_err(Error::Stdout) }
}

/// All combinations, judged before the first is measured.
fn cases(args: &BenchArgs) -> Result<Vec<Case>, Error> {
    let fixed = Settings { seed: SEED, ..Settings::default() };
    let settings = args.settings.combinations(&fixed);
    let heads = args.heads;
    let heads_k = args.heads_k.unwrap_or(heads);
    let joins = args.joins.combinations()?;
    let varied = |head_dim: usize| {
        let of_v = if args.head_dim_v.is_empty() { vec![head_dim] } else { args.head_dim_v.clone() };
        let with_joins = of_v.into_iter().flat_map(|of_v| joins.iter().map(move |joins| (of_v, *joins)));
        let with_settings =
            |(of_v, joins)| settings.iter().map(move |settings| (of_v, joins, settings.clone()));
        with_joins.flat_map(with_settings).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    for &dtype in &args.dtype {
        for &head_dim in &args.head_dim {
            for sequences in sequences(args)? {
                for (head_dim_v, joins, settings) in &varied(head_dim) {
                    for &pass in &args.pass {
                        let (settings, sequences) = (settings.clone(), sequences.clone());
                        let (head_dim_v, joins) = (*head_dim_v, *joins);
                        let case = Case {
                            dtype,
                            pass,
                            sequences,
                            heads,
                            heads_k,
                            head_dim,
                            head_dim_v,
                            joins,
                            settings,
                        };
                        case.check()?;
                        cases.push(case);
                    }
                }
            }
        }
    }
    Ok(cases)
}

/// The lists of lengths.
fn sequences(args: &BenchArgs) -> Result<Vec<Sequences>, Error> {
    let batch = |&seqlen: &usize| Sequences::Batch { batch: args.batch, seqlen };
    let packed = |lengths: &Lengths| Sequences::packed(&lengths.text, &lengths.draw(args.lengths_seed));
    match args.lengths.as_slice() {
        [] => Ok(args.seqlen.iter().map(batch).collect()),
        lengths => lengths.iter().map(packed).collect(),
    }
}

/// Peak rates, each measured once.
struct Peaks<'a> {
    engine: &'a Engine,
    known: Vec<(Dtype, Option<f64>)>,
}

impl Peaks<'_> {
    fn of(&mut self, dtype: Dtype) -> Option<f64> {
        if let Some(&(_, gflops)) = self.known.iter().find(|(known, _)| *known == dtype) {
            return gflops;
        }
        let gflops = self.engine.peak_gflops(dtype);
        self.known.push((dtype, gflops));
        gflops
    }
}
