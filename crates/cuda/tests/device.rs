//! Everything that needs a GPU. Without one these tests say that they were skipped and pass; with
//! `SIGNFLASH_REQUIRE_GPU=1` they fail. The test program needs no source files where it runs.

#[path = "device/cache.rs"]
mod cache;
#[path = "device/gpu.rs"]
mod gpu;
#[path = "device/graph.rs"]
mod graph;
#[path = "device/launch.rs"]
mod launch;
#[path = "device/memory.rs"]
mod memory;
#[path = "device/open.rs"]
mod open;
#[path = "device/order.rs"]
mod order;
#[path = "device/support.rs"]
mod support;
