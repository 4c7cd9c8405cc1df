//! The sixteen barriers by number of a block: `bar.sync` and `bar.arrive`.
use super::Machine;
use super::clock::Knowledge;
use super::fault::{Fault, Rule};
use super::warp::{ALL, LANES};
use crate::instruction::Flow;

/// One of them.
#[derive(Debug, Default)]
pub(super) struct Named {
    arrived: u32,
    /// How many threads those who have arrived expect.
    threads: u32,
    generation: u64,
    gathering: Knowledge,
    waiting: u32,
    /// What generations that are over have released, and how many warps have yet to notice.
    released: Vec<(u64, Knowledge, u32)>,
}

impl Machine<'_> {
    /// Arrives at a named barrier; parks until `threads` have.
    pub(crate) fn named_barrier(&mut self, id: u32, threads: u32, waits: bool) -> Result<Flow, Fault> {
        let here = || format!("barrier {id} of {threads} threads");
        let (named, warp) = (&mut self.block.named[id as usize], &mut *self.warp);
        if let Some(generation) = warp.waiting {
            let Some(over) = named.released.iter().position(|(released, ..)| *released == generation) else {
                return Ok(Flow::Park(here()));
            };
            warp.waiting = None;
            let (_, knowledge, waiting) = &mut named.released[over];
            warp.learn(knowledge);
            *waiting -= 1;
            if *waiting == 0 {
                named.released.swap_remove(over);
            }
            return Ok(Flow::Next);
        }
        if named.arrived > 0 && named.threads != threads {
            let text =
                format!("barrier {id} is for {threads} threads here, but for {} elsewhere", named.threads);
            return Err(Fault::new(Rule::Barrier, text));
        }
        // What any lane did or knows is made known; lanes that wait meet here themselves.
        if waits {
            warp.gather();
        }
        named.gathering.join(&warp.published(ALL));
        if waits {
            warp.meet();
        } else {
            warp.tick();
        }
        named.threads = threads;
        named.arrived += LANES as u32;
        if named.arrived > threads {
            let text = format!("{} threads arrived at barrier {id}, which is for {threads}", named.arrived);
            return Err(Fault::new(Rule::Barrier, text));
        }
        if named.arrived < threads {
            if !waits {
                return Ok(Flow::Next);
            }
            named.waiting += 1;
            warp.waiting = Some(named.generation);
            return Ok(Flow::Park(here()));
        }
        let knowledge = std::mem::take(&mut named.gathering);
        if waits {
            warp.learn(&knowledge);
        }
        if named.waiting > 0 {
            named.released.push((named.generation, knowledge, std::mem::take(&mut named.waiting)));
        }
        named.arrived = 0;
        named.generation += 1;
        Ok(Flow::Next)
    }
}
