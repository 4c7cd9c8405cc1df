//! A table of training steps. This program is run again for each cell of memory, since the peak of a process's is never
//! taken back.

use std::process::Command;
use std::time::Instant;

/// A training step.
pub(crate) type Step = Box<dyn FnMut()>;

/// The most memory that this process has had, in MiB; of Linux.
#[allow(dead_code)] // on GPUs it is theirs that counts
pub(crate) fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says what a process has");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the peak");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number of KiB") / 1024.0
}

/// What a run by itself says: the seconds of the middle one of three steps, after one.
pub(crate) fn alone(mut step: Step) -> f64 {
    step();
    median((0..3).map(|_| seconds_of(&mut step)).collect())
}

/// Steps of both, taking turns: the seconds of the middle one of five, after one.
pub(crate) fn turns(mut steps: [Step; 2]) -> [f64; 2] {
    let mut seconds = [Vec::new(), Vec::new()];
    steps.iter_mut().for_each(|step| step());
    for _ in 0..5 {
        for (step, seconds) in steps.iter_mut().zip(&mut seconds) {
            seconds.push(seconds_of(step));
        }
    }
    seconds.map(median)
}

fn seconds_of(step: &mut Step) -> f64 {
    let start = Instant::now();
    step();
    start.elapsed().as_secs_f64()
}

/// The middle one of an odd number.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Says what one kind by itself took, to people and to [`table`].
pub(crate) fn say_alone(kind: &str, tokens: usize, seconds: f64, mib: f64) {
    println!("{kind}, {tokens} tokens: {seconds:.5} s a step, {mib:.0} MiB at the peak");
    say([seconds, mib]);
}

/// Says two numbers so that [`table`] understands them: seconds and MiB of one kind, or seconds of both.
pub(crate) fn say([first, second]: [f64; 2]) {
    println!("measured {first} {second}");
}

/// Runs this program for each number of tokens: each kind by itself, for its memory, and then both in turns, for their
/// seconds; where one of them fails, seconds are those of the other by itself. Prints the table.
pub(crate) fn table(kinds: [&str; 2], tokens: &[usize], options: &[String]) {
    println!(
        "| tokens | {0} s | {1} s | ratio | {0} MiB | {1} MiB |\n|---:|---:|---:|---:|---:|---:|",
        kinds[0], kinds[1]
    );
    for tokens in tokens {
        let alone = kinds.map(|kind| run(kind, *tokens, options));
        let both = if alone.contains(&None) { None } else { run("turns", *tokens, options) };
        let seconds = [0, 1].map(|n| both.map(|both| both[n]).or(alone[n].map(|alone| alone[0])));
        let ratio = both.map_or("-".into(), |[ours, theirs]| format!("{:.2}", theirs / ours));
        let cell = |number: Option<f64>, decimals: usize| {
            number.map_or("failed".into(), |number| format!("{number:.decimals$}"))
        };
        let digits = |seconds: Option<f64>| if seconds.is_some_and(|x| x < 0.1) { 5 } else { 3 };
        let cells =
            |n: usize| (cell(seconds[n], digits(seconds[n])), cell(alone[n].map(|alone| alone[1]), 0));
        let [ours, theirs] = [0, 1].map(cells);
        println!("| {tokens} | {} | {} | {ratio} | {} | {} |", ours.0, theirs.0, ours.1, theirs.1);
    }
}

fn run(kind: &str, tokens: usize, options: &[String]) -> Option<[f64; 2]> {
    let this = std::env::current_exe().expect("a program knows where it lies");
    let output =
        Command::new(this).arg(kind).arg(tokens.to_string()).args(options).output().expect("it runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("measured "));
    if line.is_none() {
        eprintln!("{kind}, {tokens} tokens: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut numbers = line?.split(' ').map(|x| x.parse().expect("a number"));
    Some([numbers.next()?, numbers.next()?])
}
