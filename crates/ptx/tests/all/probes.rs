//! What every instruction means: the interpreter against host code that shares nothing with it, on edge cases and
//! under many schedules.

use signflash_ptx::ops::alu;
use signflash_ptx::probe::{self, Probe};

/// The words that differ on some input, under some schedule.
fn failure(probe: &Probe) -> Option<String> {
    (0..8).find_map(|seed| {
        let input = probe.input(seed);
        let output = match probe.interpret(&input, seed) {
            Ok(output) => output,
            Err(trap) => return Some(format!("{}: {trap}", probe.name)),
        };
        let expected = probe.reference(&input)?;
        probe.compare(&expected, &output).err()
    })
}

#[test]
fn every_instruction_computes_what_the_reference_does() {
    let failures: Vec<String> = probe::all().iter().filter_map(failure).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_row_of_the_table_has_a_probe() {
    let probes = probe::all();
    for row in alu::TABLE {
        let name = format!("{}{}", row.text, row.suffix);
        assert!(probes.iter().any(|probe| probe.name == name), "{name}");
    }
}

#[test]
fn every_probe_has_a_reference_and_writes_something() {
    for probe in probe::all() {
        let input = probe.input(1);
        let reference = probe.reference(&input).unwrap_or_else(|| panic!("{} has none", probe.name));
        assert_eq!(reference.len(), probe.output_words, "{}", probe.name);
        assert!(reference.iter().any(|&word| word != 0), "{}", probe.name);
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = probe::all().into_iter().map(|probe| probe.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
