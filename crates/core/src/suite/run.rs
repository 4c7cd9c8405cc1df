//! Runs cases and collects what is wrong.

use super::call::Call;
use super::case::Case;
use super::compare::{self, Found};
use super::erased::{Erased, Of};
use super::implementation::Implementation;
use super::inputs::Values;
use super::layout::Layout;
use super::neighbours::Half;
use super::part::{ForwardResults, add_piece, combine, pieces, problem_of, share_of, values_of};
use super::reach::Reach;
use super::report::{Failure, Finding, Report};
use super::truth::Truth;
use crate::judge::Expected;
use crate::{Dtype, Element, Piece, Problem, TensorName, bf16, f16, oracle};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Runs one case and panics with everything that is wrong. What is not supported is skipped, and says so on stderr.
///
/// # Panics
/// If the case fails, or there is none of that name.
pub fn check(name: &str, implementation: &impl Implementation) {
    check_erased(name, implementation);
}

fn check_erased(name: &str, implementation: &dyn Erased) {
    let case = super::case(name).unwrap_or_else(|| panic!("the suite has no case named {name:?}"));
    let report = run_named(name, &case, implementation);
    for (case, dtype, reason) in &report.skipped {
        // Not by eprintln!, which tests that pass do not show.
        let _ = writeln!(std::io::stderr(), "skipped {case} {dtype} on {}: {reason}", implementation.name());
    }
    assert!(report.failures.is_empty(), "{}: {report}", implementation.name());
}

/// Runs every case.
///
/// ```no_run
/// use signflash_core::suite::{self, Reference};
/// let report = suite::run(&Reference);
/// assert!(report.failures.is_empty(), "{report}");
/// ```
pub fn run(implementation: &impl Implementation) -> Report {
    run_erased(implementation)
}

fn run_erased(implementation: &dyn Erased) -> Report {
    let mut report = Report::default();
    for name in super::NAMES {
        let case = super::case(name).expect("every name has its case");
        report.add(run_named(name, &case, implementation));
    }
    report
}

/// Runs the suite's cases of these names on all processors, a case on one thread: where the oracle or a compiler of kernels
/// takes the time. What was found is in no order.
///
/// ```
/// use signflash_core::suite::{self, Reference};
/// let report = suite::run_names(&["length_1", "no_keys"], &Reference);
/// assert_eq!((report.ran, report.failures.len()), (6, 0)); // three dtypes each
/// ```
///
/// # Panics
/// If there is no case of one of the names, or the implementation panics.
pub fn run_names(names: &[&str], implementation: &(impl Implementation + Sync)) -> Report {
    run_names_erased(names, implementation)
}

fn run_names_erased(names: &[&str], implementation: &(dyn Erased + Sync)) -> Report {
    let (next, report) = (AtomicUsize::new(0), Mutex::new(Report::default()));
    let run = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let case = super::case(name).unwrap_or_else(|| panic!("the suite has no case named {name:?}"));
            let found = run_named(name, &case, implementation);
            report.lock().expect("adding does not panic").add(found);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| (0..threads.min(names.len())).for_each(|_| drop(scope.spawn(run))));
    report.into_inner().expect("adding does not panic")
}

/// Runs a case of your own.
///
/// ```
/// use signflash_core::suite::{self, Case, Reference};
/// let report = suite::run_case("mine", &Case::new(3, 5).causal().dropout(0.2), &Reference);
/// assert_eq!((report.ran, report.failures.len()), (3, 0)); // three dtypes
/// ```
pub fn run_case(name: &str, case: &Case, implementation: &impl Implementation) -> Report {
    run_anew(name, case, implementation)
}

/// The same of any implementation.
pub(super) fn run_anew(name: &str, case: &Case, implementation: &dyn Erased) -> Report {
    run_with(name, case, implementation, Asked::Anew)
}

/// Runs one of the suite's cases.
fn run_named(name: &str, case: &Case, implementation: &dyn Erased) -> Report {
    run_with(name, case, implementation, Asked::Once(name))
}

/// How often the oracle is asked about a case.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Anew,
    /// Once a program, since it is the suite's case of this name.
    Once(&'a str),
}

fn run_with(name: &str, case: &Case, implementation: &dyn Erased, asked: Asked<'_>) -> Report {
    let mut report = Report::default();
    for &dtype in &case.dtypes {
        let problem = case.problem();
        let mut pieces = pieces(&problem, &case.cuts).into_iter();
        let spreads = case.adjust.is_some() && implementation.spreads_non_finite();
        let refusal = spreads.then(|| "0 * NaN is NaN there".to_string()).or_else(|| {
            pieces.find_map(|piece| implementation.supports(dtype, &problem_of(&problem, &piece)).err())
        });
        if let Some(reason) = refusal {
            report.skipped.push((name.to_string(), dtype, reason));
            continue;
        }
        let found = match dtype {
            Dtype::F32 => run_dtype::<f32>(case, implementation, asked),
            Dtype::F16 => run_dtype::<f16>(case, implementation, asked),
            Dtype::Bf16 => run_dtype::<bf16>(case, implementation, asked),
        };
        report.ran += 1;
        report.failures.extend(found.into_iter().map(|(tensor, finding)| Failure {
            case: name.to_string(),
            dtype,
            tensor,
            finding,
        }));
    }
    report
}

fn run_dtype<T: Element>(case: &Case, implementation: &dyn Of<T>, asked: Asked<'_>) -> Vec<Found> {
    let (problem, values) = (case.problem(), case.values());
    let mut truth = match asked {
        Asked::Anew => Arc::new(Truth::of::<T>(&problem, &values)),
        Asked::Once(name) => Truth::of_named::<T>(name, &problem, &values),
    };
    let of_this = Arc::make_mut(&mut truth);
    of_this.reach = Reach::of(&of_this.results.lse().values, implementation.largest_lse_of_p());
    if case.products_near.is_some() {
        // Scores are exact: their rounding is no excuse. That of lse is, below what backwards may take for small.
        of_this.results.limit_scores(1024.0);
    }
    of_this.results.widen_gradients(of_this.reach.error_of_p());
    let pieces = pieces(&problem, &case.cuts);
    let run = Run { implementation, problem: &problem, values: &values, truth: &truth, layout: case.layout };
    let mut found = Vec::new();
    for with_probs in [false, true] {
        match run.forward(&pieces, with_probs) {
            Ok(results) => found.extend(compare::forward(&problem, T::DTYPE, &truth, &results)),
            Err(failed) => found.push(failed),
        }
    }
    match run.backward(&pieces) {
        Ok(gradients) => found.extend(compare::backward(&problem, &truth, &gradients)),
        Err(failed) => found.push(failed),
    }
    // Of a piece the neighbours are those of the whole; and large cases of others' results need not be run so again.
    for half in Half::of(&problem).filter(|_| pieces.len() == 1 && !case.is_vector()) {
        found.extend(run.beside_nans(half));
    }
    found
}

/// A case on an implementation.
struct Run<'a, T> {
    implementation: &'a dyn Of<T>,
    problem: &'a Problem,
    values: &'a Values,
    truth: &'a Truth,
    layout: Layout,
}

impl<T: Element> Run<'_, T> {
    /// The operands of a piece, with out and lse of the whole.
    fn call(&self, piece: &Piece) -> Call<T> {
        let problem = problem_of(self.problem, piece);
        let values = values_of(self.problem, piece, self.values);
        let truth = &self.truth.results;
        let out = share_of(self.problem, piece, TensorName::Out, &truth.out().values);
        let lse = share_of(self.problem, piece, TensorName::Lse, &truth.lse().values);
        Call::of(problem, self.layout, &values, [&out, &lse])
    }

    fn forward(&self, pieces: &[Piece], with_probs: bool) -> Result<ForwardResults, Found> {
        let mut all = Vec::new();
        for piece in pieces {
            let call = self.call(piece);
            let first = call.forward(self.implementation, self.layout, with_probs)?;
            let second = call.forward(self.implementation, self.layout, with_probs)?;
            first.same_bits(&second)?;
            all.push((piece, first.results()));
        }
        Ok(combine(self.problem, all))
    }

    /// From the oracle's rounded out and lse of the whole, so that an error of the forward stays the forward's.
    fn backward(&self, pieces: &[Piece]) -> Result<oracle::Gradients, Found> {
        let mut sums = oracle::Gradients::zeros(self.problem);
        for piece in pieces {
            let call = self.call(piece);
            let first = call.backward(self.implementation, self.layout)?;
            if self.implementation.has_deterministic_backward() {
                let second = call.backward(self.implementation, self.layout)?;
                first.same_bits(&second)?;
            }
            let add = |tensor, sum: &mut [f64], part: &[f64]| {
                if !part.is_empty() {
                    add_piece(self.problem, piece, tensor, sum, part);
                }
            };
            let gradients = first.gradients();
            add(TensorName::Dq, &mut sums.dq, &gradients.dq);
            add(TensorName::Dk, &mut sums.dk, &gradients.dk);
            add(TensorName::Dv, &mut sums.dv, &gradients.dv);
            add(TensorName::Dbias, &mut sums.dbias, &gradients.dbias);
            add(TensorName::Dsinks, &mut sums.dsinks, &gradients.dsinks);
        }
        Ok(sums)
    }
}

impl<T: Element> Run<'_, T> {
    /// What is wrong with all other sequences if those of one half are NaNs.
    fn beside_nans(&self, half: Half) -> Vec<Found> {
        let Self { implementation, problem, truth, layout, .. } = *self;
        let values = half.poisoned(problem, self.values);
        let poisoned = |tensor, of_truth: &Expected| {
            let mut x = of_truth.values.clone();
            half.poison(problem, tensor, &mut x);
            x
        };
        let results = &truth.results;
        let out = poisoned(TensorName::Out, results.out());
        let lse = poisoned(TensorName::Lse, results.lse());
        let call = Call::of(problem.clone(), layout, &values, [&out, &lse]);
        let judged = |tensor, mut got: Vec<f64>, want: &[f64]| {
            half.forgive(problem, tensor, &mut got, want);
            got
        };
        let of_truth = |tensor| &results.tensor(tensor).expect("the suite runs both passes").values;
        let mut found = Vec::new();
        match call.forward(implementation, layout, true).map(|buffers| buffers.results()) {
            Ok(ForwardResults { out, lse, probs }) => {
                let out = judged(TensorName::Out, out, of_truth(TensorName::Out));
                let lse = judged(TensorName::Lse, lse, of_truth(TensorName::Lse));
                let probs = judged(TensorName::Probs, probs, &truth.probs);
                found.extend(compare::forward(problem, T::DTYPE, truth, &ForwardResults { out, lse, probs }));
            }
            Err(failed) => found.push(failed),
        }
        match call.backward(implementation, layout) {
            Ok(buffers) => {
                let gradient = |tensor, x: Vec<f64>| match x.is_empty() {
                    true => x, // there is none
                    false => judged(tensor, x, of_truth(tensor)),
                };
                let oracle::Gradients { dq, dk, dv, dbias, dsinks } = buffers.gradients();
                let gradients = oracle::Gradients {
                    dq: gradient(TensorName::Dq, dq),
                    dk: gradient(TensorName::Dk, dk),
                    dv: gradient(TensorName::Dv, dv),
                    dbias: gradient(TensorName::Dbias, dbias),
                    dsinks: gradient(TensorName::Dsinks, dsinks),
                };
                found.extend(compare::backward(problem, truth, &gradients));
            }
            Err(failed) => found.push(failed),
        }
        let beside = |finding| Finding::BesideNans { finding: Box::new(finding) };
        found.into_iter().map(|(tensor, finding)| (tensor, beside(finding))).collect()
    }
}
