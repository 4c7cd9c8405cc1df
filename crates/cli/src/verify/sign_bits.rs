//! Sign bits, beside the file's and the formula's.

use super::report::Report;
use super::{SIGNBIT, Verify};
use crate::errors::Error;
use crate::files::FileElement;
use signflash_core::{TensorRef, contiguous_strides};

impl<T: FileElement> Verify<'_, T> {
    /// Compares sign bits, as they stand in the probs that the engine wrote, with the file's and with the formula.
    pub(super) fn sign_bits(&self, report: &mut Report) -> Result<Vec<String>, Error> {
        let shape = self.problem.shape();
        let Some(probs) = &self.results.probs else {
            return Ok(vec![
                "sign bits: not compared, the file holds no signbit; --probs compares with the formula"
                    .into(),
            ]);
        };
        let probs = TensorRef::bshd(probs.as_slice(), shape.probs());
        let signbit = self.reference(SIGNBIT, &shape.probs(), "(batch, heads, seqlen_q, seqlen_k)")?;
        let signbit = signbit
            .as_deref()
            .map(|bits| TensorRef::strided(bits, shape.probs(), contiguous_strides(shape.probs())));
        let rule = self.problem.keep_rule();
        let mut count = SignCount::default();
        for (sequence, h, i) in self.problem.rows() {
            let visible = self.problem.visibility_in(&sequence).keys_of(i as i64).positions();
            let keep =
                rule.as_ref().map(|rule| rule.keep_block(sequence.stream, h, i..i + 1, visible.clone()));
            for j in 0..sequence.seqlen_k {
                let entry = [sequence.batch, h, sequence.first_q + i, j];
                let (probability, dropped) = probs.at(entry).decode();
                if !visible.contains(&j) {
                    count.hidden_not_zero += u64::from(dropped || probability.to_f32() != 0.0);
                    continue;
                }
                count.visible += 1;
                count.wrong_by_rule +=
                    u64::from(dropped == keep.as_ref().is_none_or(|keep| keep.keep(0, j - visible.start)));
                if let Some(bits) = &signbit {
                    count.wrong_by_file += u64::from(dropped != (bits.at(entry) != 0.0));
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
