//! Probes: one small kernel for each instruction, which everything that is claimed of the instruction is tested with.
//!
//! A probe reads words from `input`, uses one instruction (and what it takes to feed it) and writes words to `output`.
//! The same probes are printed, assembled by ptxas, interpreted and compared with host code that shares nothing with
//! the interpreter, and run on a GPU and compared with the interpreter.
//!
//! ```
//! let probes = signflash_ptx::probe::all();
//! let add = probes.iter().find(|p| p.name == "add.rn.f32").unwrap();
//! let input = add.input(7);
//! let output = add.interpret(&input, 1)?;
//! add.compare(&add.reference(&input).unwrap(), &output).unwrap();
//! # Ok::<(), Box<signflash_ptx::Trap>>(())
//! ```
mod alu;
mod control;
mod copy;
mod hopper;
mod host;
mod matrix;
mod memory;
mod tensor;
mod wgmma;
mod words;

use crate::build::{Builder, Cta, GlobalAddr, LaunchBounds, Tensor};
use crate::interp::{Global, Launch, Trap};
use crate::kernel::{Arg, Kernel};
use crate::tensor_map::TensorMap;
use std::fmt;
pub use words::Words;

/// What host code says that a probe writes.
type Reference = Box<dyn Fn(&[u32]) -> Vec<u32> + Send + Sync>;

/// One instruction in a kernel of its own. The kernel's parameters are pointers to the input and to the output, and
/// perhaps a tensor: [`args`](Probe::args).
pub struct Probe {
    /// The instruction and what is special here.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: u32,
    /// Words of 32 bits in the input.
    pub input_words: usize,
    /// Words of 32 bits in the output, which starts as zeros.
    pub output_words: usize,
    /// What kind of input.
    pub words: Words,
    /// How far a GPU may be from the interpreter.
    pub tolerance: Tolerance,
    /// The input and the output once more, as tensors, their addresses relative to the buffers.
    tensors: Vec<(Buffer, TensorMap)>,
    reference: Option<Reference>,
}

/// One of a probe's two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    Input,
    Output,
}

/// How far two outputs may be apart: each word within one of the two limits, as floats. Zero is bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Units in the last place.
    pub ulps: u32,
    /// The difference of the values.
    pub absolute: f32,
    /// One NaN is as good as another.
    pub any_nan: bool,
}

impl Tolerance {
    /// The same bits.
    pub const EXACT: Tolerance = Tolerance { ulps: 0, absolute: 0.0, any_nan: false };

    /// Whether `got` will do where `expected` was computed.
    ///
    /// ```
    /// use signflash_ptx::probe::Tolerance;
    /// let two_ulps = Tolerance { ulps: 2, ..Tolerance::EXACT };
    /// assert!(two_ulps.allows(1.0f32.to_bits(), 1.0f32.to_bits() + 2));
    /// assert!(!two_ulps.allows(1.0f32.to_bits(), 1.0f32.to_bits() + 3));
    /// assert!(!Tolerance::EXACT.allows(0.0f32.to_bits(), (-0.0f32).to_bits()));
    /// ```
    pub fn allows(self, expected: u32, got: u32) -> bool {
        if expected == got {
            return true;
        }
        let (e, g) = (f32::from_bits(expected), f32::from_bits(got));
        if e.is_nan() || g.is_nan() {
            return self.any_nan && e.is_nan() && g.is_nan();
        }
        // Floats of one sign are ordered as their bits are.
        let same_sign = (expected ^ got) >> 31 == 0;
        same_sign && expected.abs_diff(got) <= self.ulps
            || (e - g).abs() <= self.absolute && self.absolute > 0.0
    }
}

impl Probe {
    /// The input that belongs to a seed: random words, edge cases among them.
    pub fn input(&self, seed: u64) -> Vec<u32> {
        self.words.generate(self.input_words, seed)
    }

    /// Runs it on the CPU.
    ///
    /// # Errors
    /// The interpreter's; also if a word of the output was never written.
    pub fn interpret(&self, input: &[u32], schedule: u64) -> Result<Vec<u32>, Box<Trap>> {
        self.interpret_kernel(&self.kernel, input, schedule)
    }

    /// The same with a changed kernel: see [`Kernel::mutations`].
    ///
    /// # Errors
    /// As [`interpret`](Self::interpret).
    pub fn interpret_kernel(
        &self,
        kernel: &Kernel,
        input: &[u32],
        schedule: u64,
    ) -> Result<Vec<u32>, Box<Trap>> {
        let bytes: Vec<u8> = input.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut memory = Global::default();
        let input = memory.upload("input", &bytes);
        let output = memory.upload("output", &vec![0; 4 * self.output_words]);
        let args = self.args(input.0, output.0);
        kernel.interpret(&Launch { grid: self.grid, args: &args, seed: schedule }, &mut memory)?;
        let words = memory.bytes(output).chunks_exact(4);
        Ok(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The kernel's arguments, for buffers at these addresses.
    pub fn args(&self, input: u64, output: u64) -> Vec<Arg> {
        let at = |(buffer, map): &(Buffer, TensorMap)| {
            let start = if *buffer == Buffer::Input { input } else { output };
            Arg::Tensor(TensorMap { base: start + map.base, ..*map })
        };
        [Arg::U64(input), Arg::U64(output)].into_iter().chain(self.tensors.iter().map(at)).collect()
    }

    /// What the output must be, by host code that has nothing in common with the interpreter.
    pub fn reference(&self, input: &[u32]) -> Option<Vec<u32>> {
        self.reference.as_ref().map(|reference| reference(input))
    }

    /// Whether `got` is `expected`, as far as [`tolerance`](Self::tolerance) asks.
    ///
    /// # Errors
    /// The first word that differs, and how many do.
    pub fn compare(&self, expected: &[u32], got: &[u32]) -> Result<(), String> {
        assert_eq!(expected.len(), got.len(), "{}: words of output", self.name);
        let differs = |i: &usize| !self.tolerance.allows(expected[*i], got[*i]);
        let wrong: Vec<usize> = (0..expected.len()).filter(differs).collect();
        let Some(&first) = wrong.first() else { return Ok(()) };
        let (e, g) = (expected[first], got[first]);
        let (ef, gf) = (f32::from_bits(e), f32::from_bits(g));
        Err(format!(
            "{}: {} of {} words differ; word {first} is {g:#010x} ({gf:e}), expected {e:#010x} ({ef:e})",
            self.name,
            wrong.len(),
            expected.len()
        ))
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them: every row of [`TABLE`](crate::ops::alu::TABLE), and every other instruction.
pub fn all() -> Vec<Probe> {
    let mut probes = alu::probes();
    for more in [memory::probes(), control::probes(), copy::probes(), matrix::probes()] {
        probes.extend(more);
    }
    for more in [hopper::probes(), tensor::probes(), wgmma::probes()] {
        probes.extend(more);
    }
    probes
}

/// The one of this name.
pub fn named(name: &str) -> Option<Probe> {
    all().into_iter().find(|probe| probe.name == name)
}

/// Size and data of a probe, before its kernel.
struct Plan {
    name: String,
    threads: u32,
    grid: u32,
    input_words: usize,
    output_words: usize,
    words: Words,
    tolerance: Tolerance,
    tensors: Vec<(Buffer, TensorMap)>,
}

impl Plan {
    /// `threads` threads in one block that read and write a word each.
    fn new(name: &str, threads: u32) -> Plan {
        let words = threads as usize;
        Plan {
            name: name.to_owned(),
            threads,
            grid: 1,
            input_words: words,
            output_words: words,
            words: Words::Bits,
            tolerance: Tolerance::EXACT,
            tensors: Vec::new(),
        }
    }

    fn grid(self, grid: u32) -> Plan {
        Plan { grid, ..self }
    }

    fn words(self, words: Words) -> Plan {
        Plan { words, ..self }
    }

    fn sizes(self, input_words: usize, output_words: usize) -> Plan {
        Plan { input_words, output_words, ..self }
    }

    /// The input, or the output, as a tensor too; its address is relative to the buffer.
    fn tensor(mut self, buffer: Buffer, map: TensorMap) -> Plan {
        self.tensors.push((buffer, map));
        self
    }

    fn tolerance(self, tolerance: Tolerance) -> Plan {
        Plan { tolerance, ..self }
    }

    fn build(
        self,
        reference: impl Fn(&[u32]) -> Vec<u32> + Send + Sync + 'static,
        body: impl for<'k> FnOnce(Cta<'k>, Io<'k>),
    ) -> Probe {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let entry: String = format!("probe_{}", self.name).chars().map(plain).collect();
        let bounds = LaunchBounds { block_threads: self.threads, min_blocks_per_sm: 1 };
        let kernel = Builder::build(&entry, bounds, |cta| {
            let input = GlobalAddr::new(cta.param_u64("input"));
            let output = GlobalAddr::new(cta.param_u64("output"));
            let tensor = self.tensors.first().map(|_| cta.param_tensor("tensor"));
            assert!(self.tensors.len() <= 1, "one tensor is enough");
            body(cta, Io { input, output, tensor });
        });
        let Plan { name, grid, input_words, output_words, words, tolerance, tensors, .. } = self;
        let reference: Option<Reference> = Some(Box::new(reference));
        Probe { name, kernel, grid, input_words, output_words, words, tolerance, tensors, reference }
    }
}

/// A probe's two buffers.
#[derive(Clone, Copy)]
struct Io<'k> {
    input: GlobalAddr<'k>,
    output: GlobalAddr<'k>,
    /// One of them as a tensor, if the plan has one.
    tensor: Option<Tensor<'k>>,
}
