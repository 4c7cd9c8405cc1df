//! A line for each case of the suite, dtype and instruction set of this machine: the SHA-256 of the bits of all
//! operands that the engine was given, and that of all out, lse, probs and gradients that it wrote. Whether a change
//! is neutral is seen by comparing two lists: `cargo run -p signflash-cpu --example suite_bits > bits.txt`, before
//! and after, on one machine. Words behind `--` choose the cases whose names contain one of them.
//!
//! The suite judges the results meanwhile, and runs every call twice: here once on one thread and once on three, so
//! that it compares these, too.

use sha2::{Digest, Sha256};
use signflash_core::suite::{self, Implementation, LargeBy, RunError};
use signflash_core::{
    BiasMut, Element, GradInputs, Gradients, Inputs, Outputs, Problem, TensorRef, bf16, f16,
};
use signflash_cpu::{CpuEngine, Isa};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// An engine that remembers what it was given and what it wrote.
struct Recorder<'a> {
    engine: CpuEngine,
    pool: &'a rayon::ThreadPool,
    /// Whether the next call is the second of two.
    again: Cell<bool>,
    hashes: RefCell<BTreeMap<String, Hashes>>,
}

/// Of one dtype's calls.
#[derive(Default)]
struct Hashes {
    operands: Sha256,
    results: Sha256,
}

impl<'a> Recorder<'a> {
    fn new(engine: CpuEngine, pool: &'a rayon::ThreadPool) -> Self {
        Self { engine, pool, again: Cell::new(false), hashes: RefCell::default() }
    }

    /// The engine of this call: on one thread first, then on three.
    fn engine(&self) -> CpuEngine {
        self.engine.with_threads(if self.again.replace(!self.again.get()) { 3 } else { 1 })
    }

    /// Adds to the hashes of `T`'s calls.
    fn record<T: Element>(&self, add: impl FnOnce(&mut Hashes)) {
        add(self.hashes.borrow_mut().entry(T::DTYPE.to_string()).or_default());
    }

    fn print(self, case: &str, engine: &str) {
        let hex = |hash: Sha256, bytes: usize| -> String {
            hash.finalize().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
        };
        for (dtype, Hashes { operands, results }) in self.hashes.into_inner() {
            println!("{case} {dtype} {engine} operands {} results {}", hex(operands, 8), hex(results, 32));
        }
    }
}

/// The elements of a tensor in the order of its dimensions, and nothing that lies between them.
fn hash<T: Element>(hash: &mut Sha256, x: &TensorRef<'_, T>, nan: Nan) {
    let [a_end, b_end, c_end, dim] = x.shape;
    for a in 0..a_end {
        for b in 0..b_end {
            for c in 0..c_end {
                if dim > 0 {
                    hash_row(hash, &x.data[x.row_offset(a, b, c)..][..dim], nan);
                }
            }
        }
    }
}

/// What of a NaN counts. Nobody promises its other bits: which operand of an instruction comes first is the
/// compiler's choice.
#[derive(Clone, Copy, PartialEq)]
enum Nan {
    /// That it is one.
    Itself,
    /// Its sign, too, which says what is dropped.
    Signed,
}

fn hash_row<T: Element>(hash: &mut Sha256, row: &[T], nan: Nan) {
    if !row.iter().any(|x| x.to_f32().is_nan()) {
        return hash.update(bytemuck::cast_slice::<T, u8>(row));
    }
    for x in row {
        if x.to_f32().is_nan() {
            hash.update(if nan == Nan::Signed && x.to_f32().is_sign_negative() { "-NaN" } else { "NaN" });
        } else {
            hash.update(bytemuck::bytes_of(x));
        }
    }
}

impl Implementation for Recorder<'_> {
    fn name(&self) -> String {
        format!("{:?}", self.engine)
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        let engine = self.engine();
        self.pool.install(|| engine.forward(problem, inputs, outputs))?;
        self.record::<T>(|Hashes { operands, results }| {
            [inputs.q, inputs.k, inputs.v].iter().for_each(|x| hash(operands, x, Nan::Itself));
            hash(results, &outputs.out.as_ref(), Nan::Itself);
            hash_row(results, outputs.lse, Nan::Itself);
            outputs.probs.iter().for_each(|x| hash(results, &x.as_ref(), Nan::Signed));
        });
        Ok(())
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        let engine = self.engine();
        self.pool.install(|| engine.backward(problem, inputs, gradients))?;
        let Inputs { q, k, v, .. } = inputs.inputs;
        self.record::<T>(|Hashes { operands, results }| {
            [q, k, v, inputs.out, inputs.dout].iter().for_each(|x| hash(operands, x, Nan::Itself));
            hash_row(operands, inputs.lse, Nan::Itself);
            hash_row(operands, inputs.dlse.unwrap_or_default(), Nan::Itself);
            for x in [&gradients.dq, &gradients.dk, &gradients.dv] {
                hash(results, &x.as_ref(), Nan::Itself);
            }
            match &gradients.dbias {
                Some(BiasMut::F32(x)) => hash(results, &x.as_ref(), Nan::Itself),
                Some(BiasMut::F16(x)) => hash(results, &x.as_ref(), Nan::Itself),
                Some(BiasMut::Bf16(x)) => hash(results, &x.as_ref(), Nan::Itself),
                None => {}
            }
            hash_row(results, gradients.dsinks.as_deref().unwrap_or_default(), Nan::Itself);
        });
        Ok(())
    }
}

/// What a case does with an engine.
type Check = Box<dyn Fn(&Recorder<'_>)>;

/// The suite's cases, and its other checks, by name.
fn checks() -> Vec<(String, Check)> {
    let case = |name: &&'static str| -> (String, Check) {
        let name = *name;
        (name.to_string(), Box::new(move |recorder| suite::check(name, recorder)))
    };
    let mut checks: Vec<(String, Check)> = suite::NAMES.iter().map(case).collect();
    for by in [LargeBy::Scale, LargeBy::Operands, LargeBy::OneQuery] {
        checks.push((
            format!("binades_by_{by:?}"),
            Box::new(move |recorder| suite::check_binades(by, recorder)),
        ));
    }
    checks.push((
        "backward_drops".to_string(),
        Box::new(|recorder| {
            suite::check_backward_drops::<f32, _>(recorder);
            suite::check_backward_drops::<f16, _>(recorder);
            suite::check_backward_drops::<bf16, _>(recorder);
        }),
    ));
    checks
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build()?;
    let mut engines = vec![("two_passes".to_string(), CpuEngine::new().with_partial_bytes(0))];
    for isa in Isa::available() {
        engines.push((isa.to_string(), CpuEngine::new().with_isa(isa)?));
    }
    for (name, check) in checks() {
        if words.is_empty() || words.iter().any(|word| name.contains(word)) {
            for (engine_name, engine) in &engines {
                let recorder = Recorder::new(*engine, &pool);
                check(&recorder);
                recorder.print(&name, engine_name);
            }
        }
    }
    Ok(())
}
