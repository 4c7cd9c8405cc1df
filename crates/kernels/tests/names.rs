//! A kernel's name holds exactly what the kernel depends on: no two names print one text, which would be compiled twice, and
//! no name prints two texts, of which the cache would keep the wrong one.

use sha2::{Digest, Sha256};
use signflash_core::{Dropout, Problem, Shape};
use signflash_kernels::{Common, Config, Gpu, Half, Select, kernels_of};
use std::collections::{HashMap, HashSet};

/// Multiples of 16, of 8 and of neither, on both sides of where the tables' rows, boxes of 64 columns, and lanes of statistics
/// end.
const HEAD_DIMS: [usize; 12] = [32, 40, 41, 64, 72, 80, 96, 120, 128, 136, 192, 256];

/// What calls of a GPU have in common, through the choice that calls go through.
fn commons(gpu: Gpu, half: Half) -> HashSet<Common> {
    let mut all = HashSet::new();
    for (head_dim, aligned) in HEAD_DIMS.into_iter().flat_map(|d| [(d, true), (d, false)]) {
        let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(head_dim);
        let settings = [(false, 0.0, 1.0), (true, 0.0, 1.0), (false, 0.1, 1.0), (true, 0.1, -1.0)];
        for (causal, dropout_p, scale) in settings {
            let dropout = Dropout::new(dropout_p, 1, 0).unwrap();
            let problem = Problem::builder(shape).causal(causal).dropout(dropout).softmax_scale(scale);
            all.insert(Select { gpu, aligned }.common(&problem.build().unwrap(), half));
        }
    }
    all
}

/// A kernel's text without its name, and without the lines that say where in our sources an instruction comes from.
fn body(config: &Config) -> [u8; 32] {
    let ptx = config.kernel().ptx().replace(&config.to_string(), "kernel");
    let comes_from = |line: &str| line.trim_start().starts_with(".loc") || line.starts_with(".file");
    let kept: Vec<&str> = ptx.lines().filter(|line| !comes_from(line)).collect();
    Sha256::digest(kept.join("\n")).into()
}

#[test]
fn a_name_prints_one_text_and_a_text_has_one_name() {
    let mut configs = HashSet::new();
    for (gpu, half) in [(Gpu::HOPPER, Half::Bf16), (Gpu::AMPERE, Half::Bf16), (Gpu::SMALL, Half::F16)] {
        configs.extend(commons(gpu, half).into_iter().flat_map(|common| kernels_of(gpu, common)));
    }
    let (mut bodies, mut names) = (HashMap::new(), HashMap::new());
    let mut twins = vec![];
    for config in &configs {
        let (name, body) = (config.to_string(), body(config));
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
