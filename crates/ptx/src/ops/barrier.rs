//! Where threads wait for each other.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::types::{Src, U32};

/// `bar.sync` and `bar.arrive`: one of sixteen barriers by number.
#[derive(Clone, Debug)]
pub(crate) struct NamedBarrier {
    pub(crate) id: Src,
    pub(crate) threads: u32,
    /// `false`: arrives and goes on.
    pub(crate) waits: bool,
}

impl Instruction for NamedBarrier {
    fn print(&self, ptx: &mut Printer) {
        let verb = if self.waits { "sync" } else { "arrive" };
        ptx.line(format_args!("bar.{verb} {}, {}", self.id.text::<U32>(), self.threads));
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let threads = self.threads + 32;
        vec![Mistake::dropped(), Mistake::new("of a warp more", NamedBarrier { threads, ..self.clone() })]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("a barrier")?;
        let id = machine.uniform(&machine.read32(self.id)?, "which barrier they come to")?;
        if id >= 16 {
            return Err(Fault::new(Rule::Barrier, format!("barrier {id}; there are 16, from 0")));
        }
        machine.named_barrier(id, self.threads, self.waits)
    }
}

/// `bar.warp.sync`: the lanes of one warp see each other's stores.
#[derive(Debug)]
pub(crate) struct WarpBarrier;

impl Instruction for WarpBarrier {
    fn print(&self, ptx: &mut Printer) {
        ptx.line("bar.warp.sync 0xFFFFFFFF");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("bar.warp.sync")?;
        machine.warp.meet();
        Ok(Flow::Next)
    }
}

/// `fence.proxy.async`: this thread's ordinary stores to shared memory are visible to asynchronous copies and products
/// that are issued by whoever learns of it.
#[derive(Debug)]
pub(crate) struct ProxyFence;

impl Instruction for ProxyFence {
    fn needs(&self) -> crate::Needs {
        crate::Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        ptx.line("fence.proxy.async.shared::cta");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.whole_warp("fence.proxy.async")?;
        let warp = &mut *machine.warp;
        let (index, now) = (warp.index, warp.now());
        warp.known.fenced.learn(index, now);
        warp.tick();
        Ok(Flow::Next)
    }
}
