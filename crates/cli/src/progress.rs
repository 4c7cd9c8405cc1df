//! Progress on stderr: only if somebody watches, and only of what takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between two pictures of it.
const FRAME: Duration = Duration::from_millis(100);

/// A line of progress; gone when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    clock: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// A bar of `steps` steps.
    pub fn bar(label: &str, steps: u64, quiet: bool) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos} of {len}, {elapsed}");
        Self::start(label, Some(steps), style.ok().map(|style| style.progress_chars("=> ")), quiet)
    }

    /// A sign of life, for work that cannot be counted.
    pub fn spinner(label: &str, quiet: bool) -> Self {
        Self::start(label, None, ProgressStyle::with_template("{spinner} {msg}  {elapsed}").ok(), quiet)
    }

    fn start(label: &str, steps: Option<u64>, style: Option<ProgressStyle>, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(steps, ProgressDrawTarget::hidden());
        bar.set_message(label.to_string());
        if let Some(style) = style {
            bar.set_style(style);
        }
        let watched = !quiet && stderr().is_terminal();
        let clock = watched.then(|| show_after_a_while(bar.clone())).flatten();
        Self { bar, clock }
    }

    /// So many more steps are done.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

/// Nothing where the system starts no thread for it.
fn show_after_a_while(bar: ProgressBar) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (done, wait) = channel();
    let show = move || {
        let mut patience = PATIENCE;
        while wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            if patience == PATIENCE {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            patience = FRAME;
            bar.tick();
        }
    };
    let clock = thread::Builder::new().name("progress".into()).spawn(show).ok()?;
    Some((done, clock))
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, clock)) = self.clock.take() {
            drop(done);
            // The thread only sleeps and draws; if it panicked, the work is done all the same.
            let _ = clock.join();
        }
        self.bar.finish_and_clear();
    }
}
