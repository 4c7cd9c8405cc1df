//! What the log was told already.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// After so many different lines the rest is left out: reasons may hold numbers, and a log is not the place for all.
const MOST_LINES: usize = 100;

/// Says each line once.
#[derive(Debug)]
pub(crate) struct Said(Mutex<BTreeSet<String>>);

impl Said {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeSet::new()))
    }

    /// Hands a line to `say`, unless it was before. No lock is held meanwhile: a logger may be slow, or come back to
    /// us.
    pub(crate) fn once(&self, line: String, say: impl FnOnce(&str)) {
        match self.number_if_new(&line) {
            None => {}
            Some(MOST_LINES) => say(&format!("{line} (and no further reasons are reported)")),
            Some(_) => say(&line),
        }
    }

    /// The how manieth line this is; none if it was there, or is one too many.
    fn number_if_new(&self, line: &str) -> Option<usize> {
        // A line is in or not, so a poisoned lock is as good as any.
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = lines.len() < MOST_LINES && lines.insert(line.into());
        is_new.then_some(lines.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: impl IntoIterator<Item = String>) -> Vec<String> {
        let (said, mut heard) = (Said::new(), vec![]);
        lines.into_iter().for_each(|line| said.once(line, |line| heard.push(line.to_owned())));
        heard
    }

    #[test]
    fn each_line_is_said_once_and_a_second_reason_is_said_too() {
        let lines = ["k is empty", "v is empty", "k is empty", "v is empty"].map(String::from);
        assert_eq!(said(lines), ["k is empty", "v is empty"]);
    }

    #[test]
    fn there_is_an_end_and_it_is_said() {
        let heard = said((0..300).map(|i| i.to_string()));
        assert_eq!(heard.len(), 100);
        assert_eq!(
            (&heard[98], &heard[99]),
            (&"98".into(), &"99 (and no further reasons are reported)".into())
        );
    }
}
