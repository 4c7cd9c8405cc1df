//! Every kernel of the tables is accepted by ptxas, which takes at most a few registers' worth of local memory. Without
//! ptxas the test passes and says so; `SIGNFLASH_REQUIRE_PTXAS=1` makes that a failure.

use signflash_kernels::{Gpu, Half, variants};
use signflash_ptx::{Ptxas, Target};
use std::io::Write;
use std::sync::Mutex;

/// ptxas prefetches until it is a few registers short (see `docs/gpu.md`); more would be a mistake of ours.
const MOST_SPILLED_BYTES: u32 = 32;

fn ptxas() -> Option<Ptxas> {
    let found = Ptxas::find();
    if found.is_none() {
        assert_ne!(std::env::var("SIGNFLASH_REQUIRE_PTXAS").as_deref(), Ok("1"), "ptxas is required");
        // Not by eprintln!, which tests that pass do not show.
        let _ = writeln!(std::io::stderr(), "skipped: no ptxas; pip install nvidia-cuda-nvcc");
    }
    found
}

#[test]
fn every_kernel_is_accepted_and_keeps_its_registers() {
    let Some(ptxas) = ptxas() else { return };
    let hopper = variants(Gpu::HOPPER, Half::Bf16).into_iter().map(|config| (config, Target::Sm90));
    let small = variants(Gpu::SMALL, Half::F16).into_iter().map(|config| (config, Target::Sm80));
    let all: Vec<_> = hopper.chain(small).collect();
    let (next, failures) = (Mutex::new(all.iter()), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((config, target)) = next.lock().ok().and_then(|mut next| next.next()) {
                    let kernel = config.kernel();
                    let target = (*target).max(kernel.needs().target);
                    let spilled = match ptxas.assemble(&kernel.ptx(), target) {
                        // Hopper's own kernels lose most if products are put one behind the other.
                        Ok(report) if target == Target::Sm90a && report.log.contains("(C75") => {
                            format!("{config}: {}", report.log)
                        }
                        Ok(report) if target == Target::Sm90a && report.spill_store_bytes == 0 => continue,
                        Ok(report) if target == Target::Sm90a => {
                            format!("{config}: {} bytes spilled", report.spill_store_bytes)
                        }
                        Ok(report)
                            if report.spill_store_bytes <= MOST_SPILLED_BYTES || target == Target::Sm80 =>
                        {
                            continue;
                        }
                        Ok(report) => format!("{config}: {} bytes spilled", report.spill_store_bytes),
                        Err(error) => format!("{config}: {error}"),
                    };
                    failures.lock().expect("no other thread fails").push(spilled);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread failed");
    assert!(failures.is_empty(), "of {}: {failures:#?}", all.len());
}
