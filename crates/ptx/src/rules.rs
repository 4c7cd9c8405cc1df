//! What cannot be written: kernels with these mistakes do not compile. Each is followed by its twin, which does.
//!
//! What the compiler cannot see, the builder refuses while it builds (a panic that names the ring or the kernel), and
//! what the builder cannot see, the [interpreter](crate::Rule) reports.
//!
//! # A comparison on the GPU is no choice of the builder
//!
//! Values have no order in Rust: `if a < b` would decide while building.
//! ```compile_fail,E0369
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (a, b) = (cta.param_u32("a"), cta.param_u32("b"));
//!     if a < b {}
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (a, b) = (cta.param_u32("a"), cta.param_u32("b"));
//!     cta.when(a.lt(b), |_| {});
//! });
//! ```
//!
//! # Types do not mix
//! ```compile_fail,E0277
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (i, x) = (cta.param_u32("i"), cta.param_f32("x"));
//!     let _ = x + i;
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (i, x) = (cta.param_u32("i"), cta.param_f32("x"));
//!     let _ = x + i.to_f32();
//! });
//! ```
//!
//! # A condition is a predicate
//! ```compile_fail,E0308
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let flag = cta.param_u32("flag");
//!     cta.when(flag, |_| {});
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let flag = cta.param_u32("flag");
//!     cta.when(flag.ne(0), |_| {});
//! });
//! ```
//!
//! # What needs a warp is not offered to a thread
//! ```compile_fail,E0599
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let t = cta.threads();
//!     let _ = t.shuffle_xor(t.index(), 1);
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let t = cta.threads();
//!     let _ = cta.warps().shuffle_xor(t.index(), 1);
//! });
//! ```
//!
//! # A value does not leave its kernel
//!
//! (A kernel that is built inside another one's closure could use the outer one's values: nobody does that, and to
//! forbid it would forbid closures that take values, too.)
//! ```compile_fail,E0521
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! let mut kept = None;
//! Builder::build("first", bounds, |cta| kept = Some(cta.param_u32("n")));
//! Builder::build("second", bounds, |cta| {
//!     let _ = cta.param_u32("n") + kept.unwrap();
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! for name in ["first", "second"] {
//!     Builder::build(name, bounds, |cta| {
//!         let kept = Some(cta.param_u32("n"));
//!         let _ = cta.param_u32("m") + kept.unwrap();
//!     });
//! }
//! ```
//!
//! # One stage of a ring is read at a time
//! ```compile_fail,E0499
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let w = cta.warps();
//!     let mut stages = cta.bulk_ring("k", 2, 1024, 1).consumer(w);
//!     let first = stages.wait(w);
//!     let second = stages.wait(w);
//!     first.release(w);
//!     second.release(w);
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let w = cta.warps();
//!     let mut stages = cta.bulk_ring("k", 2, 1024, 1).consumer(w);
//!     let first = stages.wait(w);
//!     first.release(w);
//!     let second = stages.wait(w);
//!     second.release(w);
//! });
//! ```
//!
//! # Nobody reads what was released
//! ```compile_fail,E0382
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let ring = cta.copy_ring("k", 2, 1024);
//!     ring.fill(cta, || {});
//!     let slot = ring.take(cta);
//!     slot.release();
//!     let _ = slot.address();
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let ring = cta.copy_ring("k", 2, 1024);
//!     ring.fill(cta, || {});
//!     let slot = ring.take(cta);
//!     let _ = slot.address();
//!     slot.release();
//! });
//! ```
//!
//! # Copies are waited for once
//! ```compile_fail,E0382
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let copy = cta.copy_group(|| {});
//!     copy.wait(cta);
//!     copy.wait(cta);
//! });
//! ```
//! ```
//! # use signflash_ptx::{Builder, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let copy = cta.copy_group(|| {});
//!     copy.wait(cta);
//! });
//! ```
//!
//! # Nobody touches a result under way
//! ```compile_fail,E0502
//! # use signflash_ptx::{BoxTile, Builder, Columns, Half, Product, Rows, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 128, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (wg, tile) = (cta.warpgroups(), BoxTile::new(cta.smem("a", 8192, 1024), 64));
//!     let (rows, columns) = (Rows::Tile(tile), Columns::OfRows(tile));
//!     let mut acc = wg.acc(64);
//!     let product = Product { rows, columns, depth: 64, half: Half::F16, add: false, columns_at_once: None };
//!     let sums = wg.multiply(&mut acc, &product);
//!     let _ = acc.at(0, 0).get();
//!     sums.wait();
//! });
//! ```
//! ```
//! # use signflash_ptx::{BoxTile, Builder, Columns, Half, Product, Rows, LaunchBounds};
//! # let bounds = LaunchBounds { block_threads: 128, min_blocks_per_sm: 1 };
//! Builder::build("k", bounds, |cta| {
//!     let (wg, tile) = (cta.warpgroups(), BoxTile::new(cta.smem("a", 8192, 1024), 64));
//!     let (rows, columns) = (Rows::Tile(tile), Columns::OfRows(tile));
//!     let mut acc = wg.acc(64);
//!     let product = Product { rows, columns, depth: 64, half: Half::F16, add: false, columns_at_once: None };
//!     let sums = wg.multiply(&mut acc, &product);
//!     sums.wait();
//!     let _ = acc.at(0, 0).get();
//! });
//! ```
