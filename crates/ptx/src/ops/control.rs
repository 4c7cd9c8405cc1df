//! Ways through the code. Lanes that part meet again at the end of the `if`: structured by construction.
use crate::instruction::{Flow, Instruction, Label, Printer};
use crate::interp::warp::Frame;
use crate::interp::{Fault, Machine};
use crate::types::{Pred, Src};

/// `if cond {`: lanes for which it is false go on at `other`.
#[derive(Debug)]
pub(crate) struct If {
    pub(crate) cond: Src,
    pub(crate) other: Label,
    /// The author says that all lanes agree; the interpreter holds them to it.
    pub(crate) uniform: bool,
}

impl Instruction for If {
    fn print(&self, ptx: &mut Printer) {
        let uni = if self.uniform { ".uni" } else { "" };
        ptx.line(format_args!("@!{} bra{uni} {}", self.cond.text::<Pred>(), self.other));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let cond = machine.read_pred(self.cond)?;
        if self.uniform {
            machine.uniform(&cond, "a condition that was called uniform")?;
        }
        let warp = &mut *machine.warp;
        let taken = warp.lanes().fold(0u32, |mask, lane| mask | u32::from(cond[lane]) << lane);
        warp.frames.push(Frame { before: warp.mask, other: warp.mask & !taken });
        warp.mask = taken;
        Ok(if taken == 0 { Flow::Goto(self.other) } else { Flow::Next })
    }
}

/// `} else`: lanes that were in the first part skip the second.
#[derive(Debug)]
pub(crate) struct SkipElse {
    pub(crate) end: Label,
}

impl Instruction for SkipElse {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("bra {}", self.end));
    }

    fn step(&self, _: &mut Machine<'_>) -> Result<Flow, Fault> {
        Ok(Flow::Next) // to the `Else` behind it, where the other lanes take over
    }
}

/// `{`: the other lanes' part.
#[derive(Debug)]
pub(crate) struct Else {
    pub(crate) end: Label,
}

impl Instruction for Else {
    fn print(&self, _: &mut Printer) {}

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.warp.mask = machine.warp.frames.last().expect("an `else` is inside its `if`").other;
        Ok(if machine.warp.mask == 0 { Flow::Goto(self.end) } else { Flow::Next })
    }
}

/// `}`: all lanes that came are here again.
#[derive(Debug)]
pub(crate) struct EndIf;

impl Instruction for EndIf {
    fn print(&self, _: &mut Printer) {}

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.warp.mask = machine.warp.frames.pop().expect("the end of an `if` follows its start").before;
        Ok(Flow::Next)
    }
}

/// Leaves a loop unless `cond`. Every lane must agree: loops are taken by whole warps.
#[derive(Debug)]
pub(crate) struct While {
    pub(crate) cond: Src,
    pub(crate) exit: Label,
}

impl Instruction for While {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("@!{} bra.uni {}", self.cond.text::<Pred>(), self.exit));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let cond = machine.read_pred(self.cond)?;
        let more = machine.uniform(&cond, "whether the loop goes on")?;
        Ok(if more { Flow::Next } else { Flow::Goto(self.exit) })
    }
}

/// Back to a loop's top.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) top: Label,
}

impl Instruction for Again {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("bra.uni {}", self.top));
    }

    fn step(&self, _: &mut Machine<'_>) -> Result<Flow, Fault> {
        Ok(Flow::Goto(self.top))
    }
}

/// The warp is done.
#[derive(Debug)]
pub(crate) struct Exit;

impl Instruction for Exit {
    fn print(&self, ptx: &mut Printer) {
        ptx.line("ret");
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("the end of a warp")?;
        Ok(Flow::Exit)
    }
}

/// What is left of an instruction that a test has removed.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Instruction for Nothing {
    fn print(&self, _: &mut Printer) {}

    fn step(&self, _: &mut Machine<'_>) -> Result<Flow, Fault> {
        Ok(Flow::Next)
    }
}
