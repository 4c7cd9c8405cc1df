//! An instruction: what it prints and what it does, in one place.
use crate::interp::{Fault, Machine};
use crate::mutation::Mistake;
use crate::target::Needs;
use crate::types::{Reg, Src, Ty, Width};
use std::fmt::{self, Write};
use std::panic::Location;

/// One PTX instruction. Both halves of its definition live in one file: a family without either does not compile.
///
/// A trait and not an enum: there will be fifty of them, and a new one touches one file.
pub trait Instruction: fmt::Debug + Send + Sync {
    /// The least PTX version and GPU.
    fn needs(&self) -> Needs {
        Needs::SM80
    }

    /// Writes the text that ptxas reads, one line or several.
    fn print(&self, ptx: &mut Printer);

    /// How it could have been written by mistake, for tests of the interpreter.
    fn mistakes(&self) -> Vec<Mistake> {
        Vec::new()
    }

    /// The same of what it computes.
    fn slips(&self) -> Vec<Mistake> {
        Vec::new()
    }

    /// Does it for the active lanes of one warp.
    ///
    /// # Errors
    /// The [`Fault`] that a correct kernel never commits.
    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault>;
}

/// What a warp does after an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Goes on.
    Next,
    /// Goes on elsewhere.
    Goto(Label),
    /// Waits, and then tries the same instruction again. The words say for what, in a deadlock's report.
    Park(String),
    /// The same, for what another block does.
    Await(String),
    /// Is done.
    Exit,
}

/// A place in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label(pub u32);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$L{}", self.0)
    }
}

/// An instruction and the Rust line that made it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) instruction: Box<dyn Instruction>,
    pub(crate) at: &'static Location<'static>,
}

/// Collects a kernel's text.
#[derive(Debug, Default)]
pub struct Printer {
    pub(crate) text: String,
}

impl Printer {
    /// One line of PTX, without its semicolon.
    pub fn line(&mut self, text: impl fmt::Display) {
        writeln!(self.text, "\t{text};").expect("writing to a string");
    }

    /// A label.
    pub fn label(&mut self, label: impl fmt::Display) {
        writeln!(self.text, "{label}:").expect("writing to a string");
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = match self.width {
            Width::W32 => "r",
            Width::W64 => "rd",
            Width::Pred => "p",
        };
        write!(f, "%{file}{}", self.index)
    }
}

impl Src {
    /// As an operand of type `T`.
    pub fn text<T: Ty>(self) -> String {
        match self {
            Src::Reg(reg) => reg.to_string(),
            Src::Imm(bits) => T::literal(bits),
        }
    }
}

/// `{a, b, c}`.
pub(crate) fn braced<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{{}}}", items.join(", "))
}
