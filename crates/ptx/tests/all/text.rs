//! The exact PTX of every instruction, and that kernels are well formed around it.
//!
//! `instructions.txt` lists for each probe what its kernel needs and the lines that make it what it is (for a row of
//! the table the row, else everything that is no row of the table). `SIGNFLASH_BLESS=1` writes it anew; read the diff.

use signflash_ptx::ops::alu;
use signflash_ptx::probe::{self, Probe};
use signflash_ptx::{Builder, F32, GlobalAddr, Kernel, LaunchBounds};
use std::collections::BTreeSet;
use std::fmt::Write;

const SNAPSHOT: &str = include_str!("instructions.txt");

/// Indented lines of the body without declarations and `.loc`.
fn body(ptx: &str) -> impl Iterator<Item = &str> {
    let body = ptx.split_once("{\n").expect("a body").1;
    let lines = body.lines().take_while(|line| *line != "}").map(str::trim);
    lines.filter(|line| !line.starts_with(".loc") && !line.starts_with(".reg .b") && !line.is_empty())
}

fn mnemonic(line: &str) -> &str {
    line.split_whitespace().next().expect("a line is not empty")
}

/// Lines of one kind are shown once: those with the same mnemonic or that read the same special register.
fn kind(line: &str) -> String {
    match line.split_once(", ") {
        Some((_, source)) if mnemonic(line) == "mov.u32" => source.to_owned(),
        _ => mnemonic(line).to_owned(),
    }
}

fn describe(probe: &Probe) -> String {
    let needs = probe.kernel.needs();
    let mut text = format!("{}  (PTX {}.{}, {})\n", probe.name, needs.ptx.0, needs.ptx.1, needs.target);
    let row = alu::TABLE.iter().find(|row| probe.name == format!("{}{}", row.text, row.suffix));
    let ptx = probe.kernel.ptx();
    let is_shown = |line: &&str| match row {
        Some(row) => mnemonic(line) == row.text && line.ends_with(&format!("{};", row.suffix)),
        None => {
            let is_row = alu::TABLE.iter().any(|row| row.text == mnemonic(line));
            !is_row && !["ld.param", "ret;", ".", "$L"].iter().any(|start| line.starts_with(start))
        }
    };
    let mut seen = BTreeSet::new();
    let shown = body(&ptx).filter(is_shown);
    let lines: Vec<&str> = match row {
        // What feeds a row comes before it, except for the shift that takes a result apart.
        Some(row) if row.text == "shr.u64" => shown.take(1).collect(),
        Some(_) => shown.last().into_iter().collect(),
        None => shown.filter(|line| seen.insert(kind(line))).collect(),
    };
    for line in lines {
        writeln!(text, "    {line}").expect("writing to a string");
    }
    text
}

#[test]
fn every_instruction_prints_as_listed() {
    let all: String = probe::all().iter().map(describe).collect::<Vec<_>>().join("\n");
    if std::env::var_os("SIGNFLASH_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all/instructions.txt");
        std::fs::write(path, all).expect("the list can be written");
        return;
    }
    for (listed, printed) in SNAPSHOT.split("\n\n").zip(all.split("\n\n")) {
        assert_eq!(listed, printed, "SIGNFLASH_BLESS=1 writes the list anew");
    }
    assert_eq!(SNAPSHOT.len(), all.len(), "probes came or went: SIGNFLASH_BLESS=1 writes the list anew");
}

#[test]
fn the_header_names_the_least_version_and_gpu() {
    for probe in probe::all() {
        let (ptx, needs) = (probe.kernel.ptx(), probe.kernel.needs());
        let header = format!(".version {}.{}\n.target {}\n", needs.ptx.0, needs.ptx.1, needs.target);
        assert!(ptx.contains(&header), "{}", probe.name);
    }
    let head = |name: &str| {
        let probes = probe::all();
        let probe = probes.iter().find(|probe| probe.name == name).expect("a probe of this name");
        probe.kernel.ptx().lines().skip(1).take(3).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(head("add.u32"), ".version 7.0 .target sm_80 .address_size 64");
    assert_eq!(head("movmatrix.trans"), ".version 7.8 .target sm_80 .address_size 64");
    assert_eq!(head("red.global.add of 4 floats"), ".version 8.1 .target sm_90 .address_size 64");
}

#[test]
fn every_branch_goes_to_a_label_that_exists_once() {
    for probe in probe::all() {
        let ptx = probe.kernel.ptx();
        let labels: Vec<&str> = ptx.lines().filter_map(|line| line.strip_suffix(':')).collect();
        let unique: BTreeSet<&str> = labels.iter().copied().collect();
        assert_eq!(labels.len(), unique.len(), "{}", probe.name);
        for line in body(&ptx).filter(|line| line.contains("bra")) {
            let target = line.trim_end_matches(';').split_whitespace().last().expect("a target");
            assert!(unique.contains(target), "{}: {line}", probe.name);
        }
    }
}

#[test]
fn registers_are_declared_and_statements_end() {
    for probe in probe::all() {
        let ptx = probe.kernel.ptx();
        let count = |file: &str| -> u32 {
            let (_, rest) = ptx.split_once(&format!(" %{file}<")).expect("a declaration");
            rest.split_once('>').expect("its end").0.parse().expect("a number")
        };
        let declared = [("rd", count("rd")), ("r", count("r")), ("p", count("p"))];
        for line in body(&ptx).filter(|line| !line.ends_with(':') && !matches!(*line, "{" | "}")) {
            assert!(line.ends_with(';'), "{}: {line}", probe.name);
            for register in line.split('%').skip(1) {
                let end = register.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(register.len());
                let name = &register[..end];
                let Some((file, number)) =
                    name.find(|c: char| c.is_ascii_digit()).map(|at| name.split_at(at))
                else {
                    continue; // a special register
                };
                let (_, limit) = declared.iter().find(|(f, _)| *f == file).expect("a register file");
                assert!(number.parse::<u32>().expect("a number") < *limit, "{}: {line}", probe.name);
            }
        }
    }
}

/// A kernel, the line of its addition and the line of its store.
fn located() -> (Kernel, u32, u32) {
    let mut lines = (0, 0);
    let kernel = Builder::build("located", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, |cta| {
        let x = GlobalAddr::new(cta.param_u64("x"));
        let [value] = cta.threads().load::<F32, 1>(x);
        lines.0 = line!() + 1;
        let sum = value + 1.0;
        lines.1 = line!() + 1;
        cta.threads().store(x, [sum]);
    });
    (kernel, lines.0, lines.1)
}

#[test]
fn every_instruction_carries_the_rust_line_that_made_it() {
    let (kernel, addition, store) = located();
    let ptx = kernel.ptx();
    let before = |what: &str| {
        let (head, _) = ptx.split_once(what).expect("the instruction");
        head.lines().rev().find(|line| line.trim().starts_with(".loc")).expect("a line").trim().to_owned()
    };
    assert!(before("add.rn.f32").starts_with(&format!(".loc 1 {addition} ")), "{}", before("add.rn.f32"));
    assert!(before("st.global").starts_with(&format!(".loc 1 {store} ")), "{}", before("st.global"));
    let file = ptx.lines().find(|line| line.starts_with(".file 1 ")).expect("the file");
    assert!(file.ends_with("tests/all/text.rs\""), "{file}");
    assert!(!ptx.contains("crates/ptx/src"), "lines of the builder are nobody's");
}

#[test]
fn constants_print_as_their_types() {
    let kernel =
        Builder::build("constants", LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 }, |cta| {
            let t = cta.threads();
            let (f, i) = (cta.param_f32("f"), t.index());
            let _ = (f + -0.0, f * f32::NEG_INFINITY, i + u32::MAX, i.cast::<signflash_ptx::S32>().lt(-5));
        });
    let ptx = kernel.ptx();
    for text in [", 0f80000000;", ", 0fFF800000;", ", 4294967295;", ", -5;"] {
        assert!(ptx.contains(text), "{text} is not in\n{ptx}");
    }
}
