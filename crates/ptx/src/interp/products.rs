//! wgmma's products under way in a warp: which registers and which shared memory they hold.
use super::fault::{At, Fault, Rule};
use super::warp::{ALL, LANES, Lanes, Warp};
use crate::ops::wgmma::in_flight;
use crate::types::Reg;
use std::collections::VecDeque;
use std::panic::Location;

/// Products that are waited for together.
#[derive(Debug, Default)]
struct Group {
    results: Vec<u32>,
    sources: Vec<u32>,
    /// Offsets of 16-byte pieces of shared memory that are read.
    operands: Vec<u32>,
    at: Option<&'static Location<'static>>,
}

/// How products under way use a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Held {
    #[default]
    No,
    /// As an operand: it must not be written.
    Source,
    /// As a result: it must not be touched.
    Result,
}

/// All of a warp's.
#[derive(Debug, Default)]
pub(super) struct Products {
    groups: VecDeque<Group>,
    open: Group,
}

impl Products {
    fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain([&self.open])
    }

    pub(super) fn are_under_way(&self) -> bool {
        self.all().any(|group| !group.results.is_empty())
    }

    /// The product that holds a register.
    pub(super) fn holder(&self, reg: u32) -> String {
        let holds = |group: &&Group| group.results.contains(&reg) || group.sources.contains(&reg);
        self.all().find(holds).and_then(|group| group.at).map_or_else(String::new, |at| At(at).to_string())
    }
}

impl Warp {
    /// Registers that a product is about to use were not written since the last `wgmma.fence`.
    pub(crate) fn check_fenced_registers<'r>(
        &self,
        registers: impl IntoIterator<Item = &'r Reg>,
    ) -> Result<(), Fault> {
        let unfenced = registers.into_iter().find(|reg| !self.r32.is_fenced(reg.index));
        unfenced.map_or(Ok(()), |reg| {
            let text =
                format!("register {reg} was written, and is used by a product with no wgmma.fence between");
            Err(Fault::new(Rule::MissingFence, text))
        })
    }

    pub(crate) fn fence_registers(&mut self) {
        self.r32.fence();
    }

    /// Takes hold of a product's registers.
    pub(crate) fn begin_product(&mut self, results: &[Reg], sources: &[Reg], at: &'static Location<'static>) {
        let open = &mut self.products.open;
        open.at = Some(at);
        open.results.extend(results.iter().map(|reg| reg.index));
        open.sources.extend(sources.iter().map(|reg| reg.index));
        results.iter().for_each(|reg| self.r32.hold(reg.index, Held::Result));
        sources.iter().for_each(|reg| self.r32.hold(reg.index, Held::Source));
    }

    pub(crate) fn hold_operand(&mut self, offset: u32) {
        self.products.open.operands.push(offset);
    }

    /// What a result holds so far.
    pub(crate) fn product_value(&self, reg: Reg) -> Result<&Lanes<u32>, Fault> {
        self.r32.peek(reg, ALL)
    }

    pub(crate) fn set_product(&mut self, reg: Reg, values: [u32; LANES]) {
        self.r32.poke(reg, values);
    }

    pub(crate) fn commit_products(&mut self) {
        let group = std::mem::take(&mut self.products.open);
        self.products.groups.push_back(group);
    }

    /// All groups but the newest are done: the shared memory that they read, and that which others still read.
    pub(crate) fn end_products(&mut self, newest: usize) -> (Vec<u32>, Vec<u32>) {
        let done = self.products.groups.len().saturating_sub(newest);
        let ended: Vec<Group> = self.products.groups.drain(..done).collect();
        for reg in ended.iter().flat_map(|group| group.results.iter().chain(&group.sources)) {
            self.r32.hold(*reg, Held::No);
        }
        let (mut results, mut sources, mut operands) = (vec![], vec![], vec![]);
        for group in self.products.all() {
            results.extend_from_slice(&group.results);
            sources.extend_from_slice(&group.sources);
            operands.extend_from_slice(&group.operands);
        }
        results.into_iter().for_each(|reg| self.r32.hold(reg, Held::Result));
        sources.into_iter().for_each(|reg| self.r32.hold(reg, Held::Source));
        (ended.into_iter().flat_map(|group| group.operands).collect(), operands)
    }

    /// The last instruction wrote no register that a product holds.
    pub(crate) fn check_clobbered(&mut self) -> Result<(), Fault> {
        let clobbered = self.r32.take_clobbered();
        clobbered.map_or(Ok(()), |reg| Err(in_flight(reg, "written", self.products.holder(reg))))
    }
}
