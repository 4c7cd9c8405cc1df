//! What the lanes of a warp agree on.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine};
use crate::mutation::Mistake;
use crate::ops::alu::{Apply, OR_P};
use crate::types::{Pred, Reg, Src};

/// `vote.sync.any`: whether it holds in some lane, the same answer in all.
#[derive(Debug)]
pub(crate) struct Any {
    pub(crate) dst: Reg,
    pub(crate) src: Src,
}

impl Instruction for Any {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("vote.sync.any.pred {}, {}, 0xFFFFFFFF", self.dst, self.src.text::<Pred>()));
    }

    fn slips(&self) -> Vec<Mistake> {
        vec![Mistake::new("forgotten", Apply { op: OR_P, dst: self.dst, src: [self.src; 3] })]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("vote")?;
        let any = machine.read_pred(self.src)?.contains(&true);
        machine.write_pred(self.dst, &[any; 32]);
        Ok(Flow::Next)
    }
}
