//! Kernels for Hopper alone: wgmma, the copy engine, warpgroups with roles.

pub(crate) mod backward;
pub(crate) mod dbias;
mod flags;
pub(crate) mod forward;
mod load;
mod multiply;
mod out;
mod pipeline;
pub(crate) mod probs;
pub(crate) mod results;
mod schedule;
mod softmax;
mod steps;
mod turns;

pub(crate) use schedule::ScheduleArgs;
