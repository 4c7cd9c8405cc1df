//! `signflash attend`.

use crate::cli::{Against, AttendArgs};
use crate::compute::{Compute, Results};
use crate::engine::Engine;
use crate::errors::Error;
use crate::files::{self, Archive, Data, FileElement, Format, U8_NAME};
use crate::input::{self, Operands};
use crate::output::Pending;
use crate::settings::Settings;
use crate::table::table;
use crate::verify::{REFERENCES, SIGNBIT, Verify};
use crate::{machine, plot};
use signflash_core::{Problem, Probs, TensorRef, bf16, f16};
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
    output: Option<Pending>,
    picture: Option<Pending>,
}

/// Runs attention on the tensors of a file.
///
/// # Errors
/// Any [`Error`]; no file is then left behind, except the results of a run whose verification failed.
pub fn run(args: &AttendArgs, quiet: bool, stdout: &mut dyn Write) -> Result<(), Error> {
    let engine = machine::engine(&args.engine)?;
    let output = args.output.as_deref().map(|path| create(path, &args.input)).transpose()?;
    let picture = args.plot.as_deref().map(|path| plot::create("--plot", path)).transpose()?;
    let mut wanted = vec!["q", "k", "v", "dout", "dlse"];
    if args.verify.is_some() {
        wanted.extend(REFERENCES);
        wanted.push(SIGNBIT);
    }
    let archive = files::read(&args.input, &wanted)?;
    let settings = Settings::resolve(&args.settings.overrides(), &archive.metadata)?;
    let problem = input::problem(&archive, &settings)?;
    plot::check_view(&args.view, &problem, args.plot.is_some())?;
    let run = Run { args, quiet, engine, settings, problem, output, picture };
    match archive.tensors.get("q").map(|q| &q.data) {
        Some(Data::F32(_)) => run.typed::<f32>(archive, stdout),
        Some(Data::F16(_)) => run.typed::<f16>(archive, stdout),
        Some(Data::Bf16(_)) => run.typed::<bf16>(archive, stdout),
        _ => Err(Error::TensorDtype { tensor: "q", got: U8_NAME, expected: "f32, f16 or bf16".into() }),
    }
}

fn create(path: &Path, input: &Path) -> Result<Pending, Error> {
    Format::of("--output", path)?;
    let same = |path: &Path| path.canonicalize().ok();
    if same(path).is_some_and(|output| Some(output) == same(input)) {
        return Err(Error::OutputIsInput { path: path.to_path_buf() });
    }
    Pending::create(path)
}

impl Run<'_> {
    fn typed<T: FileElement>(self, mut archive: Archive, stdout: &mut dyn Write) -> Result<(), Error> {
        let Self { args, quiet, engine, settings, problem, output, picture } = self;
        let operands = Operands::<T>::take(&mut archive)?;
        let compute = Compute { engine: &engine, problem: &problem, layout: settings.layout, quiet };
        let with_mask = args.verify.is_some() && archive.tensors.contains_key(SIGNBIT);
        let start = Instant::now();
        let results = compute.run(&operands, args.probs || with_mask)?;
        let took = start.elapsed();
        if output.is_none() && picture.is_none() && args.verify.is_none() {
            summary(&settings, &problem, &results, took, stdout)?;
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
            note(
                quiet,
                stdout,
                &format!("drew head {} of batch {}", args.view.head, args.view.batch),
                args.plot.as_deref(),
            )?;
        }
        let verified = args.verify.map(|against| {
            Verify {
                problem: &problem,
                layout: settings.layout,
                operands: &operands,
                results: &results,
                archive: &archive,
                with_f64: against == Against::Both,
                quiet,
            }
            .run(stdout)
        });
        // Results beyond their bounds are worth looking at; those of a run that could not be judged are not kept.
        let verified = match verified {
            Some(Err(error)) if !matches!(error, Error::BeyondBounds { .. }) => return Err(error),
            other => other,
        };
        if let Some(mut output) = output {
            let mut results = results;
            if !args.probs {
                results.probs = None; // it was there to be verified
            }
            let tensors = results.into_tensors(&problem, settings.layout);
            let names: Vec<_> = tensors.keys().cloned().collect();
            let metadata = settings.to_metadata(&problem);
            files::write(&mut output, &Archive { tensors, metadata, present: Vec::new() })?;
            output.commit()?;
            note(quiet, stdout, &format!("wrote {}", names.join(", ")), args.output.as_deref())?;
        }
        verified.unwrap_or(Ok(()))
    }
}

fn note(quiet: bool, stdout: &mut dyn Write, what: &str, path: Option<&Path>) -> Result<(), Error> {
    match path {
        Some(path) if !quiet => writeln!(stdout, "{what}: {}", path.display()).map_err(Error::Stdout),
        _ => Ok(()),
    }
}

/// What came out, where nobody asked for a file.
fn summary<T: FileElement>(
    settings: &Settings,
    problem: &Problem,
    results: &Results<T>,
    took: Duration,
    stdout: &mut dyn Write,
) -> Result<(), Error> {
    let shape = problem.shape();
    let (q, k) = (settings.layout.reorder(shape.q()).to_vec(), settings.layout.reorder(shape.k()).to_vec());
    let mut rows = vec![
        row("out", &q, results.out.iter().map(|x| x.to_f64())),
        row(
            "lse",
            &[shape.batch, shape.num_heads, shape.seqlen_q],
            results.lse.iter().map(|&x| f64::from(x)),
        ),
    ];
    if let Some(grads) = &results.gradients {
        for (name, shape, data) in [("dq", &q, &grads.dq), ("dk", &k, &grads.dk), ("dv", &k, &grads.dv)] {
            rows.push(row(name, shape, data.iter().map(|x| x.to_f64())));
        }
    }
    let mut text = format!("{}\n", table(&["tensor", "shape", "rms", "largest", "not finite"], rows, 2));
    if let Some(probs) = &results.probs {
        let probs = Probs::new(problem, TensorRef::bshd(probs, shape.probs()))?;
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
    let causal = if problem.causal() { "causal, " } else { "" };
    text += &format!(
        "{}, {causal}softmax_scale {}, {dropout}\n{:.1} ms; -o FILE writes the results, --plot PICTURE.png draws them",
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
