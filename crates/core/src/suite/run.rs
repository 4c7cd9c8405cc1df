//! Runs cases and collects what is wrong.

use super::case::Case;
use super::compare::{self, Found};
use super::implementation::Implementation;
use super::inputs::{Values, as_f32};
use super::layout::Layout;
use super::neighbours::Half;
use super::part::{ForwardResults, add_piece, combine, pieces, problem_of, share_of, values_of};
use super::reach::Reach;
use super::report::{Failure, Finding, Report};
use super::scores::{BiasStorage, ScoreStorage};
use super::storage::Storage;
use super::truth::Truth;
use crate::judge::Expected;
use crate::{
    Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Piece, Problem, TensorName, bf16,
    contiguous_strides, f16, oracle,
};
use std::io::Write;
use std::sync::Arc;

/// Runs one case and panics with everything that is wrong. What is not supported is skipped, and says so on stderr.
///
/// # Panics
/// If the case fails, or there is none of that name.
pub fn check(name: &str, implementation: &impl Implementation) {
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
    let mut report = Report::default();
    for name in super::NAMES {
        let case = super::case(name).expect("every name has its case");
        let Report { ran, skipped, failures } = run_named(name, &case, implementation);
        report.ran += ran;
        report.skipped.extend(skipped);
        report.failures.extend(failures);
    }
    report
}

/// Runs a case of your own.
///
/// ```
/// use signflash_core::suite::{self, Case, Reference};
/// let report = suite::run_case("mine", &Case::new(3, 5).causal().dropout(0.2), &Reference);
/// assert_eq!((report.ran, report.failures.len()), (3, 0)); // three dtypes
/// ```
pub fn run_case(name: &str, case: &Case, implementation: &impl Implementation) -> Report {
    run_with(name, case, implementation, Asked::Anew)
}

/// Runs one of the suite's cases.
fn run_named(name: &str, case: &Case, implementation: &impl Implementation) -> Report {
    run_with(name, case, implementation, Asked::Once(name))
}

/// How often the oracle is asked about a case.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Anew,
    /// Once a program, since it is the suite's case of this name.
    Once(&'a str),
}

fn run_with(name: &str, case: &Case, implementation: &impl Implementation, asked: Asked<'_>) -> Report {
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

fn run_dtype<T: Element>(case: &Case, implementation: &impl Implementation, asked: Asked<'_>) -> Vec<Found> {
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
        match run.forward::<T>(&pieces, with_probs) {
            Ok(results) => found.extend(compare::forward(&problem, T::DTYPE, &truth, &results)),
            Err(failed) => found.push(failed),
        }
    }
    match run.backward::<T>(&pieces) {
        Ok(gradients) => found.extend(compare::backward(&problem, &truth, &gradients)),
        Err(failed) => found.push(failed),
    }
    // Of a piece the neighbours are those of the whole; and large cases of others' results need not be run so again.
    for half in Half::of(&problem).filter(|_| pieces.len() == 1 && !case.is_vector()) {
        found.extend(run.beside_nans::<T>(half));
    }
    found
}

/// A case on an implementation.
struct Run<'a, I> {
    implementation: &'a I,
    problem: &'a Problem,
    values: &'a Values,
    truth: &'a Truth,
    layout: Layout,
}

impl<I: Implementation> Run<'_, I> {
    fn forward<T: Element>(&self, pieces: &[Piece], with_probs: bool) -> Result<ForwardResults, Found> {
        let mut all = Vec::new();
        for piece in pieces {
            let call = Call::<T>::new(self, piece);
            let first = call.forward(self.implementation, self.layout, with_probs)?;
            let second = call.forward(self.implementation, self.layout, with_probs)?;
            same_bits(first.out.bytes(), second.out.bytes(), TensorName::Out)?;
            same_bits(first.lse.bytes(), second.lse.bytes(), TensorName::Lse)?;
            let probs = [&first, &second].map(|x| x.probs.as_ref().map_or(&[][..], Storage::bytes));
            same_bits(probs[0], probs[1], TensorName::Probs)?;
            all.push((piece, first.results()));
        }
        Ok(combine(self.problem, all))
    }

    /// From the oracle's rounded out and lse of the whole, so that an error of the forward stays the forward's.
    fn backward<T: Element>(&self, pieces: &[Piece]) -> Result<oracle::Gradients, Found> {
        let mut sums = oracle::Gradients::zeros(self.problem);
        for piece in pieces {
            let call = Call::<T>::new(self, piece);
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

impl<I: Implementation> Run<'_, I> {
    /// What is wrong with all other sequences if those of one half are NaNs.
    fn beside_nans<T: Element>(&self, half: Half) -> Vec<Found> {
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
        let call = Call::<T>::of(problem.clone(), layout, &values, [&out, &lse]);
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

/// The operands of one call.
struct Call<T> {
    problem: Problem,
    q: Storage<T>,
    k: Storage<T>,
    v: Storage<T>,
    dout: Storage<T>,
    out: Storage<T>,
    lse: Vec<f32>,
    dlse: Option<Vec<f32>>,
    scores: ScoreStorage,
}

struct ForwardBuffers<T> {
    out: Storage<T>,
    lse: Storage<f32>,
    probs: Option<Storage<T>>,
}

struct BackwardBuffers<T> {
    dq: Storage<T>,
    dk: Storage<T>,
    dv: Storage<T>,
    dbias: Option<BiasStorage>,
    dsinks: Option<Storage<f32>>,
}

impl<T: Element> Call<T> {
    fn new<I>(run: &Run<'_, I>, piece: &Piece) -> Self {
        let problem = problem_of(run.problem, piece);
        let values = values_of(run.problem, piece, run.values);
        let truth = &run.truth.results;
        let out = share_of(run.problem, piece, TensorName::Out, &truth.out().values);
        let lse = share_of(run.problem, piece, TensorName::Lse, &truth.lse().values);
        Self::of(problem, run.layout, &values, [&out, &lse])
    }

    /// Of dense operands, and of the forward's dense results.
    fn of(problem: Problem, layout: Layout, values: &Values, [out, lse]: [&[f64]; 2]) -> Self {
        let shape = problem.shape();
        let of_query = |shape, dense| Storage::holding(shape, layout.strides(shape), dense);
        let of_key = |shape, dense| Storage::holding(shape, layout.key_strides(shape), dense);
        Self {
            q: of_query(shape.q(), &values.q),
            k: of_key(shape.k(), &values.k),
            v: of_key(shape.v(), &values.v),
            dout: of_query(shape.out(), &values.dout),
            out: of_query(shape.out(), out),
            lse: as_f32(lse),
            dlse: values.dlse.as_deref().map(as_f32),
            scores: ScoreStorage::of(&problem, layout, values),
            problem,
        }
    }

    fn inputs(&self) -> Inputs<'_, T> {
        Inputs::new(self.q.tensor(), self.k.tensor(), self.v.tensor()).scores(self.scores.inputs())
    }

    fn forward(
        &self,
        implementation: &impl Implementation,
        layout: Layout,
        with_probs: bool,
    ) -> Result<ForwardBuffers<T>, Found> {
        let shape = self.problem.shape();
        let (lse_shape, probs_shape) = (shape.of(TensorName::Lse), self.problem.probs());
        let mut out = Storage::poisoned(shape.out(), layout.strides(shape.out()));
        let mut lse = Storage::poisoned(lse_shape, contiguous_strides(lse_shape));
        let mut probs = with_probs.then(|| Storage::poisoned(probs_shape, layout.probs_strides(probs_shape)));
        let mut outputs = Outputs::new(out.tensor_mut(), lse.tensor_mut().data)
            .probs(probs.as_mut().map(Storage::tensor_mut));
        implementation.forward(&self.problem, &self.inputs(), &mut outputs).map_err(call_failed)?;
        written(&out, TensorName::Out)?;
        written(&lse, TensorName::Lse)?;
        probs.iter().try_for_each(|probs| written(probs, TensorName::Probs))?;
        Ok(ForwardBuffers { out, lse, probs })
    }

    fn backward(
        &self,
        implementation: &impl Implementation,
        layout: Layout,
    ) -> Result<BackwardBuffers<T>, Found> {
        let shape = self.problem.shape();
        let [mut dq, mut dk, mut dv] =
            [shape.q(), shape.k(), shape.v()].map(|shape| Storage::poisoned(shape, layout.strides(shape)));
        let mut dbias = self
            .problem
            .bias()
            .map(|bias| BiasStorage::poisoned(bias.dtype, bias.shape, layout.probs_strides(bias.shape)));
        let of_sinks = shape.of(TensorName::Dsinks);
        let mut dsinks =
            self.problem.sinks().then(|| Storage::<f32>::poisoned(of_sinks, contiguous_strides(of_sinks)));
        let inputs = GradInputs::new(self.inputs(), self.out.tensor(), &self.lse, self.dout.tensor())
            .dlse(self.dlse.as_deref());
        let mut gradients = Gradients::new(dq.tensor_mut(), dk.tensor_mut(), dv.tensor_mut())
            .dbias(dbias.as_mut().map(BiasStorage::tensor_mut))
            .dsinks(dsinks.as_mut().map(|dsinks| dsinks.tensor_mut().data));
        implementation.backward(&self.problem, &inputs, &mut gradients).map_err(call_failed)?;
        written(&dq, TensorName::Dq)?;
        written(&dk, TensorName::Dk)?;
        written(&dv, TensorName::Dv)?;
        if let Some(dbias) = &dbias {
            dbias.check_written().map_err(|finding| (Some(TensorName::Dbias), finding))?;
        }
        dsinks.iter().try_for_each(|dsinks| written(dsinks, TensorName::Dsinks))?;
        Ok(BackwardBuffers { dq, dk, dv, dbias, dsinks })
    }
}

impl<T: Element> ForwardBuffers<T> {
    fn results(&self) -> ForwardResults {
        let probs = self.probs.as_ref().map(Storage::to_dense).unwrap_or_default();
        ForwardResults { out: self.out.to_dense(), lse: self.lse.to_dense(), probs }
    }
}

impl<T: Element> BackwardBuffers<T> {
    fn gradients(&self) -> oracle::Gradients {
        oracle::Gradients {
            dq: self.dq.to_dense(),
            dk: self.dk.to_dense(),
            dv: self.dv.to_dense(),
            dbias: self.dbias.as_ref().map(BiasStorage::to_dense).unwrap_or_default(),
            dsinks: self.dsinks.as_ref().map(Storage::to_dense).unwrap_or_default(),
        }
    }

    fn same_bits(&self, other: &Self) -> Result<(), Found> {
        same_bits(self.dq.bytes(), other.dq.bytes(), TensorName::Dq)?;
        same_bits(self.dk.bytes(), other.dk.bytes(), TensorName::Dk)?;
        same_bits(self.dv.bytes(), other.dv.bytes(), TensorName::Dv)?;
        let dbias = [self, other].map(|x| x.dbias.as_ref().map_or(&[][..], BiasStorage::bytes));
        same_bits(dbias[0], dbias[1], TensorName::Dbias)?;
        let dsinks = [self, other].map(|x| x.dsinks.as_ref().map_or(&[][..], Storage::bytes));
        same_bits(dsinks[0], dsinks[1], TensorName::Dsinks)
    }
}

fn call_failed(error: super::RunError) -> Found {
    (None, Finding::Call { message: error.to_string() })
}

fn written<T: Element>(storage: &Storage<T>, tensor: TensorName) -> Result<(), Found> {
    storage.check_written().map_err(|finding| (Some(tensor), finding))
}

fn same_bits(first: &[u8], second: &[u8], tensor: TensorName) -> Result<(), Found> {
    if first == second { Ok(()) } else { Err((Some(tensor), Finding::NotReproducible)) }
}
