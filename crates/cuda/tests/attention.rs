//! Attention on a GPU, beyond the suite: captured graphs, more than 2^31 scores, the time of the first call, of the
//! host and of probs, and the same bits again.

#[path = "device/gpu.rs"]
mod gpu;
#[path = "attention/large.rs"]
mod large;
#[path = "attention/repeats.rs"]
mod repeats;
#[path = "attention/replay.rs"]
mod replay;
#[path = "attention/resident.rs"]
mod resident;
#[path = "attention/start.rs"]
mod start;
#[path = "attention/tensors.rs"]
mod tensors;
