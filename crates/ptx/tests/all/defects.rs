//! Seeded defects, each beside the kernel that is right: the interpreter passes the one under every schedule, and
//! reports the other by name.

use signflash_ptx::{
    Arg, Builder, Cta, F32, Global, GlobalAddr, Kernel, Launch, LaunchBounds, Rule, SmemAddr, TensorMap,
    Thread, Trap, U32, Val,
};

const SEEDS: std::ops::Range<u64> = 0..25;
const WORDS: usize = 64;

/// A kernel of two warps on 64 words, `x` and `y` its only parameters.
fn build(body: impl FnOnce(Cta<'_>, GlobalAddr<'_>, GlobalAddr<'_>)) -> Kernel {
    Builder::build("defective", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |cta| {
        let (x, y) = (GlobalAddr::new(cta.param_u64("x")), GlobalAddr::new(cta.param_u64("y")));
        body(cta, x, y);
    })
}

fn run(kernel: &Kernel, grid: u32, seed: u64) -> Result<Vec<u8>, Box<Trap>> {
    let mut memory = Global::default();
    let words: Vec<u8> = (0..8 * WORDS as u32).flat_map(u32::to_le_bytes).collect();
    let (x, y) = (memory.upload("x", &words), memory.reserve("y", 8 * 4 * WORDS));
    kernel.interpret(&Launch { grid, args: &[Arg::U64(x.0), Arg::U64(y.0)], seed }, &mut memory)?;
    Ok(memory.bytes(y).to_vec())
}

fn passes(kernel: &Kernel) {
    for seed in SEEDS {
        run(kernel, 1, seed).unwrap_or_else(|trap| panic!("{trap}"));
    }
}

/// At least one schedule shows it; says what was reported.
fn is_caught(kernel: &Kernel, rules: &[Rule]) -> String {
    let trap =
        SEEDS.into_iter().find_map(|seed| run(kernel, 1, seed).err()).expect("no schedule shows the defect");
    assert!(rules.contains(&trap.fault.rule), "{trap}");
    assert!(
        trap.at.contains("defects.rs") || trap.at.contains("build") || trap.fault.rule == Rule::Deadlock,
        "{trap}"
    );
    trap.to_string()
}

/// The kernel less its first instruction that contains `text`.
fn less(kernel: Kernel, text: &str) -> Kernel {
    let index =
        *kernel.lines_matching(text).first().unwrap_or_else(|| panic!("no instruction contains {text:?}"));
    kernel.without(index)
}

/// The kernel with the last mistake of this kind.
fn mistaken(kernel: Kernel, what: &str) -> Kernel {
    let mistake = kernel.mutations().into_iter().rfind(|mutation| mutation.what().contains(what));
    kernel.mutate(mistake.unwrap_or_else(|| panic!("no instruction can be {what}")))
}

fn word<'k>(t: Thread<'k>, base: GlobalAddr<'k>) -> GlobalAddr<'k> {
    base.plus(t.index().widen() * 4u64)
}

/// Copies 16 bytes a thread to shared memory, asynchronously, and reads a neighbour's.
fn copying() -> Kernel {
    build(|cta, x, y| {
        let t = cta.threads();
        let tile = cta.smem("tile", 16 * 64, 16);
        let own = t.index() * 16;
        let yes = t.index().lt(64);
        let copy = cta.copy_group(|| t.copy_async(tile.plus(own), x.plus(own.widen()), yes));
        copy.wait(cta);
        let other = (t.index() ^ 32) * 16;
        let [value] = t.load::<U32, 1>(tile.plus(other));
        t.store(word(t, y), [value]);
    })
}

#[test]
fn a_dropped_wait_is_data_in_flight() {
    passes(&copying());
    let report = is_caught(&less(copying(), "cp.async.wait_group"), &[Rule::InFlight]);
    assert!(report.contains("shared `tile`") && report.contains("in flight"), "{report}");
}

#[test]
fn a_dropped_barrier_is_a_race() {
    let report = is_caught(&less(copying(), "bar.sync"), &[Rule::Race, Rule::InFlight, Rule::Uninitialised]);
    assert!(report.contains("shared `tile`"), "{report}");
}

/// One thread of warp 1 fills stages, warp 0 reads them.
fn ring() -> Kernel {
    build(|cta, x, y| {
        let (warp, t) = (cta.warps(), cta.threads());
        let ring = cta.bulk_ring("ring", 2, 128, 1);
        cta.sync();
        warp.when_else(
            warp.index().eq(1),
            |warp| {
                warp.threads().when(t.lane().eq(0), |t| {
                    let mut producer = ring.producer(t);
                    for stage in 0..6 {
                        producer.fill(t, x.at(128 * stage));
                    }
                });
            },
            |warp| {
                let mut consumer = ring.consumer(warp);
                let sum = t.u32(0).var();
                for _ in 0..6 {
                    let stage = consumer.wait(warp);
                    let [value] = t.load::<U32, 1>(stage.address().plus(t.lane() * 4));
                    sum.set(sum.get() + value);
                    stage.release(warp);
                }
                t.store(word(t, y), [sum.get()]);
            },
        );
    })
}

#[test]
fn a_swapped_phase_is_a_deadlock_or_a_race() {
    passes(&ring());
    let report = is_caught(
        &mistaken(ring(), "parity flipped"),
        &[Rule::Deadlock, Rule::Race, Rule::InFlight, Rule::Uninitialised],
    );
    assert!(report.contains("ring"), "{report}");
}

#[test]
fn an_arrival_that_never_comes_is_a_deadlock_with_names() {
    let report = is_caught(&less(ring(), "mbarrier.arrive.shared"), &[Rule::Deadlock]);
    assert!(report.contains("waits") && report.contains("`ring_empty`"), "{report}");
}

/// Writes a row by ordinary stores; one thread copies it out in bulk.
fn storing() -> Kernel {
    build(|cta, _, y| {
        let t = cta.threads();
        let row = cta.smem("row", 256, 128);
        t.store(row.plus(t.index() * 4), [t.index()]);
        t.fence_proxy_async();
        cta.sync();
        t.when(t.index().eq(0), |t| {
            t.bulk_store(y, row, 256);
            t.wait_written();
        });
    })
}

#[test]
fn a_missing_fence_is_named() {
    passes(&storing());
    let report = is_caught(&less(storing(), "fence.proxy.async"), &[Rule::MissingFence]);
    assert!(report.contains("shared `row`") && report.contains("fence.proxy.async"), "{report}");
}

#[test]
fn a_bulk_store_before_the_barrier_is_a_race() {
    is_caught(&less(storing(), "bar.sync"), &[Rule::Race, Rule::Uninitialised]);
}

fn exchange(sync: bool) -> Kernel {
    build(|cta, _, y| {
        let (warp, t) = (cta.warps(), cta.threads());
        let cells: SmemAddr<'_> = cta.smem("cells", 256, 4);
        t.store(cells.plus(t.index() * 4), [t.index()]);
        if sync {
            warp.sync();
        }
        let [value] = t.load::<U32, 1>(cells.plus((t.index() ^ 1) * 4));
        t.store(word(t, y), [value]);
    })
}

#[test]
fn lanes_that_exchange_without_meeting_are_a_race() {
    passes(&exchange(true));
    is_caught(&exchange(false), &[Rule::Race]);
}

#[test]
fn what_nobody_wrote_is_poison() {
    let kernel = build(|cta, _, y| {
        let t = cta.threads();
        let cells = cta.smem("cells", 256, 4);
        let [value] = t.load::<U32, 1>(cells.plus(t.index() * 4));
        t.store(word(t, y), [value]);
    });
    is_caught(&kernel, &[Rule::Uninitialised]);
    let kernel = build(|cta, _, y| {
        let (warp, t) = (cta.warps(), cta.threads());
        let acc = warp.acc(8);
        t.store::<F32, 1>(word(t, y), [acc.at(0, 0).get()]);
    });
    is_caught(&kernel, &[Rule::Uninitialised]);
}

#[test]
fn an_address_outside_is_named_by_the_buffer() {
    let kernel = build(|cta, x, y| {
        let t = cta.threads();
        let [value] = t.load::<U32, 1>(word(t, x).at(8 * 4 * WORDS as i64 - 4));
        t.store(word(t, y), [value]);
    });
    let report = is_caught(&kernel, &[Rule::OutOfBounds]);
    assert!(report.contains("x + 2048, which has 2048 bytes"), "{report}");
    let kernel = build(|cta, _, _| {
        let t = cta.threads();
        let cells = cta.smem("cells", 128, 4);
        t.store(cells.plus(t.index() * 4), [t.index()]);
    });
    is_caught(&kernel, &[Rule::OutOfBounds]);
}

#[test]
fn a_shuffle_in_divergent_code_is_refused() {
    let kernel = build(|cta, _, y| {
        let (warp, t) = (cta.warps(), cta.threads());
        t.when(t.lane().lt(16), |t| {
            let value: Val<'_, U32> = warp.shuffle_xor(t.index(), 1);
            t.store(word(t, y), [value]);
        });
    });
    is_caught(&kernel, &[Rule::Divergent]);
}

#[test]
fn two_blocks_that_write_one_word_are_reported() {
    let kernel = build(|cta, _, y| {
        let t = cta.threads();
        t.store(word(t, y), [t.index()]);
    });
    let trap = run(&kernel, 2, 0).unwrap_err();
    assert_eq!(trap.fault.rule, Rule::BlockRace, "{trap}");
}

#[test]
fn a_schedule_is_reproducible() {
    let kernel = less(copying(), "bar.sync");
    let reports: Vec<String> = (0..2).map(|_| run(&kernel, 1, 3).unwrap_err().to_string()).collect();
    assert_eq!(reports[0], reports[1]);
}

/// Stores a box of zeros to a tensor of so many columns, from this row on.
fn store_box(columns: u64, row: i32) -> Result<(), Box<Trap>> {
    let kernel = Builder::build("store", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, |cta| {
        let (t, y) = (cta.threads(), cta.param_tensor("y"));
        let tile = cta.smem("tile", 1024, 1024);
        for i in 0..2 {
            t.store(tile.plus(t.index() * 16).at(512 * i), [t.u32(0); 4]);
        }
        t.fence_proxy_async();
        cta.sync();
        t.when(t.index().eq(0), |t| {
            t.store_boxes([(tile, y.at(0, [t.u32(row as u32), t.u32(0), t.u32(0)]))]);
            t.wait_stored();
        });
    });
    let mut memory = Global::default();
    let base = memory.reserve("y", 128 * 16).0;
    let map = TensorMap {
        base,
        dims: [columns, 16, 1, 1],
        strides_bytes: [128, 2048, 2048],
        box_rows: 8,
        wraps: false,
    };
    kernel.interpret(&Launch { grid: 1, args: &[Arg::Tensor(map)], seed: 0 }, &mut memory).map(drop)
}

#[test]
fn boxes_are_stored_from_no_negative_row_and_in_whole_pieces_of_16_bytes() {
    store_box(48, 12).unwrap();
    for (columns, row, told) in [(48, -1, "from [0, -1, 0, 0] on"), (44, 0, "rows of 44 columns")] {
        let trap = store_box(columns, row).unwrap_err();
        assert_eq!(trap.fault.rule, Rule::OutOfBounds, "{trap}");
        assert!(trap.to_string().contains(told), "{trap}");
    }
}

#[test]
fn a_tensor_that_is_loaded_from_begins_in_memory() {
    let kernel = Builder::build("load", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, |cta| {
        let (warp, t, x) = (cta.warps(), cta.threads(), cta.param_tensor("x"));
        let ring = cta.bulk_ring("ring", 1, 8 * 128, 1);
        cta.sync();
        t.when(t.index().eq(0), |t| {
            let outside = x.at(0, [t.u32(16), t.u32(0), t.u32(0)]);
            ring.producer(t).fill_by(t, |filling| filling.load(t, 0, outside.clone()));
        });
        ring.consumer(warp).wait(warp).release(warp);
    });
    let mut memory = Global::default();
    let ptr = memory.reserve("x", 128 * 16).0;
    let inside = TensorMap {
        base: ptr,
        dims: [64, 16, 1, 1],
        strides_bytes: [128, 2048, 2048],
        box_rows: 8,
        wraps: false,
    };
    let load = |map, memory: &mut Global| {
        kernel.interpret(&Launch { grid: 1, args: &[Arg::Tensor(map)], seed: 0 }, memory).map(drop)
    };
    load(inside, &mut memory).unwrap();
    let trap = load(TensorMap { base: ptr - (1 << 20), ..inside }, &mut memory).unwrap_err();
    assert_eq!(trap.fault.rule, Rule::OutOfBounds, "{trap}");
}
