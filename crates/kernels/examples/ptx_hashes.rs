//! A line for each kernel of the tables: the SHA-256 of its PTX without its name, and the name. Whether a change is neutral
//! is seen by comparing two lists: `cargo run -p signflash-kernels --example ptx_hashes > hashes.txt`, before and after.
//! With `--bodies` names are left out and lines sorted, for changes that rename kernels.
use sha2::{Digest, Sha256};
use signflash_kernels::{Gpu, Half, variants};
use std::collections::BTreeSet;

fn main() {
    let bodies = std::env::args().any(|word| word == "--bodies");
    let mut lines = BTreeSet::new();
    for gpu in [Gpu::HOPPER, Gpu::AMPERE, Gpu::SMALL] {
        for half in [Half::Bf16, Half::F16] {
            for config in variants(gpu, half) {
                let name = config.to_string();
                let body = config.kernel().ptx().replace(&name, "kernel");
                let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
                lines.insert(if bodies { hash } else { format!("{name} {hash}") });
            }
        }
    }
    lines.iter().for_each(|line| println!("{line}"));
}
