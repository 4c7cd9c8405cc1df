//! Kernels for NVIDIA GPUs, written in Rust: built as typed instructions, printed as PTX for the driver to compile, and
//! interpreted on the CPU.
//!
//! This crate has never heard of attention. It holds
//! - the [`Builder`]: [`Cta`], [`Warp`] and [`Thread`] say who executes, [`Val`] and [`Var`] are registers with types,
//!   [`CopyRing`] and [`BulkRing`] own what is asynchronous;
//! - the instructions, each defined once with [what it prints and what it does](Instruction);
//! - the interpreter, which runs whole kernels under random schedules and reports what a GPU would do wrong in silence
//!   ([`Rule`]).
//!
//! No pass makes code faster: registers, scheduling and common subexpressions are ptxas's.
//!
//! ```
//! use signflash_ptx::{Arg, Builder, F32, Global, GlobalAddr, Launch, LaunchBounds};
//!
//! // y[i] = a * x[i] + y[i]
//! let kernel = Builder::build("axpy", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |cta| {
//!     let (n, a) = (cta.param_u32("n"), cta.param_f32("a"));
//!     let (x, y) = (GlobalAddr::new(cta.param_u64("x")), GlobalAddr::new(cta.param_u64("y")));
//!     let t = cta.threads();
//!     let i = cta.index() * 64 + t.index();
//!     t.when(i.lt(n), |t| {
//!         let at = i.widen() * 4u64;
//!         let ([xi], [yi]) = (t.load::<F32, 1>(x.plus(at)), t.load::<F32, 1>(y.plus(at)));
//!         t.store(y.plus(at), [xi.mul_add(a, yi)]);
//!     });
//! });
//! assert!(kernel.ptx().contains("fma.rn.f32"));
//!
//! let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
//! let mut memory = Global::default();
//! let (x, y) = (memory.upload("x", &bytes(&[1.0; 100])), memory.upload("y", &bytes(&[0.5; 100])));
//! let args = [Arg::U32(100), Arg::F32(2.0), Arg::U64(x.0), Arg::U64(y.0)];
//! kernel.interpret(&Launch { grid: 2, args: &args, seed: 1 }, &mut memory)?;
//! assert_eq!(memory.bytes(y), bytes(&[2.5; 100]));
//!
//! // One element too many is a report and not a wrong answer.
//! let args = [Arg::U32(101), args[1], args[2], args[3]];
//! let trap = kernel.interpret(&Launch { grid: 2, args: &args, seed: 1 }, &mut memory).unwrap_err();
//! assert_eq!(trap.fault.what, "global load of 4 bytes at x + 400, which has 400 bytes");
//! # Ok::<(), Box<signflash_ptx::Trap>>(())
//! ```
#![forbid(unsafe_code)]

mod build;
mod instruction;
mod interp;
mod kernel;
mod mutation;
pub mod ops;
pub mod probe;
mod ptxas;
pub mod rules;
mod slip;
mod target;
mod tensor_map;
mod types;

pub use build::{
    Acc, BoxStart, BoxTile, Builder, BulkRing, BulkRingConsumer, BulkRingProducer, Columns, CopyRing, Cta,
    Filling, FullSlot, FullStage, GlobalAddr, LaunchBounds, Mbarrier, Operand, Order, PendingCopy,
    PendingProduct, Product, Rows, SmemAddr, Tensor, TensorBox, Thread, TileLanes, TileLayout, TileThread,
    Val, Var, Warp, Warpgroup,
};
pub use instruction::{Flow, Instruction, Label, Printer};
pub use interp::{Fault, Global, Lanes, Launch, Machine, Pointer, Profile, Region, Rule, SharedUse, Trap};
pub use kernel::{Arg, Kernel, Param};
pub use mutation::{Mistake, Mutation};
pub use ptxas::{Ptxas, PtxasError, Report};
pub use slip::Slip;
pub use target::{Needs, Target};
pub use tensor_map::TensorMap;
pub use types::{B32, F32, Half, Pred, Reg, S32, Src, Ty, U32, U64, Width};
