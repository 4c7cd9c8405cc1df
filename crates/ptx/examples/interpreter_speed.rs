//! How many instructions of a warp the interpreter runs a second, by kind: `cargo run --release -p signflash-ptx
//! --example interpreter_speed`.
use signflash_ptx::{
    B32, Builder, Cta, F32, Global, GlobalAddr, Half, Kernel, Launch, LaunchBounds, Thread, U32, Val, Warp,
};
use std::time::Instant;

const ROUNDS: u32 = 200;
const COPIES: usize = 32;

/// A loop of many copies of what `body` emits.
fn kernel(body: impl Fn(Cta<'_>, &Setup<'_>)) -> Kernel {
    Builder::build("speed", LaunchBounds { block_threads: 128, min_blocks_per_sm: 1 }, |cta| {
        let t = cta.threads();
        let x = GlobalAddr::new(cta.param_u64("x")).plus((t.index() * 16).widen());
        let smem = cta.smem("words", 16 * 128, 1024).plus(t.index() * 16);
        let words = t.load::<B32, 4>(x);
        t.store(smem, words);
        cta.sync();
        let setup = Setup { t, w: cta.warps(), x, smem, words };
        let round = t.u32(0).var();
        cta.while_(
            || round.get().lt(ROUNDS),
            |cta| {
                (0..COPIES).for_each(|_| body(cta, &setup));
                round.set(round.get() + 1);
            },
        );
    })
}

struct Setup<'k> {
    t: Thread<'k>,
    w: Warp<'k>,
    x: GlobalAddr<'k>,
    smem: signflash_ptx::SmemAddr<'k>,
    words: [Val<'k, B32>; 4],
}

fn main() {
    let matrices = |s: &Setup<'_>, transposed| {
        s.w.load_matrices_at(s.smem, transposed);
    };
    let kinds: [(&str, Kernel); 9] = [
        ("xor.b32", kernel(|_, s| drop_value(s.words[0] ^ s.words[1]))),
        ("mad.lo.u32", kernel(|_, s| drop_value(s.words[0].cast::<U32>().mul_add(3u32, 5u32)))),
        ("fma.rn.f32", kernel(|_, s| drop_value(s.words[0].cast::<F32>().mul_add(0.5, 1.0)))),
        ("ex2.approx", kernel(|_, s| drop_value(s.words[0].cast::<F32>().ex2()))),
        (
            "cvt to bf16",
            kernel(|_, s| {
                let x = s.words[0].cast::<F32>();
                drop_value(x.pack(x, Half::Bf16, true));
            }),
        ),
        ("ld.shared.v4", kernel(|_, s| drop_value(s.t.load::<U32, 4>(s.smem)[0]))),
        ("ld.global.v4", kernel(|_, s| drop_value(s.t.load::<U32, 4>(s.x)[0]))),
        ("ldmatrix", kernel(|_, s| matrices(s, false))),
        (
            "mma bf16",
            kernel(|_, s| {
                let mut acc = s.w.acc(8);
                acc.clear();
                s.w.mma(&mut acc, 0, s.words, [s.words[0], s.words[1]], Half::Bf16);
            }),
        ),
    ];
    for (name, kernel) in kinds {
        let mut memory = Global::default();
        let bytes: Vec<u8> = (0..512).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let x = memory.upload("x", &bytes);
        let launch = Launch { grid: 1, args: &[signflash_ptx::Arg::U64(x.0)], seed: 1 };
        let start = Instant::now();
        let profile = kernel.interpret(&launch, &mut memory).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!("{name:<14} {:8.2} million a second", profile.instructions as f64 / seconds / 1e6);
    }
}

fn drop_value<T>(_: Val<'_, T>) {}
