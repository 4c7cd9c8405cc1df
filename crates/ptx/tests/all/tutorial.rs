//! The kernels of `docs/ptx-builder.md`, run.

use signflash_ptx::{
    Arg, B32, Builder, F32, Global, GlobalAddr, Half, Kernel, Launch, LaunchBounds, Order, TileLayout, U32,
};

fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn vectors_are_added() {
    let add = Builder::build("add", LaunchBounds { block_threads: 128, min_blocks_per_sm: 1 }, |cta| {
        let n = cta.param_u32("n");
        let [a, b, out] = ["a", "b", "out"].map(|name| GlobalAddr::new(cta.param_u64(name)));
        let t = cta.threads();
        let i = cta.index() * 128 + t.index();
        t.when(i.lt(n), |t| {
            let at = i.widen() * 4u64;
            let ([x], [y]) = (t.load::<F32, 1>(a.plus(at)), t.load::<F32, 1>(b.plus(at)));
            t.store(out.plus(at), [x + y]);
        });
    });
    let mut memory = Global::default();
    let a = memory.upload("a", &bytes((0..100).map(|i| i as f32)));
    let b = memory.upload("b", &bytes([0.5; 100]));
    let out = memory.reserve("out", 400);
    let run = |n, memory: &mut Global| {
        let args = [Arg::U32(n), Arg::U64(a.0), Arg::U64(b.0), Arg::U64(out.0)];
        add.interpret(&Launch { grid: 1, args: &args, seed: 0 }, memory).map(drop)
    };
    run(100, &mut memory).unwrap();
    assert_eq!(memory.bytes(out), bytes((0..100).map(|i| i as f32 + 0.5)));
    let trap = run(101, &mut memory).unwrap_err();
    assert_eq!(trap.fault.what, "global load of 4 bytes at a + 400, which has 400 bytes");
}

/// 16 x 16 = (16 x 64) * (64 x 16), all ones.
fn product() -> Kernel {
    Builder::build("product", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, |cta| {
        let out = GlobalAddr::new(cta.param_u64("out"));
        let (t, w) = (cta.threads(), cta.warps());
        let layout = TileLayout::new(64);
        let a = cta.smem("a", layout.bytes(16), 1024);
        let b = cta.smem("b", layout.bytes(16), 1024);
        let ones = t.u32(0x3F80_3F80).cast::<B32>(); // two bf16 ones
        for i in 0..layout.bytes(16) / 512 {
            let at = t.index() * 16 + 512 * i;
            t.store(a.plus(at), [ones; 4]);
            t.store(b.plus(at), [ones; 4]);
        }
        cta.sync();
        let (down, across) = (w.tile_lanes(layout, Order::Down), w.tile_lanes(layout, Order::Across));
        let mut acc = w.acc(16);
        acc.clear();
        for k in 0..4 {
            let a = w.load_matrices(&down, a, 0, k);
            let [b0, b1, b2, b3] = w.load_matrices(&across, b, 0, k);
            w.mma(&mut acc, 0, a, [b0, b1], Half::Bf16);
            w.mma(&mut acc, 1, a, [b2, b3], Half::Bf16);
        }
        let sum = t.f32(0.0).var();
        for (group, register) in (0..8).map(|i| (i / 4, i % 4)) {
            sum.set(sum.get() + acc.at(group, register).get());
        }
        let (i, rounds) = (t.u32(0).var(), t.u32(3));
        cta.while_(
            || i.get().lt(rounds),
            |_| {
                sum.set(sum.get() + 1.0);
                i.set(i.get() + 1);
            },
        );
        t.store(out.plus((t.index() * 4).widen()), [sum.get().cast::<U32>()]);
    })
}

#[test]
fn matrices_are_multiplied_and_a_loop_counts() {
    let mut memory = Global::default();
    let out = memory.reserve("out", 128);
    let launch = Launch { grid: 1, args: &[Arg::U64(out.0)], seed: 0 };
    product().interpret(&launch, &mut memory).unwrap();
    // Eight elements a lane, 64 each.
    assert_eq!(memory.bytes(out), bytes([8.0 * 64.0 + 3.0; 32]));
}
