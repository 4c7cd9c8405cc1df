//! Wrong numbers to seed in kernels, for tests of the suites that compare them with the truth: an operation confused with
//! another one, an operand forgotten, two turned round.
//!
//! An author makes such a slip in a line of Rust. So it is made in every instruction that came from there, however often
//! loops repeated it.
use crate::instruction::Line;
use crate::kernel::Kernel;
use crate::mutation::Mistake;
use std::collections::BTreeSet;
use std::fmt;

/// File, line and column.
type Place = (&'static str, u32, u32);

/// A wrong operation at one place of the Rust source.
///
/// The same in each kernel that the place is built into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slip {
    at: Place,
    /// The instruction, without its operands.
    op: String,
    /// What is wrong with it.
    what: &'static str,
}

impl fmt::Display for Slip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slip { at: (file, line, column), op, what } = self;
        write!(f, "{op} {what} ({file}:{line}:{column})")
    }
}

impl Kernel {
    /// Every slip in what comes from a Rust file whose path ends like this.
    ///
    /// ```
    /// use signflash_ptx::{Builder, LaunchBounds, F32};
    /// let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
    /// let kernel = Builder::build("line", bounds, |cta| {
    ///     let [a, b] = ["a", "b"].map(|name| cta.param_f32(name));
    ///     let _ = a * b;
    /// });
    /// let slips: Vec<String> = kernel.slips("").iter().map(|slip| slip.to_string()).collect();
    /// assert_eq!(slips.len(), 2);
    /// assert!(slips[0].starts_with("mul.rn.f32 less its first operand (") );
    /// ```
    pub fn slips(&self, file: &str) -> BTreeSet<Slip> {
        self.slips_where(|at| at.0.ends_with(file)).map(|(slip, ..)| slip).collect()
    }

    /// The kernel with a slip, if it has the slip's place.
    pub fn slipped(mut self, slip: &Slip) -> Kernel {
        let at_place = self.slips_where(|at| at == slip.at).filter(|(other, ..)| other == slip);
        let instead: Vec<(usize, Mistake)> = at_place.map(|(_, index, mistake)| (index, mistake)).collect();
        for (index, mistake) in instead {
            self.lines[index].instruction = mistake.instead;
        }
        self
    }

    /// Those of some places, each with the index of its instruction.
    fn slips_where(&self, is_wanted: impl Fn(Place) -> bool) -> impl Iterator<Item = (Slip, usize, Mistake)> {
        let place = |line: &Line| (line.at.file(), line.at.line(), line.at.column());
        let lines = self.lines().iter().enumerate().map(move |(index, line)| (index, place(line), line));
        lines.filter(move |(_, at, _)| is_wanted(*at)).flat_map(move |(index, at, line)| {
            line.instruction.slips().into_iter().map(move |mistake| {
                let op = self.line_text(index).split_whitespace().take(1).collect();
                (Slip { at, op, what: mistake.what }, index, mistake)
            })
        })
    }
}
