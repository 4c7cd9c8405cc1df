//! A line for each kernel of the tables: its name, and the SHA-256 of its instructions: of its PTX without the name
//! and without the lines that say where in our sources an instruction comes from. Whether a change is neutral is seen
//! by comparing two lists: `cargo run -p signflash-kernels --example ptx_hashes > hashes.txt`, before and after. With
//! `--bodies` names are left out and lines sorted, for changes that rename kernels.
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
                let ptx = config.kernel().ptx().replace(&name, "kernel");
                let is_instruction = |line: &&str| {
                    !line.trim_start().starts_with(".loc") && !line.trim_start().starts_with(".file")
                };
                let body: Vec<&str> = ptx.lines().filter(is_instruction).collect();
                let hash: String =
                    Sha256::digest(body.join("\n")).iter().map(|byte| format!("{byte:02x}")).collect();
                lines.insert(if bodies { hash } else { format!("{name} {hash}") });
            }
        }
    }
    lines.iter().for_each(|line| println!("{line}"));
}
