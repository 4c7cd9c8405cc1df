//! The settings of a problem: from the command line, else from the file, else the default.

mod names;

use crate::errors::Error;
use crate::files::{Archive, Format};
use clap::ValueEnum;
use signflash_core::{Dropout, Problem, ScaleRule, Shape, TensorMut, TensorRef};
use std::collections::BTreeMap;
use std::str::FromStr;

/// The order of dimensions in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// (batch, heads, seqlen, head_dim).
    #[default]
    Bhsd,
    /// (batch, seqlen, heads, head_dim).
    Bshd,
}

impl Layout {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bhsd => "bhsd",
            Self::Bshd => "bshd",
        }
    }

    /// A shape of (batch, seqlen, heads, head_dim) in the file's order, or back: the exchange is its own inverse.
    pub const fn reorder(self, [b, s, h, d]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Bhsd => [b, h, s, d],
            Self::Bshd => [b, s, h, d],
        }
    }

    /// The tensor of this shape, (batch, seqlen, heads, head_dim), that is stored densely in the file's order.
    pub const fn view<T>(self, data: &[T], shape: [usize; 4]) -> TensorRef<'_, T> {
        match self {
            Self::Bhsd => TensorRef::bhsd(data, shape),
            Self::Bshd => TensorRef::bshd(data, shape),
        }
    }

    /// The same, to write.
    pub const fn view_mut<T>(self, data: &mut [T], shape: [usize; 4]) -> TensorMut<'_, T> {
        match self {
            Self::Bhsd => TensorMut::bhsd(data, shape),
            Self::Bshd => TensorMut::bshd(data, shape),
        }
    }
}

/// What the command line says; `None` where it says nothing.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // as in `Settings`
pub struct Overrides {
    pub layout: Option<Layout>,
    pub causal: Option<bool>,
    pub dropout_p: Option<f32>,
    pub seed: Option<u64>,
    pub offset: Option<u64>,
    pub scale_rule: Option<ScaleRule>,
    pub softmax_scale: Option<f64>,
}

impl Overrides {
    /// Whether the command line says it.
    fn has(&self, setting: &str) -> bool {
        match setting {
            "layout" => self.layout.is_some(),
            "causal" => self.causal.is_some(),
            "dropout_p" => self.dropout_p.is_some(),
            "seed" => self.seed.is_some(),
            "offset" => self.offset.is_some(),
            "scale_rule" => self.scale_rule.is_some(),
            "softmax_scale" => self.softmax_scale.is_some(),
            _ => false,
        }
    }
}

/// What is to be computed, apart from shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The order of dimensions in the file.
    pub layout: Layout,
    /// Whether later keys are hidden.
    pub causal: bool,
    /// The probability of dropping.
    pub dropout_p: f32,
    /// The random seed.
    pub seed: u64,
    /// The random offset.
    pub offset: u64,
    /// By what kept probabilities are multiplied.
    pub scale_rule: ScaleRule,
    /// The factor of the scores; `None` for `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f64>,
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

    /// The command line's, else the file's, else the default.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value in the file that does not parse, unless the command line overrides it.
    pub fn resolve(overrides: &Overrides, metadata: &Metadata) -> Result<Self, Error> {
        let file = File { metadata };
        const INTEGER: &str = "an integer from 0 to 2^64 - 1";
        Ok(Self {
            layout: file.or(overrides.layout, "layout", "--layout", "bhsd or bshd", layout)?,
            causal: file.or(overrides.causal, "causal", "--causal", "true or false", boolean)?,
            dropout_p: file.or(overrides.dropout_p, "dropout_p", "--dropout-p", "a number in [0, 1)", p)?,
            seed: file.or(overrides.seed, "seed", "--seed", INTEGER, parse)?,
            offset: file.or(overrides.offset, "offset", "--offset", INTEGER, parse)?,
            scale_rule: file.or(
                overrides.scale_rule,
                "scale_rule",
                "--scale-rule",
                "unbiased or nominal",
                scale_rule,
            )?,
            softmax_scale: file.or(
                overrides.softmax_scale.map(Some),
                "softmax_scale",
                "--softmax-scale",
                "a finite number",
                |text| parse(text).filter(|x: &f64| x.is_finite()).map(Some),
            )?,
        })
    }

    /// The problem that they make of a shape.
    ///
    /// # Errors
    /// [`Error::Problem`].
    pub fn problem(&self, shape: Shape) -> Result<Problem, Error> {
        let dropout = Dropout::new(self.dropout_p, self.seed, self.offset)?.with_scale_rule(self.scale_rule);
        let builder = Problem::builder(shape).causal(self.causal).dropout(dropout);
        let builder = match self.softmax_scale {
            Some(scale) => builder.softmax_scale(scale),
            None => builder,
        };
        Ok(builder.build()?)
    }

    /// As metadata of a result; every number reads back as itself.
    pub fn to_metadata(&self, problem: &Problem) -> Metadata {
        [
            ("layout", self.layout.name().to_string()),
            ("causal", self.causal.to_string()),
            ("dropout_p", self.dropout_p.to_string()),
            ("seed", self.seed.to_string()),
            ("offset", self.offset.to_string()),
            ("scale_rule", scale_rule_name(self.scale_rule).to_string()),
            ("softmax_scale", problem.softmax_scale().to_string()),
            (names::WRITTEN_BY, format!("signflash {}", env!("CARGO_PKG_VERSION"))),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .into()
    }
}

struct File<'a> {
    metadata: &'a Metadata,
}

impl File<'_> {
    fn or<T: Default>(
        &self,
        given: Option<T>,
        name: &'static str,
        flag: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        match (given, self.metadata.get(name)) {
            (Some(given), _) => Ok(given),
            (None, None) => Ok(T::default()),
            (None, Some(text)) => parse(text.trim()).ok_or_else(|| Error::Setting {
                name,
                expected,
                got: text.chars().take(60).collect(),
                flag,
            }),
        }
    }
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn p(text: &str) -> Option<f32> {
    parse(text).filter(|p| (0.0..1.0).contains(p))
}

/// Python's and JSON's words, and digits.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

fn layout(text: &str) -> Option<Layout> {
    match text {
        "bhsd" => Some(Layout::Bhsd),
        "bshd" => Some(Layout::Bshd),
        _ => None,
    }
}

/// The rule of that name.
pub fn scale_rule(text: &str) -> Option<ScaleRule> {
    match text {
        "unbiased" => Some(ScaleRule::Unbiased),
        "nominal" => Some(ScaleRule::Nominal),
        _ => None,
    }
}

/// The name of a rule.
pub const fn scale_rule_name(rule: ScaleRule) -> &'static str {
    match rule {
        ScaleRule::Unbiased => "unbiased",
        ScaleRule::Nominal => "nominal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = metadata(&[("causal", "True"), ("seed", "7"), ("dropout_p", "0.5"), ("layout", "bshd")]);
        let overrides = Overrides { causal: Some(false), seed: Some(8), ..Overrides::default() };
        let settings = Settings::resolve(&overrides, &file).unwrap();
        assert_eq!((settings.causal, settings.seed), (false, 8));
        assert_eq!((settings.dropout_p, settings.layout), (0.5, Layout::Bshd));
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
        ] {
            let error = Settings::resolve(&Overrides::default(), &metadata(&[(key, value)])).unwrap_err();
            assert!(error.to_string().starts_with(&format!("metadata `{key}`: expected ")), "{error}");
        }
    }

    #[test]
    fn settings_read_back_as_they_were_written() {
        let overrides = Overrides {
            layout: Some(Layout::Bshd),
            causal: Some(true),
            dropout_p: Some(0.1),
            seed: Some(u64::MAX),
            offset: Some(1 << 40),
            scale_rule: Some(ScaleRule::Nominal),
            softmax_scale: Some(0.1234567890123),
        };
        let settings = Settings::resolve(&overrides, &Metadata::new()).unwrap();
        let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(1);
        let written = settings.to_metadata(&settings.problem(shape).unwrap());
        assert_eq!(Settings::resolve(&Overrides::default(), &written).unwrap(), settings);
    }
}
