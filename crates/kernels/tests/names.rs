//! A kernel's name holds exactly what the kernel depends on: no two names print one text, which would be compiled
//! twice, and no name prints two texts, of which the cache would keep the wrong one. Building them all also asks each for
//! no more shared memory than is planned: [`Config::kernel`] asserts it.

use sha2::{Digest, Sha256};
use signflash_core::Dtype;
use signflash_kernels::{BandKind, Calls, Config, Gpu, Half, Masks, Product, ScoreKind, Stored};
use std::collections::{HashMap, HashSet};

/// Multiples of 16, of 8 and of neither, on both sides of where the tables' rows, boxes of 64 columns, and lanes of
/// statistics end.
const HEAD_DIMS: [usize; 12] = [32, 40, 41, 64, 72, 80, 96, 120, 128, 136, 192, 256];

/// Of q and of v: on both sides of where these end, and some that are padded to the same.
const PAIRS: [(usize, usize); 9] =
    [(192, 128), (136, 128), (128, 192), (64, 128), (120, 64), (40, 48), (40, 72), (41, 33), (64, 192)];

/// Calls of every kind.
fn calls(half: Half) -> Vec<Calls> {
    let mut all = vec![];
    for (head_dim, aligned) in HEAD_DIMS.into_iter().flat_map(|d| [(d, true), (d, false)]) {
        let kind = |product, alibi| ScoreKind { product, alibi };
        let settings = [
            (BandKind::Full, false, ScoreKind::SCALED, false),
            (BandKind::Right, false, ScoreKind::SCALED, true),
            (BandKind::Both, false, kind(Product::Capped, false), false),
            (BandKind::Full, true, kind(Product::Scaled, true), false),
            (BandKind::Right, true, kind(Product::Negated, false), false),
            (BandKind::Both, true, kind(Product::Capped, true), true),
        ];
        for (band, dropout, kind, sinks) in settings {
            let calls = Calls { band, dropout, kind, sinks, aligned, ..Calls::of(half, head_dim) };
            all.extend([calls, Calls { packed: true, ..calls }, Calls { stored: Stored::Wide, ..calls }]);
        }
    }
    // A bias in boxes, one by lanes, and masks.
    for head_dim in [40, 64, 128, 256] {
        let calls = Calls { dropout: true, ..Calls::of(half, head_dim) };
        let bias = |dtype| Calls { bias: Some(dtype), ..calls };
        let mask = |masks| Calls { mask: Some(masks), ..calls };
        all.extend([Dtype::F16, Dtype::Bf16, Dtype::F32].map(bias));
        all.extend([Masks::OfKeys, Masks::OfQueries].map(mask));
        all.push(Calls { mask: Some(Masks::OfKeys), packed: true, ..bias(Dtype::F16) });
    }
    for ((head_dim, head_dim_v), aligned) in PAIRS.into_iter().flat_map(|dims| [(dims, true), (dims, false)])
    {
        let calls = Calls { head_dim_v, aligned, dropout: true, ..Calls::of(half, head_dim) };
        all.extend([
            calls,
            Calls { packed: true, ..calls },
            Calls { stored: Stored::Added, packed: true, ..calls },
        ]);
    }
    all
}

/// A digest of a kernel's text without its name, and without the lines that say where in our sources an instruction
/// comes from.
fn body(config: &Config) -> [u8; 32] {
    let (name, ptx) = (config.to_string(), config.kernel().ptx());
    let mut digest = Sha256::new();
    // The name stands in what comes before the instructions.
    let (head, instructions) = ptx.split_at(ptx.find("\n{\n").expect("a body"));
    digest.update(head.replace(&name, "kernel"));
    let comes_from = |line: &str| line.starts_with("\t.loc ") || line.starts_with(".file ");
    instructions.split_inclusive('\n').filter(|line| !comes_from(line)).for_each(|line| digest.update(line));
    digest.finalize().into()
}

/// The name and the body of each, which all cores print.
fn printed(configs: &[&Config]) -> Vec<(String, [u8; 32])> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let print = |part: &[&Config]| -> Vec<_> {
        part.iter().map(|config| (config.to_string(), body(config))).collect()
    };
    std::thread::scope(|scope| {
        let parts = configs.chunks(configs.len().div_ceil(cores).max(1));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || print(part))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("kernels print")).collect()
    })
}

#[test]
fn a_name_prints_one_text_and_a_text_has_one_name() {
    let mut configs = HashSet::new();
    for (gpu, half) in [(Gpu::HOPPER, Half::Bf16), (Gpu::AMPERE, Half::Bf16), (Gpu::SMALL, Half::F16)] {
        configs.extend(calls(half).into_iter().flat_map(|calls| calls.kernels(gpu)));
    }
    let (mut bodies, mut names) = (HashMap::new(), HashMap::new());
    let mut twins = vec![];
    for (name, body) in printed(&configs.iter().collect::<Vec<_>>()) {
        if let Some(other) = bodies.insert(name.clone(), body).filter(|other| *other != body) {
            twins.push(format!("{name} prints {other:x?} and {body:x?}"));
        }
        if let Some(other) = names.insert(body, name.clone()).filter(|other| *other != name) {
            twins.push(format!("{name} prints what {other} prints"));
        }
    }
    assert!(twins.is_empty(), "{} of {}: {twins:#?}", twins.len(), configs.len());
    assert_eq!(bodies.len(), configs.len(), "configurations that differ have names that differ");
    assert!(configs.len() > 800, "{}", configs.len());
}
