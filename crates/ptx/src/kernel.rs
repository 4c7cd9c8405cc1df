//! A finished kernel: printed for the driver, or run by the interpreter.
use crate::instruction::{Label, Line, Printer};
use crate::interp::{self, Fault, Global, Launch, Profile, Region, Rule, Trap};
use crate::ops::control::Nothing;
use crate::target::Needs;
use crate::tensor_map::TensorMap;
use std::fmt::Write;

/// A value for one kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A size, an index.
    U32(u32),
    /// A pointer, a stride, a seed.
    U64(u64),
    /// A scale.
    F32(f32),
    /// A tensor that bulk copies address by coordinates.
    Tensor(TensorMap),
}

impl Arg {
    /// As PTX calls its type.
    pub fn type_name(self) -> &'static str {
        match self {
            Arg::U32(_) => "u32",
            Arg::U64(_) => "u64",
            Arg::F32(_) => "f32",
            Arg::Tensor(_) => Param::TENSOR,
        }
    }

    pub(crate) fn bits(self) -> u64 {
        match self {
            Arg::U32(value) => value.into(),
            Arg::U64(value) => value,
            Arg::F32(value) => value.to_bits().into(),
            // A kernel sees its place in the list, and nothing of what it holds.
            Arg::Tensor(_) => unreachable!("a tensor's parameter is addressed, not loaded"),
        }
    }
}

/// A declared parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the Rust source and in the PTX.
    pub name: &'static str,
    /// As PTX calls its type: `u32`, `u64` or `f32`; or [`Param::TENSOR`].
    pub ty: &'static str,
}

impl Param {
    /// The type of a [`TensorMap`], which PTX takes for 128 bytes.
    pub const TENSOR: &'static str = "tensor";

    /// Bytes of its value.
    pub fn bytes(&self) -> usize {
        match self.ty {
            "u64" => 8,
            Param::TENSOR => 128,
            _ => 4,
        }
    }

    fn declaration(&self) -> String {
        match self.ty {
            Param::TENSOR => format!("\t.param .align 64 .b8 {}[128]", self.name),
            ty => format!("\t.param .{ty} {}", self.name),
        }
    }
}

/// Code, shared memory and parameters of one kernel, built by [`Builder`](crate::Builder).
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) block_threads: u32,
    pub(crate) min_blocks_per_sm: u32,
    pub(crate) params: Vec<Param>,
    pub(crate) regions: Vec<Region>,
    pub(crate) smem_bytes: u32,
    pub(crate) registers: [u32; 3],
    pub(crate) lines: Vec<Line>,
    pub(crate) labels: Vec<usize>,
}

impl Kernel {
    /// The PTX entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Threads a block, along x.
    pub fn block_threads(&self) -> u32 {
        self.block_threads
    }

    /// Dynamic shared memory a block.
    pub fn smem_bytes(&self) -> u32 {
        self.smem_bytes
    }

    /// What the shared memory holds, by name.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Its parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The least PTX version and GPU that run it.
    pub fn needs(&self) -> Needs {
        self.lines.iter().fold(Needs::SM80, |needs, line| needs.and(line.instruction.needs()))
    }

    /// Runs it on the CPU.
    ///
    /// # Errors
    /// The first [`Trap`]: the rule that the kernel broke, where and under which schedule.
    pub fn interpret(&self, launch: &Launch<'_>, global: &mut Global) -> Result<Profile, Box<Trap>> {
        interp::run(self, launch, global)
    }

    /// Its text, for ptxas or the driver. Every instruction carries the Rust line that made it.
    pub fn ptx(&self) -> String {
        let Needs { ptx: (major, minor), target } = self.needs();
        let mut out = Printer::default();
        let text = &mut out.text;
        let mut head = || -> std::fmt::Result {
            writeln!(
                text,
                "// signflash: {}\n.version {major}.{minor}\n.target {target}\n.address_size 64\n",
                self.name
            )?;
            if self.smem_bytes > 0 {
                writeln!(text, "// shared memory, {} bytes", self.smem_bytes)?;
                for Region { name, offset, bytes } in &self.regions {
                    writeln!(text, "//   {offset:>6} + {bytes:<6} {name}")?;
                }
                writeln!(text, ".extern .shared .align 1024 .b8 smem[];\n")?;
            }
            let params: Vec<String> = self.params.iter().map(Param::declaration).collect();
            writeln!(text, ".visible .entry {}(\n{}\n)", self.name, params.join(",\n"))?;
            writeln!(
                text,
                ".maxntid {}, 1, 1\n.minnctapersm {}",
                self.block_threads, self.min_blocks_per_sm
            )?;
            let [r32, r64, pred] = self.registers;
            writeln!(text, "{{\n\t.reg .b32 %r<{r32}>;\n\t.reg .b64 %rd<{r64}>;\n\t.reg .pred %p<{pred}>;")
        };
        head().expect("writing to a string");
        self.print_body(&mut out);
        out.text.push_str("\tret;\n}\n");
        let files = self.files();
        for (number, file) in files.iter().enumerate() {
            writeln!(out.text, ".file {} \"{file}\"", number + 1).expect("writing to a string");
        }
        out.text
    }

    fn files(&self) -> Vec<&'static str> {
        let mut files: Vec<&str> = self.lines.iter().map(|line| line.at.file()).collect();
        files.dedup(); // neighbours first: there are few others
        files.sort_unstable();
        files.dedup();
        files
    }

    fn print_body(&self, out: &mut Printer) {
        let files = self.files();
        let mut labels: Vec<(usize, usize)> =
            self.labels.iter().copied().enumerate().map(|(l, at)| (at, l)).collect();
        labels.sort_unstable();
        let mut labels = labels.into_iter().peekable();
        let (mut last, mut number) = (None, 0);
        for (index, line) in self.lines.iter().enumerate() {
            while let Some((_, label)) = labels.next_if(|(at, _)| *at == index) {
                out.label(Label(label as u32));
            }
            let (file, row) = (line.at.file(), line.at.line());
            if last != Some((file, row)) {
                if last.is_none_or(|(last, _)| last != file) {
                    number = files.binary_search(&file).expect("collected above") + 1;
                }
                last = Some((file, row));
                writeln!(out.text, "\t.loc {number} {row} {}", line.at.column())
                    .expect("writing to a string");
            }
            line.instruction.print(out);
        }
        for (_, label) in labels {
            out.label(Label(label as u32));
        }
    }

    /// The numbers of the instructions whose text contains `text`, for [`without`](Self::without).
    pub fn lines_matching(&self, text: &str) -> Vec<usize> {
        let matches = |line: &Line| {
            let mut printer = Printer::default();
            line.instruction.print(&mut printer);
            printer.text.contains(text)
        };
        (0..self.lines.len()).filter(|&index| matches(&self.lines[index])).collect()
    }

    /// The same kernel less one instruction: for tests of the interpreter, which must notice.
    ///
    /// # Panics
    /// If there is no instruction of that number.
    pub fn without(mut self, index: usize) -> Kernel {
        self.lines[index].instruction = Box::new(Nothing);
        self
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub(crate) fn registers(&self) -> [u32; 3] {
        self.registers
    }

    /// The index of the instruction that a label stands before.
    pub(crate) fn place(&self, label: Label) -> usize {
        self.labels[label.0 as usize]
    }

    pub(crate) fn check_args(&self, args: &[Arg]) -> Result<(), Fault> {
        let wrong = |what: String| Err(Fault::new(Rule::Launch, what));
        if args.len() != self.params.len() {
            return wrong(format!("{} arguments for {} parameters", args.len(), self.params.len()));
        }
        match args.iter().zip(&self.params).find(|(arg, param)| arg.type_name() != param.ty) {
            Some((arg, param)) => {
                wrong(format!("parameter {} is a {}, not a {}", param.name, param.ty, arg.type_name()))
            }
            None => Ok(()),
        }
    }
}
