//! Sign bits, beside the file's and the formula's.

use super::report::Report;
use super::{SIGNBIT, Verify};
use crate::errors::Error;
use crate::files::FileElement;
use signflash_core::{TensorName, TensorRef};

impl<T: FileElement> Verify<'_, T> {
    /// Compares sign bits, as they stand in the probs that the engine wrote, with the file's and with the formula.
    pub(super) fn sign_bits(&self, report: &mut Report) -> Result<Vec<String>, Error> {
        let problem = self.problem;
        let Some(probs) = &self.results.probs else {
            return Ok(vec![
                "sign bits: not compared, the file holds no signbit; --probs compares with the formula"
                    .into(),
            ]);
        };
        let [_, num_heads, queries, keys] = problem.probs();
        let probs = TensorRef::bshd(probs.as_slice(), problem.probs());
        let signbit = self.reference(SIGNBIT, TensorName::Probs)?;
        let signbit = signbit.as_deref().map(|bits| TensorRef::bshd(bits, problem.probs()));
        let rule = problem.keep_rule();
        let mut count = SignCount::default();
        // There may be very many heads of nothing.
        let sequences =
            problem.sequences().take(if queries * keys == 0 { 0 } else { problem.sequence_count() });
        let rows = sequences.flat_map(|sequence| {
            (0..num_heads).flat_map(move |h| (0..queries).map(move |i| (sequence, h, i)))
        });
        for (sequence, h, i) in rows {
            // Behind a sequence's last query and key, where a longer one has some, nothing is seen.
            let sees = i < sequence.seqlen_q;
            let band = problem.visibility_in(&sequence);
            let visible = if sees { band.keys_of(i as i64).positions() } else { 0..0 };
            let keep =
                rule.as_ref().map(|rule| rule.keep_block(sequence.stream, h, i..i + 1, visible.clone()));
            let [a, b, c, _] = sequence.probs(i, h);
            for j in 0..keys {
                let (probability, dropped) = probs.at([a, b, c, j]).decode();
                if !visible.contains(&j) {
                    count.hidden_not_zero += u64::from(dropped || probability.to_f32() != 0.0);
                    continue;
                }
                count.visible += 1;
                count.wrong_by_rule +=
                    u64::from(dropped == keep.as_ref().is_none_or(|keep| keep.keep(0, j - visible.start)));
                if let Some(bits) = &signbit {
                    count.wrong_by_file += u64::from(dropped != (bits.at([a, b, c, j]) != 0.0));
                }
            }
        }
        Ok(count.lines(signbit.is_some(), report))
    }
}

/// Entries of probs by what is wrong with their sign.
#[derive(Default)]
struct SignCount {
    visible: u64,
    wrong_by_file: u64,
    wrong_by_rule: u64,
    hidden_not_zero: u64,
}

impl SignCount {
    fn lines(&self, with_file: bool, report: &mut Report) -> Vec<String> {
        let mut lines = Vec::new();
        let visible = self.visible;
        let mut line = |wrong: u64, against: &str| {
            report.check(&format!("wrong sign bits vs {against}"), wrong == 0);
            lines.push(format!("wrong sign bits: {wrong} of {visible} visible entries, against {against}"));
        };
        if with_file {
            line(self.wrong_by_file, "the file's signbit");
        }
        line(self.wrong_by_rule, "the formula");
        report.check("hidden entries", self.hidden_not_zero == 0);
        if self.hidden_not_zero > 0 {
            lines.push(format!("hidden entries that are not +0.0: {}", self.hidden_not_zero));
        }
        lines
    }
}
