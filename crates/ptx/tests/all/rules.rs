//! What the builder refuses while it builds, by name. What does not even compile is in the documentation of
//! `signflash_ptx::rules`.

use signflash_ptx::{Builder, Cta, GlobalAddr, Kernel, LaunchBounds, SmemAddr};

fn build(body: impl FnOnce(Cta<'_>)) -> Kernel {
    Builder::build("refused", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, body)
}

/// Issues one copy.
fn copy<'k>(cta: Cta<'k>, to: SmemAddr<'k>) {
    let t = cta.threads();
    let x = GlobalAddr::new(cta.param_u64("x"));
    t.copy_async(to.plus(t.index() * 16), x.plus((t.index() * 16).widen()), t.index().lt(32));
}

#[test]
#[should_panic(expected = "a block is made of whole warps")]
fn a_block_of_33_threads() {
    Builder::build("refused", LaunchBounds { block_threads: 33, min_blocks_per_sm: 1 }, |_| {});
}

#[test]
#[should_panic(expected = "two parameters are called `n`")]
fn two_parameters_of_one_name() {
    build(|cta| {
        cta.param_u32("n");
        cta.param_f32("n");
    });
}

#[test]
#[should_panic(expected = "ring `k`: all 2 slots are full or still being read")]
fn a_ring_filled_when_it_is_full() {
    build(|cta| {
        let ring = cta.copy_ring("k", 2, 512);
        (0..3).for_each(|_| ring.fill(cta, || {}));
    });
}

#[test]
#[should_panic(expected = "ring `k`: all 1 slots are full or still being read")]
fn a_slot_filled_while_it_is_read() {
    build(|cta| {
        let ring = cta.copy_ring("k", 1, 512);
        ring.fill(cta, || {});
        let slot = ring.take(cta);
        ring.fill(cta, || {});
        slot.release();
    });
}

#[test]
#[should_panic(expected = "ring `k`: all 1 slots are full or still being read")]
fn a_slot_filled_before_the_block_has_met_after_its_release() {
    build(|cta| {
        let ring = cta.copy_ring("k", 1, 512);
        ring.fill(cta, || {});
        ring.take(cta).release();
        ring.fill(cta, || {});
    });
}

#[test]
fn a_slot_filled_after_the_block_has_met_is_fine() {
    build(|cta| {
        let ring = cta.copy_ring("k", 1, 512);
        ring.fill(cta, || {});
        ring.take(cta).release();
        cta.sync();
        ring.fill(cta, || {});
        ring.take(cta).release();
    });
}

#[test]
#[should_panic(expected = "ring `k`: a slot was taken and never released")]
fn a_slot_never_released() {
    build(|cta| {
        let ring = cta.copy_ring("k", 1, 512);
        ring.fill(cta, || {});
        let _slot = ring.take(cta);
    });
}

#[test]
#[should_panic(expected = "ring `k`: nothing was filled")]
fn a_slot_taken_before_it_is_filled() {
    build(|cta| cta.copy_ring("k", 1, 512).take(cta).release());
}

#[test]
#[should_panic(expected = "a stage was waited for and never released")]
fn a_stage_never_released() {
    build(|cta| {
        let mut consumer = cta.bulk_ring("k", 2, 512, 1).consumer(cta.warps());
        let _stage = consumer.wait(cta.warps());
    });
}

#[test]
#[should_panic(expected = "a loop changes which copies are in flight")]
fn copies_in_flight_at_the_end_of_a_round_that_were_not_at_its_start() {
    build(|cta| {
        let smem = cta.smem("x", 512, 16);
        let n = cta.param_u32("n");
        cta.while_(|| n.lt(3), |cta| drop(cta.copy_group(|| copy(cta, smem))));
    });
}

#[test]
#[should_panic(expected = "an `if` changes which copies are in flight")]
fn copies_that_only_some_have_in_flight() {
    build(|cta| {
        let smem = cta.smem("x", 512, 16);
        let n = cta.param_u32("n");
        cta.when(n.lt(3), |cta| drop(cta.copy_group(|| copy(cta, smem))));
    });
}

#[test]
#[should_panic(expected = "an `else` changes which copies are in flight")]
fn copies_that_only_the_others_have_in_flight() {
    build(|cta| {
        let smem = cta.smem("x", 512, 16);
        let n = cta.param_u32("n");
        cta.when_else(n.lt(3), |_| {}, |cta| drop(cta.copy_group(|| copy(cta, smem))));
    });
}

#[test]
#[should_panic(expected = "refused ends with 1 groups of copies in flight")]
fn a_kernel_that_ends_with_copies_in_flight() {
    build(|cta| {
        let smem = cta.smem("x", 512, 16);
        drop(cta.copy_group(|| copy(cta, smem)));
    });
}

#[test]
#[should_panic(expected = "refused ends with copies that were never committed")]
fn a_kernel_that_ends_with_copies_of_no_group() {
    build(|cta| {
        let smem = cta.smem("x", 512, 16);
        copy(cta, smem);
    });
}

#[test]
#[should_panic(expected = "a stage has whole pieces of 16 bytes")]
fn a_stage_of_100_bytes() {
    build(|cta| {
        cta.bulk_ring("k", 2, 100, 1);
    });
}

#[test]
#[should_panic(expected = "a tile's row is a multiple of 16 numbers, not 24")]
fn a_tile_of_24_columns() {
    signflash_ptx::TileLayout::new(24);
}

#[test]
#[should_panic(expected = "a product was started and never waited for")]
fn a_product_that_nobody_waits_for() {
    build(|cta| {
        let (wg, tile) = (cta.warpgroups(), cta.smem("a", 16384, 1024));
        let tile = signflash_ptx::BoxTile::new(tile, 64);
        let product = signflash_ptx::Product {
            rows: signflash_ptx::Rows::Tile(tile),
            columns: signflash_ptx::Columns::OfRows(tile),
            depth: 64,
            half: signflash_ptx::Half::F16,
            add: false,
            columns_at_once: None,
        };
        drop(wg.multiply(&mut wg.acc(64), &product));
    });
}
