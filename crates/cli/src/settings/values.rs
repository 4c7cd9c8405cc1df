//! What settings say, as text: in a file, on the command line, in bench's table.

use super::{Layout, window};
use serde_json::{Value, json};
use signflash_core::{ScaleRule, Window};
use std::str::FromStr;

pub(super) fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// A probability of dropping.
pub(super) fn p(text: &str) -> Option<f32> {
    parse(text).filter(|p| (0.0..1.0).contains(p))
}

pub(super) fn finite(text: &str) -> Option<f64> {
    parse(text).filter(|x: &f64| x.is_finite())
}

/// Python's and JSON's words, and digits.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

pub(super) fn layout(text: &str) -> Option<Layout> {
    match text {
        "bhsd" => Some(Layout::Bhsd),
        "bshd" => Some(Layout::Bshd),
        "thd" => Some(Layout::Thd),
        _ => None,
    }
}

pub(super) fn scale_rule(text: &str) -> Option<ScaleRule> {
    match text {
        "unbiased" => Some(ScaleRule::Unbiased),
        "nominal" => Some(ScaleRule::Nominal),
        _ => None,
    }
}

/// The same, as clap wants it.
pub(super) fn parse_scale_rule(text: &str) -> Result<ScaleRule, String> {
    scale_rule(text).ok_or_else(|| "expected unbiased or nominal".to_string())
}

pub(super) const fn scale_rule_name(rule: ScaleRule) -> &'static str {
    match rule {
        ScaleRule::Unbiased => "unbiased",
        ScaleRule::Nominal => "nominal",
    }
}

/// By what scores are capped, if they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Softcap(pub Option<f64>);

pub(super) fn softcap(text: &str) -> Option<Softcap> {
    match text {
        "none" | "None" | "null" => Some(Softcap(None)),
        number => finite(number).filter(|&cap| cap >= 0.0).map(|cap| Softcap((cap != 0.0).then_some(cap))),
    }
}

/// The same, as clap wants it.
pub(super) fn parse_softcap(text: &str) -> Result<Softcap, String> {
    softcap(text).ok_or_else(|| "expected a positive number, or 0 for none".to_string())
}

impl Shown for Softcap {
    fn text(&self) -> String {
        self.0.unwrap_or(0.0).to_string()
    }

    fn cell(&self) -> String {
        self.0.map_or("no".to_string(), |cap| cap.to_string())
    }

    fn json(&self) -> Value {
        json!(self.0.unwrap_or(0.0))
    }
}

/// What bench varies, in its table and in JSON.
pub(super) trait Shown {
    /// As the command line takes it.
    fn text(&self) -> String;

    fn cell(&self) -> String {
        self.text()
    }

    fn json(&self) -> Value;
}

impl Shown for bool {
    fn text(&self) -> String {
        self.to_string()
    }

    fn cell(&self) -> String {
        if *self { "yes" } else { "no" }.to_string()
    }

    fn json(&self) -> Value {
        json!(self)
    }
}

/// The shortest number that reads back, not its neighbour in f64.
impl Shown for f32 {
    fn text(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Value {
        json!(self.to_string().parse::<f64>().unwrap_or_default())
    }
}

impl Shown for Window {
    fn text(&self) -> String {
        window::write(*self)
    }

    fn cell(&self) -> String {
        if *self == Self::FULL { "no".to_string() } else { self.text() }
    }

    fn json(&self) -> Value {
        let side = |side: Option<usize>| side.map_or(json!(-1), |side| json!(side));
        json!([side(self.left), side(self.right)])
    }
}
