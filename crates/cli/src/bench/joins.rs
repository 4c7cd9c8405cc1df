//! What joins scores in a row: ALiBi, a bias, a mask, sinks; as the command line says it, and as tensors.

use super::random::Normal;
use crate::compute::len;
use crate::errors::Error;
use crate::files::Data;
use crate::joined::{Joined, room_for_dbias};
use clap::Args;
use serde_json::{Value, json};
use signflash_core::{Bias, Dtype, Problem, ProblemBuilder, Shape, Slopes, TensorName, bf16, f16};
use std::str::FromStr;

/// Lists of what joins scores, each varied as settings are.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What joins scores")]
pub struct JoinAxes {
    /// Whether each head has an ALiBi slope.
    #[arg(long, value_name = "BOOL", value_delimiter = ',', num_args = 0..=1, default_values_t = [false], default_missing_value = "true")]
    pub alibi: Vec<bool>,
    /// A bias: its dtype, and for which of batch, heads and queries it has numbers of their own, as above; or none.
    #[arg(long, value_name = "DTYPE[:bhq]", value_delimiter = ',', default_value = "none")]
    pub bias: Vec<Optional<BiasOf>>,
    /// Whether a backward computes the gradient of the bias, too.
    #[arg(long, value_name = "BOOL", value_delimiter = ',', num_args = 0..=1, default_values_t = [false], default_missing_value = "true")]
    pub dbias: Vec<bool>,
    /// A mask: for which of batch, heads and queries it has entries of their own, as above; or none.
    #[arg(long, value_name = "bhq", value_delimiter = ',', default_value = "none")]
    pub mask: Vec<Optional<Extents>>,
    /// Whether each head has a sink.
    #[arg(long, value_name = "BOOL", value_delimiter = ',', num_args = 0..=1, default_values_t = [false], default_missing_value = "true")]
    pub sinks: Vec<bool>,
}

/// What may be `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Optional<T>(pub Option<T>);

/// For which of batch, heads and queries a tensor has entries of their own; for keys it always has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    batch: bool,
    heads: bool,
    queries: bool,
}

/// A bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BiasOf {
    dtype: Dtype,
    extents: Extents,
}

/// One of the combinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Joins {
    pub(super) alibi: bool,
    pub(super) bias: Option<BiasOf>,
    pub(super) dbias: bool,
    pub(super) mask: Option<Extents>,
    pub(super) sinks: bool,
}

impl<T: FromStr<Err = String>> FromStr for Optional<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|some| Self(Some(some))) }
    }
}

impl FromStr for Extents {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let has = |letter| text.contains(letter);
        let extents = Self { batch: has('b'), heads: has('h'), queries: has('q') };
        if extents.text() == text {
            return Ok(extents);
        }
        Err("expected letters of bhq in this order: b for batch, h for heads, q for queries; k for keys alone".into())
    }
}

impl FromStr for BiasOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (dtype, extents) = text.split_once(':').unwrap_or((text, "hq"));
        let dtype = crate::args::parse_dtype(dtype)?;
        Ok(Self { dtype, extents: extents.parse()? })
    }
}

impl Extents {
    /// As the command line says it.
    fn text(self) -> String {
        let letters = [(self.batch, 'b'), (self.heads, 'h'), (self.queries, 'q')];
        let text: String = letters.into_iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect();
        if text.is_empty() { "k".into() } else { text }
    }

    /// Of a tensor of so many sequences.
    fn shape(self, sequences: usize, longest: usize, heads: usize) -> [usize; 4] {
        let of = |has: bool, size: usize| if has { size } else { 1 };
        [of(self.batch, sequences), of(self.heads, heads), of(self.queries, longest), longest]
    }
}

impl BiasOf {
    fn text(self) -> String {
        format!("{}:{}", self.dtype, self.extents.text())
    }
}

impl JoinAxes {
    /// All combinations, the last list varying first. There is no dbias without a bias.
    ///
    /// # Errors
    /// [`Error::Argument`] if a dbias is asked for and there is no bias in any.
    pub(super) fn combinations(&self) -> Result<Vec<Joins>, Error> {
        if self.dbias.contains(&true) && self.bias.iter().all(|bias| bias.0.is_none()) {
            let expected = "left out without a --bias".to_string();
            return Err(Error::Argument { argument: "--dbias", expected, got: "it".into() });
        }
        let mut all = vec![];
        for &alibi in &self.alibi {
            for &Optional(bias) in &self.bias {
                for &dbias in &self.dbias {
                    for &Optional(mask) in &self.mask {
                        let dbias = dbias && bias.is_some();
                        all.extend(self.sinks.iter().map(|&sinks| Joins { alibi, bias, dbias, mask, sinks }));
                    }
                }
            }
        }
        let mut seen = vec![];
        all.retain(|joins| {
            !seen.contains(joins) && {
                seen.push(*joins);
                true
            }
        });
        Ok(all)
    }
}

impl Joins {
    /// A problem with them: so many sequences, of which the longest has so many queries and keys.
    pub(super) fn declare(
        &self,
        builder: ProblemBuilder,
        heads: usize,
        (sequences, longest): (usize, usize),
    ) -> ProblemBuilder {
        let shape = |extents: Extents| extents.shape(sequences, longest, heads);
        let builder = builder.alibi(self.alibi.then_some(Slopes::PerHead)).sinks(self.sinks);
        let builder = match self.bias {
            Some(BiasOf { dtype, extents }) => builder.bias(dtype, shape(extents)),
            None => builder,
        };
        match self.mask {
            Some(extents) => builder.mask(shape(extents)),
            None => builder,
        }
    }

    /// Each with the name that JSON has for it, and what a table says; none of what is not there, unless for programs.
    pub(super) fn named(&self) -> [(&'static str, Option<String>); 5] {
        let yes = |is: bool| is.then(|| "yes".to_string());
        [
            ("alibi", yes(self.alibi)),
            ("bias", self.bias.map(BiasOf::text)),
            ("dbias", yes(self.dbias)),
            ("mask", self.mask.map(Extents::text)),
            ("sinks", yes(self.sinks)),
        ]
    }

    /// For programs.
    pub(super) fn json(&self) -> [(&'static str, Value); 5] {
        [
            ("alibi", json!(self.alibi)),
            ("bias", json!(self.bias.map(BiasOf::text))),
            ("dbias", json!(self.dbias)),
            ("mask", json!(self.mask.map(Extents::text))),
            ("sinks", json!(self.sinks)),
        ]
    }
}

/// The tensors of a problem. Slopes are ALiBi's, biases and sinks normal. A mask of entries for each query hides a quarter
/// of them here and there; one of keys the second half, as padding does.
pub(super) fn random(problem: &Problem, normal: &mut Normal) -> Joined {
    let shape = |tensor| problem.shape_of(tensor);
    let mut normals = |count: usize| (0..count).map(|_| normal.next()).collect::<Vec<f32>>();
    let Shape { num_heads, .. } = *problem.shape();
    let slope = |n: usize| 2f32.powf(-8.0 * (n % num_heads + 1) as f32 / num_heads as f32);
    let bias = problem.bias().map(|Bias { dtype, shape }| {
        let numbers = normals(len(shape));
        match dtype {
            Dtype::F16 => Data::F16(numbers.into_iter().map(f16::from_f32).collect()),
            Dtype::Bf16 => Data::Bf16(numbers.into_iter().map(bf16::from_f32).collect()),
            _ => Data::F32(numbers),
        }
    });
    let mask = problem.mask().map(|shape| {
        let [.., queries, keys] = shape;
        let is_seen = |n: usize, x: f32| if queries == 1 { n % keys < keys.div_ceil(2) } else { x > -0.67 };
        normals(len(shape)).into_iter().enumerate().map(|(n, x)| u8::from(is_seen(n, x))).collect()
    });
    Joined {
        alibi_slopes: problem.alibi().map(|_| (0..len(shape(TensorName::AlibiSlopes))).map(slope).collect()),
        bias,
        mask,
        sinks: problem.sinks().then(|| normals(num_heads)),
    }
}

/// Room for the gradients of a problem's bias, if it is asked for, and sinks.
pub(super) fn room(problem: &Problem, joins: &Joins) -> (Option<Data>, Option<Vec<f32>>) {
    let dbias = joins.dbias.then(|| room_for_dbias(problem)).flatten();
    (dbias, problem.sinks().then(|| vec![1.0; problem.shape().num_heads]))
}
