//! What orders two accesses and what does not: each pair of kernels differs by the one thing that matters.

use signflash_ptx::{
    Arg, Builder, Cta, F32, Global, GlobalAddr, Kernel, Launch, LaunchBounds, Profile, Rule, Trap, U32,
};

fn build(body: impl for<'k> FnOnce(Cta<'k>, GlobalAddr<'k>)) -> Kernel {
    Builder::build("ordered", LaunchBounds { block_threads: 64, min_blocks_per_sm: 1 }, |cta| {
        let words = GlobalAddr::new(cta.param_u64("words"));
        body(cta, words);
    })
}

fn run(kernel: &Kernel, grid: u32, seed: u64) -> Result<Profile, Box<Trap>> {
    let mut memory = Global::default();
    let words = memory.upload("words", &[0; 4096]);
    kernel.interpret(&Launch { grid, args: &[Arg::U64(words.0)], seed }, &mut memory)
}

fn passes(kernel: &Kernel, grid: u32) {
    (0..25).for_each(|seed| drop(run(kernel, grid, seed).unwrap_or_else(|trap| panic!("{trap}"))));
}

/// Every schedule shows it.
fn always(kernel: &Kernel, grid: u32, rule: Rule) -> String {
    let traps = (0..25).map(|seed| run(kernel, grid, seed).expect_err("a trap under every schedule"));
    let mut last = String::new();
    for trap in traps {
        assert_eq!(trap.fault.rule, rule, "{trap}");
        last = trap.to_string();
    }
    last
}

/// Lane 0 of warp 1 waits for warp 0's words; all its lanes read them, after they have met or not.
fn one_lane_waits(meet: bool) -> Kernel {
    build(|cta, _| {
        let (w, t) = (cta.warps(), cta.threads());
        let cells = cta.smem("cells", 128, 4);
        let written = cta.mbarriers("written", 1, 32);
        cta.sync();
        w.when_else(
            w.index().eq(0),
            |_| {
                t.store(cells.plus(t.lane() * 4), [t.lane()]);
                written.arrive(t);
            },
            |w| {
                t.when(t.lane().eq(0), |t| written.wait(t, 0));
                if meet {
                    w.sync();
                }
                t.load::<U32, 1>(cells.plus(t.lane() * 4));
            },
        );
    })
}

#[test]
fn what_one_lane_waited_for_the_others_know_once_they_have_met() {
    passes(&one_lane_waits(true), 1);
    // Other lanes may even run before lane 0 has waited, so that the words need not be there.
    let traps: Vec<Rule> =
        (0..25).filter_map(|s| run(&one_lane_waits(false), 1, s).err()).map(|t| t.fault.rule).collect();
    assert_eq!(traps, [Rule::Race; 25]);
}

/// Lane 0 arrives for its warp, after its lanes have met or not.
fn one_lane_arrives(meet: bool) -> Kernel {
    build(|cta, _| {
        let (w, t) = (cta.warps(), cta.threads());
        let cells = cta.smem("cells", 128, 4);
        let written = cta.mbarriers("written", 1, 1);
        cta.sync();
        w.when_else(
            w.index().eq(0),
            |w| {
                t.store(cells.plus(t.lane() * 4), [t.lane()]);
                if meet {
                    w.sync();
                }
                t.when(t.lane().eq(0), |t| written.arrive(t));
            },
            |_| {
                written.wait(t, 0);
                t.load::<U32, 1>(cells.plus(t.lane() * 4));
            },
        );
    })
}

#[test]
fn an_arrival_of_one_lane_counts_for_the_others_once_they_have_met() {
    passes(&one_lane_arrives(true), 1);
    always(&one_lane_arrives(false), 1, Rule::Race);
}

/// A lane reads its neighbour's word and then everybody overwrites their own.
fn overwrites(meet: bool) -> Kernel {
    build(|cta, _| {
        let (w, t) = (cta.warps(), cta.threads());
        let cells = cta.smem("cells", 256, 4);
        let own = t.index() * 4;
        t.store(cells.plus(own), [t.index()]);
        w.sync();
        t.load::<U32, 1>(cells.plus((t.index() ^ 1) * 4));
        if meet {
            w.sync();
        }
        t.store(cells.plus(own), [t.index()]);
    })
}

#[test]
fn a_word_may_be_overwritten_once_its_readers_have_met_the_writer() {
    passes(&overwrites(true), 1);
    let report = always(&overwrites(false), 1, Rule::Race);
    assert!(report.contains("shared `cells`") && report.contains("another lane"), "{report}");
}

/// Two copies on two rings; the second ring's copy is waited for, and the data of one of them is read.
fn other_ring(read_waited: bool) -> Kernel {
    build(|cta, words| {
        let (w, t) = (cta.warps(), cta.threads());
        let (a, b) = (cta.bulk_ring("a", 1, 128, 1), cta.bulk_ring("b", 1, 128, 1));
        cta.sync();
        w.when_else(
            w.index().eq(0),
            |_| {
                t.when(t.lane().eq(0), |t| {
                    a.producer(t).fill(t, words);
                    b.producer(t).fill(t, words.at(128));
                });
            },
            |w| {
                let (mut from_a, mut from_b) = (a.consumer(w), b.consumer(w));
                let stage_b = from_b.wait(w);
                let at = stage_b.address().plus(t.lane() * 4);
                // Ring a's stage, of 128 bytes, and its two barriers are in front of ring b's.
                let at = if read_waited { at } else { at.plus(t.u32(0) - (128 + 16)) };
                t.load::<U32, 1>(at);
                stage_b.release(w);
                from_a.wait(w).release(w);
            },
        );
    })
}

#[test]
fn waiting_for_one_copy_does_not_order_another() {
    passes(&other_ring(true), 1);
    for seed in 0..50 {
        let trap = run(&other_ring(false), 1, seed).unwrap_err();
        // In flight if it has not landed; if it has, nobody knows that it did.
        assert!(matches!(trap.fault.rule, Rule::InFlight | Rule::Race), "{trap}");
    }
}

#[test]
fn a_bulk_copy_over_ordinary_stores_needs_a_fence() {
    let kernel = |fence: bool| {
        build(|cta, words| {
            let t = cta.threads();
            let stage = cta.bulk_ring("stage", 1, 256, 1);
            let mut producer = stage.producer(t);
            let mut consumer = stage.consumer(cta.warps());
            cta.sync();
            let w = cta.warps();
            w.when(w.index().eq(0), |w| {
                for round in 0..2 {
                    t.when(t.lane().eq(0), |t| producer.fill(t, words));
                    let full = consumer.wait(w);
                    if round == 0 {
                        t.store(full.address().plus(t.lane() * 4), [t.lane()]);
                        if fence {
                            t.fence_proxy_async();
                        }
                    }
                    full.release(w);
                    w.sync();
                }
            });
        })
    };
    // Position advances only in lane 0 inside the `when`, which is the lane that uses it.
    passes(&kernel(true), 1);
    always(&kernel(false), 1, Rule::MissingFence);
}

#[test]
fn a_barrier_in_memory_is_used_after_the_block_has_met() {
    let kernel = |meet: bool| {
        build(|cta, _| {
            let barrier = cta.mbarriers("gate", 1, 64);
            if meet {
                cta.sync();
            }
            barrier.arrive(cta.threads());
            barrier.wait(cta.threads(), 0);
        })
    };
    passes(&kernel(true), 1);
    for seed in 0..25 {
        let trap = run(&kernel(false), 1, seed).unwrap_err();
        assert!(matches!(trap.fault.rule, Rule::Race | Rule::Barrier), "{trap}");
        assert!(trap.fault.what.contains("`gate`"), "{trap}");
    }
}

#[test]
fn both_sides_of_a_barrier_expect_as_many() {
    let kernel = build(|cta, _| {
        let w = cta.warps();
        w.when_else(w.index().eq(0), |w| w.sync_among(1, 64), |w| w.sync_among(1, 96));
    });
    let report = always(&kernel, 1, Rule::Barrier);
    assert!(report.contains("barrier 1"), "{report}");
}

#[test]
fn a_block_may_not_write_what_another_reads_whichever_runs_first() {
    let kernel = build(|cta, words| {
        let t = cta.threads();
        t.load::<U32, 1>(words);
        cta.when(cta.index().eq(1), |_| t.when(t.index().eq(0), |t| t.store(words, [t.index()])));
    });
    passes(&kernel, 1);
    always(&kernel, 2, Rule::BlockRace);
}

#[test]
fn two_blocks_may_write_the_two_halves_of_a_word_but_not_one_half() {
    let kernel = |bytes: u32| {
        build(|cta, words| {
            let t = cta.threads();
            let to = words.plus((cta.index() * bytes).widen());
            t.when(t.index().eq(0), |t| t.store_half(to, t.index().cast()));
        })
    };
    passes(&kernel(2), 2);
    always(&kernel(0), 2, Rule::BlockRace);
}

#[test]
fn four_floats_are_added_at_a_multiple_of_their_size() {
    let kernel = |bytes: i64| {
        build(|cta, words| {
            let t = cta.threads();
            t.add_floats(words.at(bytes), [t.f32(1.0); 4]);
        })
    };
    passes(&kernel(16), 2);
    always(&kernel(4), 2, Rule::Misaligned);
}

#[test]
fn a_kernel_ends_after_its_bulk_copies() {
    let kernel = build(|cta, words| {
        let (w, t) = (cta.warps(), cta.threads());
        let ring = cta.bulk_ring("ring", 1, 128, 1);
        cta.sync();
        w.when(w.index().eq(0), |_| t.when(t.lane().eq(0), |t| ring.producer(t).fill(t, words)));
    });
    assert!((0..25).filter_map(|seed| run(&kernel, 1, seed).err()).any(|t| t.fault.rule == Rule::Abandoned));
}

/// Visits of the banks by one load of N words a lane, `stride` bytes apart.
fn visits<const N: usize>(stride: u32) -> (u64, u64) {
    let kernel = build(|cta, _| {
        let (w, t) = (cta.warps(), cta.threads());
        let cells = cta.smem("cells", 16384, 16);
        let at = cells.plus(t.lane() * stride);
        w.when(w.index().eq(0), |_| {
            t.store::<F32, N>(at, [t.f32(0.0); N]);
        });
    });
    let profile = run(&kernel, 1, 0).unwrap();
    let used = profile.shared.values().next().expect("one line touches shared memory");
    (used.wavefronts, used.least)
}

#[test]
fn bank_conflicts_are_counted_for_as_many_lanes_as_are_served_at_once() {
    assert_eq!(visits::<1>(4), (1, 1));
    assert_eq!(visits::<1>(8), (2, 1));
    assert_eq!(visits::<1>(128), (32, 1));
    assert_eq!(visits::<1>(132), (1, 1));
    assert_eq!(visits::<2>(8), (2, 2));
    assert_eq!(visits::<4>(16), (4, 4));
    // Eight rows of 128 bytes are in the same banks, which the four groups of lanes visit eight times each.
    assert_eq!(visits::<4>(128), (32, 4));
    assert_eq!(visits::<4>(144), (4, 4));
}
