//! Runs this program again for each row of a table, since the peak of a process's memory is never taken back.

use std::process::Command;

/// What one run says of itself: `seconds` of the median step, and `mib` at the peak.
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) mib: f64,
}

/// The most memory that this process has had, in MiB; of Linux.
#[allow(dead_code)] // on GPUs it is theirs that counts
pub(crate) fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says what a process has");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the peak");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number of KiB") / 1024.0
}

/// The middle one of an odd number of times.
pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Says it so that [`table`] understands it.
pub(crate) fn say(measured: Measured) {
    println!("measured {} {}", measured.seconds, measured.mib);
}

/// Runs this program with each kind and number of tokens, the kinds taking turns, and prints the table.
pub(crate) fn table(kinds: [&str; 2], tokens: &[usize], options: &[String]) {
    println!(
        "| tokens | {0} s | {1} s | ratio | {0} MiB | {1} MiB |\n|---:|---:|---:|---:|---:|---:|",
        kinds[0], kinds[1]
    );
    for tokens in tokens {
        let found = kinds.map(|kind| run(kind, *tokens, options));
        let cell = |found: &Option<Measured>, of: fn(&Measured) -> String| {
            found.as_ref().map_or("failed".into(), of)
        };
        let seconds = |found| cell(found, |x| format!("{:.3}", x.seconds));
        let mib = |found| cell(found, |x| format!("{:.0}", x.mib));
        let ratio = match &found {
            [Some(ours), Some(theirs)] => format!("{:.2}", theirs.seconds / ours.seconds),
            _ => "-".into(),
        };
        let [ours, theirs] = &found;
        println!(
            "| {tokens} | {} | {} | {ratio} | {} | {} |",
            seconds(ours),
            seconds(theirs),
            mib(ours),
            mib(theirs)
        );
    }
}

fn run(kind: &str, tokens: usize, options: &[String]) -> Option<Measured> {
    let this = std::env::current_exe().expect("a program knows where it lies");
    let output =
        Command::new(this).arg(kind).arg(tokens.to_string()).args(options).output().expect("it runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("measured "));
    if line.is_none() {
        eprintln!("{kind}, {tokens} tokens: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut numbers = line?.split(' ').map(|x| x.parse().expect("a number"));
    Some(Measured { seconds: numbers.next()?, mib: numbers.next()? })
}
