//! ptxas accepts every probe, for the least GPU that it claims to need and for Hopper. Without ptxas the test passes
//! and says so; `SIGNFLASH_REQUIRE_PTXAS=1` makes that a failure.

use signflash_ptx::probe::{self, Probe};
use signflash_ptx::{Needs, Ptxas, Target};
use std::io::Write;

fn ptxas() -> Option<Ptxas> {
    let found = Ptxas::find();
    if found.is_none() {
        assert_ne!(std::env::var("SIGNFLASH_REQUIRE_PTXAS").as_deref(), Ok("1"), "ptxas is required");
        // Not by eprintln!, which tests that pass do not show.
        let _ = writeln!(std::io::stderr(), "skipped: no ptxas; pip install nvidia-cuda-nvcc");
    }
    found
}

fn refusals(ptxas: &Ptxas, probes: &[Probe], target: fn(Needs) -> Target) -> Vec<String> {
    let refusal = |probe: &Probe| {
        let report = ptxas.assemble(&probe.kernel.ptx(), target(probe.kernel.needs()));
        report.err().map(|error| format!("{}: {error}\n{}", probe.name, probe.kernel.ptx()))
    };
    let (left, right) = probes.split_at(probes.len() / 2);
    std::thread::scope(|scope| {
        let right = scope.spawn(|| right.iter().filter_map(refusal).collect::<Vec<_>>());
        let mut refusals: Vec<String> = left.iter().filter_map(refusal).collect();
        refusals.extend(right.join().expect("assembling does not panic"));
        refusals
    })
}

#[test]
fn every_instruction_is_valid_for_the_least_gpu_it_names() {
    let Some(ptxas) = ptxas() else { return };
    let refusals = refusals(&ptxas, &probe::all(), |needs| needs.target);
    assert!(refusals.is_empty(), "{}", refusals.join("\n"));
}

#[test]
fn what_is_for_ampere_is_valid_for_hopper() {
    let Some(ptxas) = ptxas() else { return };
    let mut probes = probe::all();
    probes.retain(|probe| probe.kernel.needs().target == Target::Sm80);
    let refusals = refusals(&ptxas, &probes, |_| Target::Sm90);
    assert!(refusals.is_empty(), "{}", refusals.join("\n"));
}

#[test]
fn what_is_not_valid_is_refused_with_the_log() {
    let Some(ptxas) = ptxas() else { return };
    let ptx = probe::all()[0].kernel.ptx().replace("mov.b32", "mvo.b32");
    let error = ptxas.assemble(&ptx, Target::Sm80).unwrap_err().to_string();
    assert!(error.contains("mvo"), "{error}");
}
