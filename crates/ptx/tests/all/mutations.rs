//! Every mistake of every probe: the interpreter reports it under some schedule, or the instruction is one of the few
//! listed here that its kernel can do without.

use signflash_ptx::Rule;
use signflash_ptx::probe::{self, Probe};

const SCHEDULES: u64 = 12;

const FENCES: &str = "the next covers it; on the others completes no copy";

/// Probe, start of the mistake, how many such, and why nothing can go wrong.
const NOT_NEEDED: [(&str, &str, usize, &str); 22] = [
    ("counters between blocks", "ld.acquire", 1, "the order of additions alone; the last test here tells"),
    ("cp.async.bulk.tensor load, in the middle", "fence.mbarrier_init", 2, FENCES),
    ("cp.async.bulk.tensor load, before the first row", "fence.mbarrier_init", 2, FENCES),
    ("cp.async.bulk.tensor load, nowhere", "fence.mbarrier_init", 2, FENCES),
    ("stores in rings of 1", "fence.mbarrier_init", 2, "no copy completes on them"),
    ("stores in rings of 3", "fence.mbarrier_init", 2, "no copy completes on them"),
    ("stores in rings of 1", "mbarrier.try_wait", 2, "it waits twice, to hold the order"),
    ("stores in rings of 3", "mbarrier.try_wait", 2, "it waits twice, to hold the order"),
    ("stores in rings of 1", "bar.warp.sync", 1, "every lane arrives for itself"),
    ("stores in rings of 3", "bar.warp.sync", 1, "every lane arrives for itself"),
    ("cp.reduce.async.bulk", "bar.sync 0, 128 dropped", 1, "the last: nobody writes any more"),
    ("bar.sync", "bar.sync 0, 128 dropped", 1, "the last: nobody writes any more"),
    ("cp.async in a ring of 1", "bar.sync 0, 64 dropped", 1, "the last take is of an empty group"),
    ("cp.async in a ring of 2", "bar.sync 0, 64 dropped", 1, "the last take is of an empty group"),
    ("cp.async in a ring of 3", "bar.sync 0, 64 dropped", 2, "the last two takes are of empty groups"),
    (
        "cp.async in a ring of 3",
        "cp.async.wait_group 1",
        2,
        "the one before the last take; the last waits for both",
    ),
    ("mbarrier", "fence.mbarrier_init", 1, "no copy completes on it"),
    ("mbarrier, two phases", "fence.mbarrier_init", 1, "no copy completes on them"),
    ("mbarrier, two phases", "mbarrier.try_wait", 1, "the last: nobody writes any more"),
    (
        "cp.async.bulk in a ring of 1",
        "fence.mbarrier_init",
        2,
        "the next covers it; on the others completes no copy",
    ),
    (
        "cp.async.bulk in a ring of 2",
        "fence.mbarrier_init",
        2,
        "the next covers it; on the others completes no copy",
    ),
    (
        "cp.async.bulk in a ring of 3",
        "fence.mbarrier_init",
        2,
        "the next covers it; on the others completes no copy",
    ),
];

/// What the first schedule says that notices.
fn caught(probe: &Probe, which: usize) -> Option<(Rule, String)> {
    let input = probe.input(1);
    (0..SCHEDULES).find_map(|seed| {
        // Kernels are not cloned: the probe's is built once more.
        let kernel = probe::named(&probe.name).expect("it has been built before").kernel;
        let mutation = kernel.mutations().swap_remove(which);
        let trap = probe.interpret_kernel(&kernel.mutate(mutation), &input, seed).err()?;
        Some((trap.fault.rule, trap.to_string()))
    })
}

/// Probe and mistake, with what was reported.
type Seeded = (String, String, Option<(Rule, String)>);

fn all_mistakes() -> Vec<Seeded> {
    let of_probe = |probe: &Probe| -> Vec<_> {
        let mutations = probe.kernel.mutations().into_iter().enumerate();
        let run = |(which, mutation): (usize, signflash_ptx::Mutation)| {
            (probe.name.clone(), mutation.to_string(), caught(probe, which))
        };
        mutations.map(run).collect()
    };
    probe::all().iter().flat_map(of_probe).collect()
}

#[test]
fn every_mistake_that_matters_is_noticed() {
    let mistakes = all_mistakes();
    assert!(mistakes.len() > 100, "only {} mistakes", mistakes.len());
    let mut unnoticed: Vec<(String, String)> = mistakes
        .into_iter()
        .filter(|(.., report)| report.is_none())
        .map(|(probe, mistake, _)| (probe, mistake))
        .collect();
    for (probe, start, count, why) in NOT_NEEDED {
        let before = unnoticed.len();
        unnoticed.retain(|(name, mistake)| name != probe || !mistake.starts_with(start));
        assert_eq!(before - unnoticed.len(), count, "{probe}: {start} ({why})");
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

#[test]
fn mistakes_are_reported_by_the_rule_they_break() {
    for (probe, mistake, report) in all_mistakes() {
        let Some((rule, report)) = report else { continue };
        let expected: &[Rule] = match mistake.split_whitespace().next().unwrap_or_default() {
            "bar.sync" if mistake.contains("more") => &[Rule::Deadlock, Rule::Barrier],
            "bar.sync" => &[Rule::Race, Rule::Uninitialised, Rule::Barrier],
            "bar.warp.sync" => &[Rule::Race],
            "cp.async.commit_group" => &[Rule::InFlight],
            "cp.async.wait_group" => &[Rule::InFlight, Rule::Abandoned],
            "cp.async.bulk.commit_group" => &[Rule::InFlight],
            "cp.async.bulk.wait_group" => &[Rule::Abandoned],
            "cp.async.bulk.wait_group.read" => &[Rule::Abandoned, Rule::InFlight],
            "wgmma.fence.sync.aligned" => &[Rule::MissingFence],
            "wgmma.commit_group.sync.aligned" => &[Rule::InFlight],
            "wgmma.wait_group.sync.aligned" => &[Rule::InFlight, Rule::Abandoned],
            "red.release.gpu.global.add.u32" => &[Rule::Deadlock],
            "bar.arrive" => &[Rule::Deadlock, Rule::Barrier],
            "fence.proxy.async.shared::cta" => &[Rule::MissingFence],
            "mbarrier.init.shared.b64" => &[
                Rule::Barrier,
                Rule::Deadlock,
                Rule::Race,
                Rule::Uninitialised,
                Rule::InFlight,
                Rule::Abandoned,
            ],
            start if start.starts_with("mbarrier.arrive") => &[Rule::Deadlock],
            start if start.starts_with("mbarrier.try_wait") => {
                &[Rule::Deadlock, Rule::Race, Rule::InFlight, Rule::Uninitialised, Rule::Barrier]
            }
            other => panic!("{probe}: a mistake in {other} has no rule here"),
        };
        assert!(expected.contains(&rule), "{probe}: {mistake}: {report}");
        let names_it = ["shared `", "barrier", "wait", "copies", "copy", "register", "product"]
            .iter()
            .any(|name| report.contains(name));
        assert!(names_it, "{report}");
    }
}

#[test]
fn blocks_that_do_not_wait_for_each_other_add_in_any_order() {
    let probe = probe::named("counters between blocks").unwrap();
    let input = probe.input(1);
    let wait = probe.kernel.mutations().iter().position(|m| m.to_string().starts_with("ld.acquire")).unwrap();
    let sum = |kernel: signflash_ptx::Kernel, seed| probe.interpret_kernel(&kernel, &input, seed).unwrap()[0];
    let own = || probe::named(&probe.name).unwrap().kernel;
    let without = || own().mutate(own().mutations().swap_remove(wait));
    let right = 1f32.to_bits();
    assert!((0..SCHEDULES).all(|seed| sum(own(), seed) == right));
    assert!((0..SCHEDULES).any(|seed| sum(without(), seed) != right));
}
