//! What ptxas makes of every kernel: registers, spills, shared memory. Writes the table of `benchmarks/kernels.md`:
//! `cargo run --release -p signflash-kernels --example ptxas_table > benchmarks/kernels.md`. With words, only of kernels
//! whose names have them all.
use signflash_kernels::{Config, Gpu, Half, variants};
use signflash_ptx::{Needs, Ptxas, Report, Target};
use std::error::Error;
use std::sync::Mutex;

fn main() -> Result<(), Box<dyn Error>> {
    let ptxas =
        Ptxas::find().ok_or("no ptxas: name it in SIGNFLASH_PTXAS, or pip install nvidia-cuda-nvcc")?;
    println!("# Kernels, as ptxas compiles them\n");
    println!("`cargo run --release -p signflash-kernels --example ptxas_table > benchmarks/kernels.md`\n");
    println!(
        "{}. Each kernel for its least target, those for Hopper for sm_90 at least. Registers are those that a thread starts \
         with: kernels of sm_90a (sf_fwd90, sf_probs90, sf_bwd90) then share them out, r in their name being what those that multiply get.\n",
        ptxas.version()
    );
    for (title, gpu, half) in [
        ("Hopper, bf16", Gpu::HOPPER, Half::Bf16),
        ("Hopper, f16", Gpu::HOPPER, Half::F16),
        ("99 KiB of shared memory (compute capability 8.6, 8.9, 12.0), bf16", Gpu::SMALL, Half::Bf16),
    ] {
        table(&ptxas, title, gpu, half)?;
    }
    Ok(())
}

fn table(ptxas: &Ptxas, title: &str, gpu: Gpu, half: Half) -> Result<(), Box<dyn Error>> {
    println!("## {title}\n");
    println!("| kernel | threads | smem bytes | PTX | target | registers | spill stores, loads |");
    println!("|---|---|---|---|---|---|---|");
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |config: &Config| words.iter().all(|word| config.to_string().contains(word));
    let all: Vec<Config> = variants(gpu, half).into_iter().filter(is_asked).collect();
    let rows = Mutex::new(vec![None; all.len()]);
    let next = Mutex::new(0..all.len());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(i) = next.lock().ok().and_then(|mut next| next.next()) {
                    let row =
                        row(ptxas, &all[i], gpu).unwrap_or_else(|error| format!("| {} | {error} |", all[i]));
                    rows.lock().expect("no other thread fails")[i] = Some(row);
                    eprintln!("{}", all[i]);
                }
            });
        }
    });
    for row in rows.into_inner()?.into_iter().flatten() {
        println!("{row}");
    }
    println!();
    Ok(())
}

fn row(ptxas: &Ptxas, config: &Config, gpu: Gpu) -> Result<String, Box<dyn Error>> {
    let kernel = config.kernel();
    let Needs { ptx: (major, minor), target } = kernel.needs();
    let target = if gpu.compute_capability >= (9, 0) { target.max(Target::Sm90) } else { target };
    let Report { registers, spill_store_bytes, spill_load_bytes, .. } =
        ptxas.assemble(&kernel.ptx(), target)?;
    let (threads, smem) = (kernel.block_threads(), kernel.smem_bytes());
    Ok(format!(
        "| `{config}` | {threads} | {smem} | {major}.{minor} | {target} | {registers} | {spill_store_bytes}, {spill_load_bytes} |"
    ))
}
