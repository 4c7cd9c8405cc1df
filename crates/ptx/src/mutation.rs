//! Defects to seed in kernels, for tests of the interpreter: what a hurried author would have forgotten or confused.
//!
//! The builder's rules make most of them impossible to write, so they are made afterwards, in kernels that are right.
use crate::instruction::Instruction;
use crate::interp::At;
use crate::kernel::Kernel;
use crate::ops::control::Nothing;
use std::fmt;

/// An instruction as a mistaken author would have written it.
#[derive(Debug)]
pub struct Mistake {
    /// What is wrong: `dropped`, `parity flipped`.
    pub what: &'static str,
    /// What stands there instead.
    pub instead: Box<dyn Instruction>,
}

impl Mistake {
    /// Forgotten.
    pub fn dropped() -> Mistake {
        Mistake { what: "dropped", instead: Box::new(Nothing) }
    }

    /// Another one of the same kind.
    pub fn new(what: &'static str, instead: impl Instruction + 'static) -> Mistake {
        Mistake { what, instead: Box::new(instead) }
    }
}

/// A [`Mistake`] at one place of a kernel.
#[derive(Debug)]
pub struct Mutation {
    index: usize,
    text: String,
    at: String,
    mistake: Mistake,
}

impl Mutation {
    /// The instruction that was right.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with it now.
    pub fn what(&self) -> &'static str {
        self.mistake.what
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (number {}, {})", self.text, self.mistake.what, self.index, self.at)
    }
}

impl Kernel {
    /// Every mistake that its instructions know of: waits, barriers and fences dropped, counts off by one, parities
    /// flipped. Apply one with [`mutate`](Self::mutate); a run of the interpreter should then end in a
    /// [`Trap`](crate::Trap), or the instruction was not needed.
    ///
    /// ```
    /// use signflash_ptx::{Builder, Global, Launch, Rule, LaunchBounds};
    /// let build = || Builder::build("exchange", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |cta| {
    ///     let (t, words) = (cta.threads(), cta.smem("words", 256, 4));
    ///     t.store(words.plus(t.index() * 4), [t.index()]);
    ///     cta.sync();
    ///     let _ = t.load::<signflash_ptx::U32, 1>(words.plus((t.index() ^ 32) * 4));
    /// });
    /// let mutations = build().mutations();
    /// assert_eq!(mutations[0].text(), "bar.sync 0, 64");
    /// for mutation in mutations {
    ///     let launch = Launch { grid: 1, args: &[], seed: 0 };
    ///     assert!(build().mutate(mutation).interpret(&launch, &mut Global::default()).is_err());
    /// }
    /// ```
    pub fn mutations(&self) -> Vec<Mutation> {
        let of_line = |index: usize| {
            let line = &self.lines()[index];
            let mutation = move |mistake| {
                let (text, at) = (self.line_text(index), At(line.at).to_string());
                Mutation { index, text, at, mistake }
            };
            line.instruction.mistakes().into_iter().map(mutation)
        };
        (0..self.lines().len()).flat_map(of_line).collect()
    }

    /// The kernel with the mistake. The mutation comes from the same kernel, built once more perhaps.
    pub fn mutate(mut self, mutation: Mutation) -> Kernel {
        self.lines[mutation.index].instruction = mutation.mistake.instead;
        self
    }

    /// The first line of an instruction that says what it is, without its semicolon.
    pub(crate) fn line_text(&self, index: usize) -> String {
        let mut printer = crate::instruction::Printer::default();
        self.lines()[index].instruction.print(&mut printer);
        let lines = printer.text.lines().map(|line| line.trim().trim_end_matches(';'));
        lines.filter(|line| line.len() > 1 && !line.starts_with(['.', '$'])).take(1).collect()
    }
}
