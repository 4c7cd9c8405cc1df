//! What instructions cost on Hopper beside products (wgmma), and what they cost the products:
//! `cargo run --release -p signflash-cuda --example beside_products`.
//!
//! A block a multiprocessor: two warpgroups multiply, 64 x 128 x 128 at a time, so that the tensor cores are always
//! busy, and two others repeat one instruction each in eight independent chains, two warps a scheduler. Cycles are
//! the multiprocessor's own clock.
use signflash_cuda::{Arg, Device, DeviceBuffer, Function, Program, Stream};
use signflash_ptx::{
    B32, BoxTile, Builder, Columns, F32, GlobalAddr, Half, Kernel, LaunchBounds, Product, Rows, Thread, U32,
    Val, Var,
};
use std::error::Error;

/// Warpgroups that multiply: while one waits the other's products go on.
const MULTIPLYING: u32 = 2;
/// Warpgroups that repeat an instruction.
const WARPGROUPS: u32 = 2;
/// Of a product.
const DEPTH: u32 = 128;
const CHAINS: u32 = 8;
/// Instructions of each chain in a round.
const UNROLLED: u32 = 8;
const ROUNDS: u32 = 500;
/// Products beside instructions, enough to outlast them; and of which the time is taken.
const PRODUCTS: u32 = 20_000;
const TIMED_PRODUCTS: u32 = 4_000;

/// Whether the left operand of the products is in shared memory or in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Shared,
    Registers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Lop3,
    Fmnmx,
    Prmt,
    Imad,
    ImadWide,
    ImadHi,
    LopAdd,
    Ffma,
    Fadd,
    Ex2,
}

const OPS: [Op; 10] = [
    Op::Lop3,
    Op::Fmnmx,
    Op::Prmt,
    Op::Imad,
    Op::ImadWide,
    Op::ImadHi,
    Op::LopAdd,
    Op::Ffma,
    Op::Fadd,
    Op::Ex2,
];

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::open(0)?;
    let stream = Stream::new(&device)?;
    let clocks = DeviceBuffer::zeroed(&stream, 4 * 4096)?;
    println!(
        "left operand, instruction: cycles alone, beside products; cycles that one takes from the products"
    );
    for left in [Left::Shared, Left::Registers] {
        for op in OPS {
            let kernel = kernel(op, left);
            let function = Function::compile(&device, &Program::from(&kernel))?;
            let run = |rounds: u32, products: u32| -> Result<[f64; 2], Box<dyn Error>> {
                let args = [Arg::U64(clocks.ptr()), Arg::U32(rounds), Arg::U32(products)];
                for _ in 0..2 {
                    // SAFETY: the kernel writes 4 bytes a thread of one block to the buffer, which has room for more.
                    unsafe { function.launch(&stream, device.info().sm_count, &args)? };
                }
                let bytes = clocks.to_host(&stream)?;
                let at = |thread: usize| {
                    f64::from(u32::from_le_bytes(bytes[4 * thread..][..4].try_into().unwrap()))
                };
                Ok([at(0), at(128 * MULTIPLYING as usize)])
            };
            let count = f64::from(ROUNDS * UNROLLED * CHAINS * WARPGROUPS);
            let ([_, alone], [_, beside]) = (run(ROUNDS, 0)?, run(ROUNDS, PRODUCTS)?);
            let ([bare, _], [slowed, _]) = (run(0, TIMED_PRODUCTS)?, run(ROUNDS, TIMED_PRODUCTS)?);
            let taken = (slowed - bare) / count;
            println!("{left:?} {op:?}: {:.2} {:.2}; {taken:.2}", alone / count, beside / count);
        }
    }
    Ok(())
}

/// The first thread of each warpgroup writes how many cycles its warpgroup took.
fn kernel(op: Op, left: Left) -> Kernel {
    let bounds = LaunchBounds { block_threads: 128 * (MULTIPLYING + WARPGROUPS), min_blocks_per_sm: 1 };
    Builder::build("beside_products", bounds, |cta| {
        let clocks = GlobalAddr::new(cta.param_u64("clocks"));
        let (rounds, products) = (cta.param_u32("rounds"), cta.param_u32("products"));
        let tile = cta.smem("tile", 65536, 1024);
        let (t, wg) = (cta.threads(), cta.warpgroups());
        for i in 0..65536 / (16 * bounds.block_threads) {
            let zero = t.u32(0);
            t.store(tile.plus(t.index() * 16).at(i * 16 * bounds.block_threads), [zero; 4]);
        }
        t.fence_proxy_async();
        cta.sync();
        let done = t.u32(0).var();
        let start = t.clock();
        wg.when_else(
            wg.index().lt(MULTIPLYING),
            |wg| {
                let mut acc = wg.acc(128);
                acc.clear();
                let operand: Vec<[Var<'_, B32>; 4]> =
                    (0..DEPTH / 16).map(|_| [(); 4].map(|()| t.u32(0).cast::<B32>().var())).collect();
                let right = BoxTile::new(tile.at(16384), 128);
                wg.while_(
                    || done.get().lt(products),
                    |wg| {
                        let (rows, columns) = match left {
                            Left::Shared => (Rows::Tile(BoxTile::new(tile, 64)), Columns::OfRows(right)),
                            Left::Registers => (Rows::Registers(&operand), Columns::Plain(right)),
                        };
                        let product = Product {
                            rows,
                            columns,
                            depth: DEPTH,
                            half: Half::Bf16,
                            add: true,
                            columns_at_once: None,
                        };
                        wg.multiply(&mut acc, &product).wait();
                        done.set(done.get() + 1);
                    },
                );
                report(t, clocks, t.clock() - start, acc.at(0, 0).get().cast());
            },
            |wg| {
                let y = t.index() * 77 + rounds;
                let words: Vec<Var<'_, U32>> = (0..CHAINS).map(|i| (t.index() * (i + 3)).var()).collect();
                let floats: Vec<Var<'_, F32>> =
                    (0..CHAINS).map(|i| (t.index() * (i + 3)).to_f32().var()).collect();
                wg.while_(
                    || done.get().lt(rounds),
                    |_| {
                        for (word, float) in (0..UNROLLED).flat_map(|_| words.iter().zip(&floats)) {
                            step(op, word, float, y, rounds);
                        }
                        done.set(done.get() + 1);
                    },
                );
                let sum = words
                    .iter()
                    .zip(&floats)
                    .fold(t.u32(0), |sum, (word, float)| sum + word.get() + float.get().cast::<U32>());
                report(t, clocks, t.clock() - start, sum);
            },
        );
    })
}

/// Cycles by one thread of a warpgroup; what it computed, so that it is computed, by all.
fn report<'k>(t: Thread<'k>, clocks: GlobalAddr<'k>, cycles: Val<'k, U32>, result: Val<'k, U32>) {
    let own = clocks.plus((t.index() * 4).widen());
    t.when((t.index() & 127).eq(0), |t| t.store(own, [cycles]));
    t.store(own.at(8192), [result]);
}

/// One instruction of a chain.
fn step<'k>(op: Op, word: &Var<'k, U32>, float: &Var<'k, F32>, y: Val<'k, U32>, z: Val<'k, U32>) {
    let (x, f) = (word.get(), float.get());
    match op {
        Op::Lop3 => word.set(x.cast::<B32>().majority(y.cast::<B32>(), z.cast::<B32>()).cast::<U32>()),
        Op::Fmnmx => float.set(-f.max(y.to_f32())),
        Op::Prmt => word.set(x.cast::<B32>().permute(y.cast::<B32>(), 0x2143u32).cast::<U32>()),
        Op::Imad => word.set(x * y),
        Op::ImadWide => {
            // Both halves are used, by a LOP3 that counts as part of it.
            let product = x.mul_wide(0xD251_1F53u32);
            word.set((product >> 32u32).low() ^ product.low());
        }
        Op::ImadHi => word.set(x.mul_hi(0xD251_1F53u32)),
        // Two instructions, counted as one: a LOP3 and a VIADD.
        Op::LopAdd => word.set((x ^ 0x1234_5677u32) + 0x9351_1F53u32),
        Op::Ffma => float.set(f.mul_add(y.to_f32(), 0.5f32)),
        Op::Fadd => float.set(f + y.to_f32()),
        Op::Ex2 => float.set(f.ex2()),
    }
}
