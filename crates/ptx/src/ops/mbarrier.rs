//! Barriers in shared memory that count arrivals and bytes.
use crate::instruction::{Flow, Instruction, Printer};
use crate::interp::{Fault, Machine, Rule};
use crate::mutation::Mistake;
use crate::ops::memory::Address;
use crate::target::Needs;
use crate::types::{Src, U32};

/// `mbarrier.init`, by one lane.
#[derive(Clone, Debug)]
pub(crate) struct MbarrierInit {
    pub(crate) barrier: Address,
    pub(crate) arrivals: u32,
}

impl Instruction for MbarrierInit {
    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("mbarrier.init.shared.b64 {}, {}", self.barrier.text(), self.arrivals));
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let arrivals = self.arrivals;
        let more = MbarrierInit { arrivals: arrivals + 1, ..self.clone() };
        let fewer = MbarrierInit { arrivals: arrivals - 1, ..self.clone() };
        vec![
            Mistake::dropped(),
            Mistake::new("of an arrival more", more),
            Mistake::new("of an arrival less", fewer),
        ]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let addresses = self.barrier.read_shared(machine)?;
        for lane in machine.warp.lanes() {
            machine.mbarrier_init(lane, addresses[lane], self.arrivals)?;
        }
        Ok(Flow::Next)
    }
}

/// `fence.mbarrier_init`: copies that are issued by whoever learns of it may complete on the barriers that this thread
/// has initialised.
#[derive(Debug)]
pub(crate) struct MbarrierInitFence;

impl Instruction for MbarrierInitFence {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        ptx.line("fence.mbarrier_init.release.cluster");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        vec![Mistake::dropped()]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.block.mbarriers.fence_init(machine.warp.index);
        Ok(Flow::Next)
    }
}

/// `mbarrier.arrive`, an arrival for each active lane; with `bytes`, `mbarrier.arrive.expect_tx`.
#[derive(Clone, Debug)]
pub(crate) struct MbarrierArrive {
    pub(crate) barrier: Address,
    pub(crate) bytes: u32,
}

impl Instruction for MbarrierArrive {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let at = self.barrier.text();
        match self.bytes {
            0 => ptx.line(format_args!("mbarrier.arrive.shared::cta.b64 _, {at}")),
            bytes => ptx.line(format_args!("mbarrier.arrive.expect_tx.shared::cta.b64 _, {at}, {bytes}")),
        }
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = vec![Mistake::dropped()];
        if self.bytes > 0 {
            let bytes = self.bytes + 16;
            mistakes.push(Mistake::new("of 16 bytes more", MbarrierArrive { bytes, ..self.clone() }));
        }
        mistakes
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let addresses = self.barrier.read_shared(machine)?;
        // Lanes that come to one barrier come together.
        let mut left = machine.warp.mask;
        while left != 0 {
            let address = addresses[left.trailing_zeros() as usize];
            let same = machine.warp.lanes().filter(|&lane| addresses[lane] == address);
            let mask = same.fold(0u32, |mask, lane| mask | 1 << lane);
            machine.mbarrier_arrive(address, mask, self.bytes.into())?;
            left &= !mask;
        }
        Ok(Flow::Next)
    }
}

/// `mbarrier.try_wait.parity` until the phase of that parity is over.
#[derive(Clone, Debug)]
pub(crate) struct MbarrierWait {
    pub(crate) barrier: Address,
    pub(crate) parity: Src,
    /// By mistake, for the other parity.
    pub(crate) flipped: bool,
    /// Makes the loop's label unique.
    pub(crate) number: u32,
}

impl Instruction for MbarrierWait {
    fn needs(&self) -> Needs {
        Needs::sm90(7, 8)
    }

    fn print(&self, ptx: &mut Printer) {
        let (at, parity, n) = (self.barrier.text(), self.parity.text::<U32>(), self.number);
        ptx.text.push_str("\t{\n\t.reg .pred %passed;\n");
        let parity = if self.flipped { "%flipped".to_owned() } else { parity };
        if self.flipped {
            ptx.text.push_str("\t.reg .b32 %flipped;\n");
            ptx.line(format_args!("xor.b32 %flipped, {}, 1", self.parity.text::<U32>()));
        }
        ptx.label(format_args!("$wait{n}"));
        ptx.line(format_args!("mbarrier.try_wait.parity.shared::cta.b64 %passed, {at}, {parity}"));
        ptx.line(format_args!("@!%passed bra $wait{n}"));
        ptx.text.push_str("\t}\n");
    }

    fn mistakes(&self) -> Vec<Mistake> {
        let flipped = MbarrierWait { flipped: !self.flipped, ..self.clone() };
        vec![Mistake::dropped(), Mistake::new("with the parity flipped", flipped)]
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (addresses, parity) = (self.barrier.read_shared(machine)?, machine.read32(self.parity)?);
        let address = machine.uniform(&addresses, "which mbarrier they wait for")?;
        let parity = machine.uniform(&parity, "the parity they wait for")?;
        if parity > 1 {
            return Err(Fault::new(Rule::Barrier, format!("a parity is 0 or 1, not {parity}")));
        }
        let parity = parity ^ u32::from(self.flipped);
        match machine.mbarrier_passed(address, parity)? {
            true => Ok(Flow::Next),
            false => Ok(Flow::Park(format!("{} with parity {parity}", machine.mbarrier_name(address)))),
        }
    }
}
