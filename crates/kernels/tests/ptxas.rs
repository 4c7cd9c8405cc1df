//! Kernels of the tables are accepted by ptxas, which takes at most a few registers' worth of local memory, and of
//! Hopper's own none. Without ptxas the test passes and says so; `SIGNFLASH_REQUIRE_PTXAS=1` makes that a failure.
//!
//! ptxas takes a second a kernel, so that `cargo test` asks about those of three head_dims that hold most: causal
//! and windows, with dropout; about windows of packed sequences with `SIGNFLASH_TEST=full`, as in `.ci/run`, in bf16. With `SIGNFLASH_TEST=all` every kernel of [`variants`] is tried, which takes minutes: for whoever
//! changes kernels.

use signflash_kernels::{Config, Gpu, Half, variants};
use signflash_ptx::{Ptxas, Target};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;

/// What kernels may spill that read biases and masks number by number, as lanes have them: their names' beginning, what they
/// contain, the target, and how many bytes a thread. What is read of a step waits in registers until a product is there. The
/// engine's copies (a bias of whole pieces of 16 bytes on Hopper) need none.
const BY_LANES: [(&str, &str, Target, u32); 8] = [
    ("sf_fwd_", "bias_f32", Target::Sm80, 700),
    ("sf_fwd_", "", Target::Sm80, 280),
    ("sf_fwd_", "bias_f32", Target::Sm90, 700),
    ("sf_fwd_", "", Target::Sm90, 280),
    ("sf_bwd_keys_", "", Target::Sm90, 104),
    ("sf_fwd90_", "bias_f32", Target::Sm90a, 40),
    ("sf_probs90_", "bias_f32", Target::Sm90a, 288),
    ("sf_bwd90_keys_", "", Target::Sm90a, 56),
];

/// What ptxas may spill, in bytes a thread, per target: it prefetches until it is a few registers short
/// (`docs/gpu.md` has the most that any kernel spills). More would be a mistake of ours.
fn most_spilled_bytes(name: &str, target: Target) -> u32 {
    let is_by_lanes = ["bias", "mask"].iter().any(|what| name.contains(what))
        && !["f16box", "_padded"].iter().any(|what| name.contains(what));
    let mut listed = BY_LANES.iter().filter(|(start, what, of, _)| {
        is_by_lanes && name.starts_with(start) && name.contains(what) && *of == target
    });
    if let Some((.., most)) = listed.next() {
        return *most;
    }
    match target {
        Target::Sm80 => 72,
        Target::Sm90 => 40,
        Target::Sm90a => 0,
    }
}

fn ptxas() -> Option<Ptxas> {
    let found = Ptxas::find();
    if found.is_none() {
        assert_ne!(std::env::var("SIGNFLASH_REQUIRE_PTXAS").as_deref(), Ok("1"), "ptxas is required");
        // Not by eprintln!, which tests that pass do not show.
        let _ = writeln!(std::io::stderr(), "skipped: no ptxas; pip install nvidia-cuda-nvcc");
    }
    found
}

/// How many are tried.
#[derive(Clone, Copy, PartialEq)]
enum Tried {
    Few,
    PackedWindowsToo,
    All,
}

/// Whether a kernel is tried where not all are.
fn is_representative(name: &str, tried: Tried) -> bool {
    // Windows hold two numbers more than causality, whatever the head_dim.
    let is_packed_window = name.contains("_window_") && name.contains("_packed");
    let is_tried_too = tried == Tried::PackedWindowsToo && name.contains("_bf16_");
    let of_window =
        name.contains("_window_drop_") && name.contains("_d128_") && (!is_packed_window || is_tried_too);
    // What becomes of a score is the same instructions for every head_dim and format.
    let is_plain = !["_softcap", "_alibi", "bias", "mask", "_sinks"].iter().any(|kind| name.contains(kind));
    let is_dbias = name.starts_with("sf_dbias");
    let is_of_one = is_plain || (name.contains("_d128_") && (name.contains("_bf16_") || is_dbias));
    let holds_most = is_of_one && (name.contains("_causal_drop_") || of_window) && !name.contains("_neg");
    let of_scores = ["_d64_", "_d128_", "_d256_"].iter().any(|head_dim| name.contains(head_dim));
    // Work on rows knows neither windows nor dropout, and what lists tiles is one kernel.
    let is_wide = name.contains("_wide") || name.contains("_added");
    if is_wide && (tried == Tried::Few || !name.contains("_bf16_")) {
        return false; // how results leave, which is the same for both formats
    }
    let of_rows = ["sf_tiles", "sf_padding"].contains(&name)
        || ["sf_delta_", "sf_dsinks"].iter().any(|kind| name.starts_with(kind))
        || (name.starts_with("sf_convert_dq_") && of_scores);
    of_rows || (holds_most && of_scores)
}

/// Kernels by name, each with the GPUs' target or a later one that it needs.
fn kernels(tried: Tried) -> BTreeMap<String, (Config, Target)> {
    let gpus = [(Gpu::HOPPER, Target::Sm90), (Gpu::AMPERE, Target::Sm80), (Gpu::SMALL, Target::Sm80)];
    let mut all = BTreeMap::new();
    for (gpu, target) in gpus {
        for config in [Half::Bf16, Half::F16].into_iter().flat_map(|half| variants(gpu, half)) {
            let name = config.to_string();
            if tried == Tried::All || is_representative(&name, tried) {
                all.entry(format!("{target}: {name}")).or_insert((config, target));
            }
        }
    }
    all
}

/// What is wrong with a kernel, if anything.
fn judge(ptxas: &Ptxas, config: &Config, least: Target) -> Option<String> {
    let kernel = config.kernel();
    let target = least.max(kernel.needs().target);
    let report = match ptxas.assemble(&kernel.ptx(), target) {
        Ok(report) => report,
        Err(error) => return Some(format!("{config}: {error}")),
    };
    // Hopper's own kernels lose most if products are put one behind the other.
    if target == Target::Sm90a && report.log.contains("(C75") {
        return Some(format!("{config}: {}", report.log));
    }
    let (spilled, most) = (report.spill_store_bytes, most_spilled_bytes(&config.to_string(), target));
    (spilled > most).then(|| format!("{config} for {target}: {spilled} bytes spilled, {most} are expected"))
}

#[test]
fn kernels_are_accepted_and_keep_their_registers() {
    let Some(ptxas) = ptxas() else { return };
    let tried = kernels(match std::env::var("SIGNFLASH_TEST").as_deref() {
        Ok("all") => Tried::All,
        Ok("full") => Tried::PackedWindowsToo,
        _ => Tried::Few,
    });
    let (next, failures) = (Mutex::new(tried.values()), Mutex::new(vec![]));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((config, target)) = next.lock().ok().and_then(|mut next| next.next()) {
                    let failure = judge(&ptxas, config, *target);
                    failures.lock().expect("no other thread fails").extend(failure);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread failed");
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), tried.len());
}

#[test]
fn those_that_are_tried_are_of_every_kind_target_and_format() {
    let (few, all) = (kernels(Tried::Few), kernels(Tried::All));
    assert!(few.len() * 3 < all.len(), "{} of {}", few.len(), all.len());
    let more = kernels(Tried::PackedWindowsToo);
    // Packed windows, and f32 results, which leave in two ways.
    assert!(few.len() + 6 <= more.len() && more.len() <= few.len() + 120, "{} and {}", few.len(), more.len());
    let kind = |(name, (config, least)): (&String, &(Config, Target))| {
        let kernel = name.split("_bf16").next().and_then(|name| name.split("_f16").next());
        let half = if name.contains("_bf16_") { Half::Bf16 } else { Half::F16 };
        let target = (*least).max(config.kernel().needs().target);
        format!("{} {} {target}", kernel.unwrap_or(name), half.name())
    };
    let kinds = |kernels: &BTreeMap<String, (Config, Target)>| {
        kernels.iter().map(kind).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(kinds(&few), kinds(&all));
}
