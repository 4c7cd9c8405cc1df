//! `signflash attend`.

use crate::args::{Against, AttendArgs};
use crate::compute::{Compute, Results};
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::{self, Archive, Data, FileElement, Format};
use crate::input::{self, Operands};
use crate::joined::JOINED;
use crate::output::{self, Pending};
use crate::packed::{self, CU_SEQLENS};
use crate::settings::{self, Layout, Settings};
use crate::table::table;
use crate::verify::{self, REFERENCES, SIGNBIT, Verify};
use crate::{plot, text};
use signflash_core::{Problem, Probs, TensorName, TensorRef, bf16, f16};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Everything that a run needs, whatever the element type.
struct Run<'a> {
    args: &'a AttendArgs,
    quiet: bool,
    engine: Engine,
    settings: Settings,
    problem: Problem,
    layout: Layout,
    unused: Option<String>,
    output: Option<Pending>,
    picture: Option<Pending>,
}

/// Runs attention on the tensors of a file.
///
/// # Errors
/// Any [`Error`]; no file is then left behind, except the results of a run that could not be drawn, verified or
/// printed.
pub fn run(args: &AttendArgs, quiet: bool, stdout: &mut dyn Write) -> Result<(), Error> {
    let engine = Engine::of(&args.engine)?;
    let output = args.output.as_deref().map(create).transpose()?;
    let picture = args.plot.as_deref().map(|path| plot::create("--plot", path)).transpose()?;
    let outputs = [("--output", output.as_ref()), ("--plot", picture.as_ref())];
    output::expect_distinct(&args.input, &outputs)?;
    let mut wanted = vec!["q", "k", "v", "dout", "dlse", CU_SEQLENS[0], CU_SEQLENS[1]];
    wanted.extend(JOINED);
    if args.verify.is_some() {
        wanted.extend(REFERENCES);
        wanted.push(SIGNBIT);
    }
    let format = Format::of("INPUT", &args.input)?;
    let archive = files::read(&args.input, &wanted)?;
    if args.verify == Some(Against::File) && !args.probs {
        verify::expect_references(&archive)?;
    }
    let settings = Settings::of_file(&args.settings, &archive, format)?;
    let unused = settings::note(&archive, format).filter(|_| !quiet);
    let (problem, layout) = input::problem(&archive, &settings)?;
    plot::check_view(&args.view, &problem, args.plot.is_some())?;
    let run = Run { args, quiet, engine, settings, problem, layout, unused, output, picture };
    match &input::tensor(&archive, "q", "attention needs q, k and v")?.data {
        Data::F32(_) => run.typed::<f32>(archive, stdout),
        Data::F16(_) => run.typed::<f16>(archive, stdout),
        Data::Bf16(_) => run.typed::<bf16>(archive, stdout),
        other => {
            let (tensor, got) = ("q", other.name());
            Err(Error::TensorDtype { tensor, got, expected: "f32, f16 or bf16".into() })
        }
    }
}

fn create(path: &Path) -> Result<Pending, Error> {
    Format::of("--output", path)?;
    Pending::create(path)
}

impl Run<'_> {
    /// Files come first, then the verification, then what is printed: a reader of our output that goes away, or a
    /// verification that takes too long, costs no result.
    fn typed<T: FileElement>(self, mut archive: Archive, stdout: &mut dyn Write) -> Result<(), Error> {
        let Self { args, quiet, engine, settings, problem, layout, unused, output, picture } = self;
        let operands = Operands::<T>::take(&mut archive)?;
        if args.verify.is_some() {
            input::references(&archive, &problem, layout)?;
        }
        let compute = Compute { engine: &engine, problem: &problem, layout, quiet };
        let with_signs = args.verify.is_some() && archive.tensors.contains_key(SIGNBIT);
        let start = Instant::now();
        let mut results = compute.run(&operands, args.probs || with_signs)?;
        let took = start.elapsed();
        let mut said = unused.map(String::into_bytes).unwrap_or_default();
        if output.is_none() && picture.is_none() && args.verify.is_none() {
            summary(layout, &problem, &results, took, &mut said)?;
        }
        if let Some(output) = output {
            let names = save(&mut results, output, &settings, &problem, args.probs)?;
            note(quiet, &mut said, &format!("wrote {}", names.join(", ")), args.output.as_deref())?;
        }
        if let Some(mut picture) = picture {
            let subject = plot::Subject::of_file(&args.input, &problem, &args.view, T::DTYPE);
            plot::attention(
                &mut picture,
                &subject,
                |rows| compute.probs_rows(&operands, (args.view.batch, args.view.head), rows),
                quiet,
            )?;
            picture.commit()?;
            let drew = format!("drew head {} of batch {}", args.view.head, args.view.batch);
            note(quiet, &mut said, &drew, args.plot.as_deref())?;
        }
        let verdict = args.verify.map_or(Ok(()), |against| {
            Verify {
                problem: &problem,
                layout,
                operands: &operands,
                results: &results,
                archive: &archive,
                with_f64: against == Against::Both,
                quiet,
            }
            .run(&mut said)
        });
        let printed = stdout.write_all(&said).and_then(|()| stdout.flush()).map_err(Error::Stdout);
        verdict.and(printed)
    }
}

/// Writes the results; returns their names. Probabilities that are there only to be verified are left out.
fn save<T: FileElement>(
    results: &mut Results<T>,
    mut output: Pending,
    settings: &Settings,
    problem: &Problem,
    with_probs: bool,
) -> Result<Vec<String>, Error> {
    let mut whole = std::mem::take(results);
    let unwanted = if with_probs { None } else { whole.probs.take() };
    let mut tensors = whole.into_tensors(problem, settings.layout_of(problem));
    tensors.extend(packed::tensors(problem));
    let metadata = settings.to_metadata(problem);
    let archive = Archive { tensors, metadata, present: Vec::new() };
    files::write(&mut output, &archive)?;
    output.commit()?;
    let names = archive.tensors.keys().cloned().collect();
    *results = Results::from_tensors(archive.tensors);
    results.probs = results.probs.take().or(unwanted);
    Ok(names)
}

fn note(quiet: bool, said: &mut dyn Write, what: &str, path: Option<&Path>) -> Result<(), Error> {
    match path {
        Some(path) if !quiet => writeln!(said, "{what}: {}", text::path(path)).map_err(Error::Stdout),
        _ => Ok(()),
    }
}

/// What came out, where nobody asked for a file.
fn summary<T: FileElement>(
    layout: Layout,
    problem: &Problem,
    results: &Results<T>,
    took: Duration,
    stdout: &mut dyn Write,
) -> Result<(), Error> {
    let shape_of = |tensor| layout.shape_of(problem, tensor);
    let mut rows = vec![
        row("out", &shape_of(TensorName::Out), results.out.iter().map(|x| x.to_f64())),
        row("lse", &shape_of(TensorName::Lse), results.lse.iter().map(|&x| f64::from(x))),
    ];
    if let Some(grads) = &results.gradients {
        for (name, tensor, data) in [
            ("dq", TensorName::Dq, &grads.dq),
            ("dk", TensorName::Dk, &grads.dk),
            ("dv", TensorName::Dv, &grads.dv),
        ] {
            rows.push(row(name, &shape_of(tensor), data.iter().map(|x| x.to_f64())));
        }
        if let Some(dbias) = &grads.dbias {
            rows.push(row("dbias", &shape_of(TensorName::Dbias), dbias.to_f64().into_iter()));
        }
        if let Some(dsinks) = &grads.dsinks {
            rows.push(row("dsinks", &shape_of(TensorName::Dsinks), dsinks.iter().map(|&x| f64::from(x))));
        }
    }
    let mut text = format!("{}\n", table(&["tensor", "shape", "rms", "largest", "not finite"], rows, 2));
    if let Some(probs) = &results.probs {
        let probs = Probs::new(problem, TensorRef::bshd(probs, problem.probs()))?;
        if let Some(kept) = probs.kept_fraction() {
            text += &format!("probs: {:.4} % of the visible entries kept\n", 100.0 * kept);
        }
    }
    let dropout = match problem.dropout() {
        Some(dropout) if dropout.is_active() => format!(
            "dropout_p {}, seed {}, offset {}: keeps {:.4} %, times {:.6}",
            dropout.p(),
            dropout.seed(),
            dropout.offset(),
            100.0 * dropout.keep_probability(),
            dropout.keep_scale()
        ),
        _ => "no dropout".to_string(),
    };
    let seen: String = text::seen(problem).iter().map(|fact| format!("{fact}, ")).collect();
    text += &format!(
        "{}, {seen}softmax_scale {}, {dropout}\n{:.1} ms; -o FILE writes the results, --plot PICTURE.png draws them",
        T::DTYPE,
        problem.softmax_scale(),
        took.as_secs_f64() * 1e3
    );
    writeln!(stdout, "{text}").map_err(Error::Stdout)
}

fn row(name: &str, shape: &[usize], elements: impl Iterator<Item = f64>) -> Vec<String> {
    let (mut squares, mut finite, mut not_finite, mut largest) = (0.0, 0usize, 0usize, 0.0f64);
    for x in elements {
        if x.is_finite() {
            squares += x * x;
            finite += 1;
            largest = largest.max(x.abs());
        } else {
            not_finite += 1;
        }
    }
    let rms = if finite == 0 { 0.0 } else { (squares / finite as f64).sqrt() };
    vec![
        name.into(),
        format!("{shape:?}"),
        format!("{rms:.4e}"),
        format!("{largest:.4e}"),
        not_finite.to_string(),
    ]
}
