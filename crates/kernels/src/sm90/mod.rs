//! Kernels for Hopper alone: wgmma, the copy engine, warpgroups with roles.

mod flags;
pub(crate) mod forward;
mod load;
mod multiply;
mod out;
mod pipeline;
mod schedule;
mod softmax;
mod turns;

pub(crate) use schedule::ScheduleArgs;
