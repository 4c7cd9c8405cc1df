//! The settings of a problem: from the command line, else from the file, else the default.

mod declare;
mod layout;
mod names;
mod values;
pub(crate) mod window;

pub use layout::Layout;

use crate::errors::Error;
use crate::files::{Archive, Format};
use clap::Args;
use declare::{Axis, Setting, flag, settings};
use signflash_core::{Dropout, Problem, ProblemBuilder, ScaleRule, Shape, Window};
use std::collections::BTreeMap;
use values::{
    Shown, Softcap, boolean, finite, layout, p, parse, parse_scale_rule, parse_softcap, scale_rule,
    scale_rule_name, softcap,
};

settings! {
    /// Order of dimensions in the file: (batch, heads, seqlen, dim), (batch, seqlen, heads, dim), or of packed sequences
    /// (tokens, heads, dim) [default: bhsd; thd with cu_seqlens].
    #[arg(long, value_enum)]
    layout: Layout as Option<Layout> {
        in files "bhsd or bshd, or thd for packed sequences", layout,
            |settings, problem| settings.layout_of(problem).name().to_string(),
        elsewhere [],
    }
    /// Query i faces key i + seqlen_k - seqlen_q, and sees the keys from LEFT before that to RIGHT behind it; -1 is no
    /// bound [default: -1,-1].
    #[arg(long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = window::parse)]
    window: Window as Window {
        in files "LEFT,RIGHT, two whole numbers, -1 for no bound", window::read,
            |settings, _| window::write(settings.window),
        elsewhere [
            "windowsize", "localwindow", "slidingwindow", "attentionwindow", "windowsizeleft", "windowsizeright",
            "windowleft", "windowright"
        ],
        in bench "window" {
            /// What a query sees of the keys around the one that it faces: -1 is no bound. Once for each window.
            #[arg(
                long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = window::parse,
                default_value = "-1,-1"
            )]
        }
    }
    /// No query sees a key behind the one that it faces: RIGHT is 0, whatever --window says [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    causal: bool as bool {
        in files "true or false", boolean, |settings, _| settings.causal.to_string(),
        elsewhere ["iscausal", "causalmask", "usecausalmask"],
        in bench "causal" {
            /// Whether later keys are hidden.
            #[arg(long, value_delimiter = ',', num_args = 0..=1, default_values_t = [false], default_missing_value = "true")]
        }
    }
    /// Probability of dropping, in [0, 1) [default: 0].
    #[arg(long, value_name = "P")]
    dropout_p: f32 as f32 {
        in files "a number in [0, 1)", p, |settings, _| settings.dropout_p.to_string(),
        elsewhere [
            "p", "dropout", "pdropout", "dropoutrate", "dropoutprob", "dropoutprobability", "attndropout",
            "attentiondropout", "attnpdrop", "attentionprobsdropoutprob", "drop", "droprate", "attndrop"
        ],
        in bench "dropout_p" {
            /// Probabilities of dropping.
            #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.1])]
        }
    }
    /// Random seed [default: 0].
    #[arg(long)]
    seed: u64 as u64 {
        in files "an integer from 0 to 2^64 - 1", parse, |settings, _| settings.seed.to_string(),
        elsewhere ["philoxseed", "rngseed", "dropoutseed", "randomseed"],
    }
    /// Random offset; add batch * num_heads * 32 after each call to drop other entries [default: 0].
    #[arg(long)]
    offset: u64 as u64 {
        in files "an integer from 0 to 2^64 - 1", parse, |settings, _| settings.offset.to_string(),
        elsewhere ["philoxoffset", "rngoffset", "dropoutoffset", "seedoffset"],
    }
    /// By what kept probabilities are multiplied: `unbiased` 256 / (threshold + 1), exact in expectation, or `nominal`
    /// 1 / (1 - p), as FlashAttention-2 and PyTorch [default: unbiased].
    #[arg(long, value_name = "RULE", value_parser = parse_scale_rule)]
    scale_rule: ScaleRule as ScaleRule {
        in files "unbiased or nominal", scale_rule, |settings, _| scale_rule_name(settings.scale_rule).to_string(),
        elsewhere [],
    }
    /// Scores become X * tanh(score / X), before a bias is added; 0 is none [default: 0].
    #[arg(long, value_name = "X", value_parser = parse_softcap)]
    softcap: Softcap as Softcap {
        in files "a positive number, or 0 for none", softcap, |settings, _| settings.softcap.text(),
        elsewhere ["logitsoftcap", "logitssoftcap", "attnlogitsoftcapping", "softcapping", "logitcap", "attnlogitcap"],
        in bench "softcap" {
            /// Scores become X * tanh(score / X); 0 is none.
            #[arg(long, value_name = "X", value_delimiter = ',', value_parser = parse_softcap, default_value = "0")]
        }
    }
    /// Factor of the scores [default: 1 / sqrt(head_dim)].
    #[arg(long, value_name = "X")]
    softmax_scale: f64 as Option<f64> {
        in files "a finite number", finite, |_, problem| problem.softmax_scale().to_string(),
        elsewhere ["scale", "smscale", "scaling", "qkscale", "attnscale", "scalefactor"],
    }
}

/// A file's metadata.
pub type Metadata = BTreeMap<String, String>;

/// What a file holds that is no setting and no tensor of ours, as a line; none if there is nothing.
pub fn note(archive: &Archive, format: Format) -> Option<String> {
    names::note(archive, format)
}

impl Settings {
    /// The command line's, else the file's, else the default; the file must not name what is none of them.
    ///
    /// # Errors
    /// [`Error::UnknownSetting`] for a name in the file that says, or nearly says, a setting of ours, or one that is
    /// not computed; [`Error::Setting`] as [`resolve`](Self::resolve).
    pub fn of_file(overrides: &Overrides, archive: &Archive, format: Format) -> Result<Self, Error> {
        names::judge(archive, format, overrides)?;
        Self::resolve(overrides, &archive.metadata)
    }

    /// The problem that they make of a shape: what each setting means.
    ///
    /// # Errors
    /// [`Error::Problem`].
    pub fn problem(&self, shape: Shape) -> Result<Problem, Error> {
        Ok(self.builder(shape)?.build()?)
    }

    /// The same, of which something else is to be set.
    ///
    /// # Errors
    /// [`Error::Problem`].
    pub fn builder(&self, shape: Shape) -> Result<ProblemBuilder, Error> {
        let Self { window, causal, dropout_p, seed, offset, scale_rule, softcap, softmax_scale, layout: _ } =
            *self;
        let dropout = Dropout::new(dropout_p, seed, offset)?.with_scale_rule(scale_rule);
        let builder =
            Problem::builder(shape).window(window.left, window.right).causal(causal).dropout(dropout);
        let builder = builder.softcap(softcap.0);
        Ok(match softmax_scale {
            Some(scale) => builder.softmax_scale(scale),
            None => builder,
        })
    }

    /// The order of dimensions in the file of a problem.
    pub fn layout_of(&self, problem: &Problem) -> Layout {
        self.layout.unwrap_or(if problem.is_packed() { Layout::Thd } else { Layout::Bhsd })
    }

    /// As metadata of a result; every number reads back as itself.
    pub fn to_metadata(&self, problem: &Problem) -> Metadata {
        let own = SETTINGS.iter().map(|setting| (setting.name, (setting.text)(self, problem)));
        let by = (names::WRITTEN_BY, format!("signflash {}", env!("CARGO_PKG_VERSION")));
        own.chain([by]).map(|(key, value)| (key.to_string(), value)).collect()
    }
}

/// What the file says, if it does.
fn in_file<T>(
    metadata: &Metadata,
    name: &'static str,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(text) = metadata.get(name) else { return Ok(None) };
    read(text.trim()).map(Some).ok_or_else(|| Error::Setting {
        name,
        expected,
        got: text.chars().take(60).collect(),
        flag: flag(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use signflash_core::ScaleRule;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = metadata(&[("causal", "True"), ("seed", "7"), ("dropout_p", "0.5"), ("layout", "bshd")]);
        let overrides = Overrides { causal: Some(false), seed: Some(8), ..Overrides::default() };
        let settings = Settings::resolve(&overrides, &file).unwrap();
        assert_eq!((settings.causal, settings.seed), (false, 8));
        assert_eq!((settings.dropout_p, settings.layout), (0.5, Some(Layout::Bshd)));
    }

    #[test]
    fn the_command_line_hides_nonsense_in_the_file() {
        let file = metadata(&[("seed", "none")]);
        assert!(Settings::resolve(&Overrides::default(), &file).is_err());
        let overrides = Overrides { seed: Some(1), ..Overrides::default() };
        assert_eq!(Settings::resolve(&overrides, &file).unwrap().seed, 1);
    }

    #[test]
    fn nan_and_infinity_in_a_file_are_refused_by_name() {
        for (key, value) in [
            ("dropout_p", "nan"),
            ("dropout_p", "1"),
            ("softmax_scale", "inf"),
            ("seed", "-1"),
            ("causal", "2"),
            ("window", "-2,0"),
            ("softcap", "-30"),
        ] {
            let error = Settings::resolve(&Overrides::default(), &metadata(&[(key, value)])).unwrap_err();
            assert!(error.to_string().starts_with(&format!("metadata `{key}`: expected ")), "{error}");
        }
    }

    #[test]
    fn settings_read_back_as_they_were_written() {
        let overrides = Overrides {
            layout: Some(Layout::Bshd),
            window: Some(Window { left: Some(40), right: None }),
            causal: Some(true),
            dropout_p: Some(0.1),
            seed: Some(u64::MAX),
            offset: Some(1 << 40),
            scale_rule: Some(ScaleRule::Nominal),
            softcap: Some(Softcap(Some(30.5))),
            softmax_scale: Some(0.1234567890123),
        };
        let settings = Settings::resolve(&overrides, &Metadata::new()).unwrap();
        let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(1);
        let written = settings.to_metadata(&settings.problem(shape).unwrap());
        assert_eq!(Settings::resolve(&Overrides::default(), &written).unwrap(), settings);
    }
}
