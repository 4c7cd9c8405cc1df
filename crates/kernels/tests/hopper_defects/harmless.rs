//! Mistakes that `hopper_defects.rs` makes in vain: nothing can go wrong, or the interpreter cannot see it.

/// What the mistake's text contains, the file of the instruction, how many such, and why nothing can go wrong.
pub(crate) type NotNeeded = (&'static str, &'static str, usize, &'static str);

const FENCES: &str = "the next covers it; on the barriers of the last completes no copy";

const LANES: &str = "every lane arrives for itself, and the warp meets again before one speaks for it";

const ONCE: &str = "k and v come once: nobody waits for their place";

/// It is needed: without it a block adds before its turn. In no schedule that was tried did one get there so early.
const UNSEEN: &str = "the interpreter's schedules let the block before add first all the same";

/// In no tile here a warpgroup goes over its third step, or one after that, where places are used again.
const LATE: &str = "no third step is gone over here; the same in a step that is multiplied is noticed";

/// What leaves by places that others want is waited for behind a walk, in its last turn, and before the next first one.
const TWICE: &str = "another wait for the same copies comes before their place is written";

/// Those of every forward.
const FORWARDS: &[NotNeeded] = &[
    ("fence.mbarrier_init", "", 8, FENCES),
    (", 256 dropped", "multiply.rs", 1, "a turn: for speed alone"),
    (
        "wgmma.fence",
        "multiply.rs",
        2,
        "a step's two cover each other but where keys are hidden, here in the last",
    ),
    ("try_wait", "multiply.rs", 1, "it waits twice, to hold the order"),
    ("try_wait", "load.rs", 1, "the first keys' place is free when the queries' is"),
];

/// The forward's.
pub(crate) const FORWARD: &[&[NotNeeded]] = &[FORWARDS, &[("bar.warp.sync", "flags.rs", 1, LANES)]];

/// Those of the forward of packed sequences.
pub(crate) const PACKED_FORWARD: &[&[NotNeeded]] = &[FORWARDS];

/// Those of the pass that writes probs.
pub(crate) const PROBS: &[&[NotNeeded]] =
    &[&[("bar.warp.sync", "flags.rs", 1, LANES), ("fence.mbarrier_init", "", 6, FENCES)]];

/// Those of every backward whose warpgroups have keys of their own.
const BACKWARDS: &[NotNeeded] = &[
    ("of an arrival", "mbarrier.rs", 2, ONCE),
    ("try_wait", "serve.rs", 1, ONCE),
    ("mbarrier.arrive", "mbarrier/consumer.rs", 1, ONCE),
    ("bar.warp.sync", "multiply.rs", 3, LANES),
    ("bar.warp.sync", "serve.rs", 2, "lane 0 has waited itself"),
    ("fence.mbarrier_init", "", 9, FENCES),
    ("wgmma.fence", "multiply.rs", 1, "a step's cover each other"),
    ("wgmma.commit_group", "multiply.rs", 1, "the next takes it along"),
    ("wgmma.wait_group.sync.aligned 1", "multiply.rs", 2, "the next waits for all"),
    ("mbarrier.arrive", "dq.rs", 1, "the last ds: its place is not filled again"),
    ("cp.async.bulk.commit_group", "results.rs", 1, "the next takes it along"),
];

const BETWEEN: &str = "a step's other products come between";

/// The backward's.
pub(crate) const BACKWARD: &[&[NotNeeded]] = &[BACKWARDS, &[("wgmma.fence", "dq.rs", 2, BETWEEN)]];

/// Those of additions in one order in a window.
pub(crate) const ORDERED_WINDOW: &[&[NotNeeded]] = &[
    BACKWARDS,
    &[
        ("wgmma.fence", "dq.rs", 4, BETWEEN),
        ("cp.async.bulk.commit_group", "dq.rs", 2, "the next takes it along"),
        ("ld.acquire", "dq.rs", 1, UNSEEN),
    ],
];

/// The same where warpgroups share keys.
pub(crate) const SHARED: &[&[NotNeeded]] = &[&[
    ("of an arrival", "mbarrier.rs", 2, ONCE),
    ("try_wait", "serve.rs", 1, ONCE),
    ("mbarrier.arrive", "mbarrier/consumer.rs", 2, ONCE),
    ("bar.warp.sync", "shared.rs", 6, LANES),
    ("bar.warp.sync", "serve.rs", 2, "lane 0 has waited itself"),
    ("fence.mbarrier_init", "", 10, FENCES),
    ("wgmma.fence", "shared.rs", 5, "a step's cover each other"),
    ("mbarrier.arrive", "shared.rs", 1, "the last ds: its place is not filled again"),
]];

/// Those of blocks that take several tiles.
pub(crate) const TILES: &[&[NotNeeded]] = &[&[
    ("fence.mbarrier_init", "", 13, FENCES),
    ("bar.warp.sync", "multiply.rs", 3, LANES),
    ("bar.warp.sync", "tiles.rs", 2, LANES),
    ("bar.warp.sync", "serve.rs", 5, "lane 0 has waited itself"),
    ("try_wait", "multiply.rs", 2, "what is gone over is not read, and the other warpgroup holds its place"),
    (
        "try_wait",
        "mbarrier.rs",
        2,
        "a third ds, or the number behind a tile that nobody sees: the place is long free",
    ),
    ("try_wait", "dq.rs", 1, LATE),
    ("cp.async.bulk.wait_group 0", "dq.rs", 1, LATE),
    ("red.release", "dq.rs", 1, LATE),
    ("mbarrier.arrive", "dq.rs", 1, LATE),
    (
        "cp.async.bulk.wait_group.read",
        "dq.rs",
        8,
        "one of the two above, or whoever begins a sum has waited for more",
    ),
    ("cp.async.bulk.wait_group.read", "multiply.rs", 2, TWICE),
    ("bar.sync 1, 256", "dq.rs", 1, "all meet again before they write"),
    ("ld.acquire", "dq.rs", 1, UNSEEN),
    ("cp.async.bulk.commit_group", "bulk.rs", 1, "the next takes it along"),
    ("cp.async.bulk.commit_group", "results.rs", 1, "the next takes it along"),
    ("wgmma.fence", "multiply.rs", 1, "a step's cover each other"),
    ("wgmma.fence", "dq.rs", 2, BETWEEN),
    ("wgmma.commit_group", "multiply.rs", 1, "the next takes it along"),
    ("wgmma.wait_group.sync.aligned 1", "multiply.rs", 2, "the next waits for all"),
]];
