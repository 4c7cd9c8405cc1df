//! FlashAttention-2's own results on an H200, recorded by PyTorch: the files of `testdata/`, described there.

use super::inputs::Values;
use crate::{Dropout, Dtype, Element, Problem, ScaleRule, Shape, bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One file: the problem, its operands, what FlashAttention-2 made of them.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Window, packed sequences, scale, dropout.
    pub problem: Problem,
    /// Of q, k, v and everything of their kind.
    pub dtype: Dtype,
    /// Exactly representable in `dtype`.
    pub inputs: Values,
    /// FlashAttention-2's out, (batch, seqlen_q, num_heads, head_dim).
    pub out: Vec<f64>,
    /// Its lse, (batch, num_heads, seqlen_q).
    pub lse: Vec<f64>,
    /// Its dq, of q's shape.
    pub dq: Vec<f64>,
    /// Its dk, of k's shape.
    pub dk: Vec<f64>,
    /// Its dv, of k's shape.
    pub dv: Vec<f64>,
    /// Which visible entries it dropped, of the shape that [`Problem::probs`] says; `None` without dropout.
    pub dropped: Option<Vec<bool>>,
    /// Which entries its own attention showed, of the same shape; `None` in files that do not say.
    pub visible: Option<Vec<bool>>,
}

/// Why a file is no vector.
#[derive(Debug, thiserror::Error)]
#[error("vector {path}: {message}")]
pub struct VectorError {
    path: String,
    message: String,
}

/// Where the files are: `$SIGNFLASH_VECTORS`, or the repository's `testdata`.
pub fn directory() -> PathBuf {
    std::env::var_os("SIGNFLASH_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata"), PathBuf::from)
}

impl Vector {
    /// Reads a file.
    ///
    /// ```
    /// use signflash_core::suite::vectors::{Vector, directory};
    /// let vector = Vector::load(&directory().join("c_f16_d64_p20_causal.safetensors"))?;
    /// assert!(vector.problem.causal());
    /// # Ok::<(), signflash_core::suite::vectors::VectorError>(())
    /// ```
    ///
    /// # Errors
    /// A [`VectorError`] naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, VectorError> {
        let failed = |message: String| VectorError { path: path.display().to_string(), message };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        parse(&bytes).map_err(|error| failed(error.to_string()))
    }
}

type ParseError = Box<dyn std::error::Error>;

fn parse(bytes: &[u8]) -> Result<Vector, ParseError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = Metadata(header.metadata().as_ref().ok_or("it has no metadata")?);
    let file = SafeTensors::deserialize(bytes)?;
    let layout = Layout::of(&metadata)?;
    let (q, k) = (layout.sizes(file.tensor("q")?.shape())?, layout.sizes(file.tensor("k")?.shape())?);
    let [batch, seqlen_q, num_heads, head_dim] = q;
    let [_, seqlen_k, num_heads_k, _] = k;
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
    let lengths = match layout {
        Layout::Thd => {
            Some([numbers(&file.tensor("cu_seqlens_q")?)?, numbers(&file.tensor("cu_seqlens_k")?)?])
        }
        Layout::Bhsd | Layout::Bshd => None,
    };
    let tensor = |name: &str| elements(&file.tensor(name)?);
    let rows_first = |name: &str| layout.rows_first(tensor(name)?, file.tensor(name)?.shape());
    let flags = |name: &str| file.tensor(name).ok().map(|x| x.data().iter().map(|&bit| bit != 0).collect());
    Ok(Vector {
        problem: problem(shape, lengths, &metadata)?,
        dtype: if file.tensor("q")?.dtype() == safetensors::Dtype::F16 { Dtype::F16 } else { Dtype::Bf16 },
        inputs: Values {
            q: rows_first("q")?,
            k: rows_first("k")?,
            v: rows_first("v")?,
            dout: rows_first("dout")?,
            dlse: None,
            alibi_slopes: Vec::new(),
            bias: Vec::new(),
            mask: Vec::new(),
            sinks: Vec::new(),
        },
        out: rows_first("out")?,
        lse: tensor("lse")?,
        dq: rows_first("dq")?,
        dk: rows_first("dk")?,
        dv: rows_first("dv")?,
        dropped: flags("signbit"),
        visible: flags("visible"),
    })
}

/// What a file says of itself.
struct Metadata<'a>(&'a HashMap<String, String>);

impl Metadata<'_> {
    fn get(&self, key: &str) -> Result<&str, ParseError> {
        Ok(self.0.get(key).ok_or_else(|| format!("its metadata lacks {key}"))?)
    }
}

/// The order of a file's dimensions.
#[derive(Clone, Copy)]
enum Layout {
    /// (batch, heads, seqlen, head_dim).
    Bhsd,
    /// (batch, seqlen, heads, head_dim).
    Bshd,
    /// Packed: (total, heads, head_dim), with `cu_seqlens_q` and `cu_seqlens_k`.
    Thd,
}

impl Layout {
    fn of(metadata: &Metadata<'_>) -> Result<Self, ParseError> {
        match metadata.get("layout")? {
            "bhsd" => Ok(Self::Bhsd),
            "bshd" => Ok(Self::Bshd),
            "thd" => Ok(Self::Thd),
            other => Err(format!("layout must be bhsd, bshd or thd, got {other}").into()),
        }
    }

    /// A tensor's sizes as (batch, seqlen, heads, head_dim).
    fn sizes(self, shape: &[usize]) -> Result<[usize; 4], ParseError> {
        match (self, shape) {
            (Self::Bhsd, &[batch, heads, seqlen, dim]) => Ok([batch, seqlen, heads, dim]),
            (Self::Bshd, &[batch, seqlen, heads, dim]) => Ok([batch, seqlen, heads, dim]),
            (Self::Thd, &[total, heads, dim]) => Ok([1, total, heads, dim]),
            _ => Err(format!("a tensor has the shape {shape:?}").into()),
        }
    }

    /// A tensor's elements in the order (batch, seqlen, heads, head_dim).
    fn rows_first(self, dense: Vec<f64>, shape: &[usize]) -> Result<Vec<f64>, ParseError> {
        let [batch, seqlen, heads, dim] = self.sizes(shape)?;
        if !matches!(self, Self::Bhsd) {
            return Ok(dense);
        }
        let rows = (0..batch).flat_map(|b| (0..seqlen).flat_map(move |s| (0..heads).map(move |h| (b, s, h))));
        Ok(rows
            .flat_map(|(b, s, h)| &dense[((b * heads + h) * seqlen + s) * dim..][..dim])
            .copied()
            .collect())
    }
}

fn problem(
    shape: Shape,
    lengths: Option<[Vec<u32>; 2]>,
    metadata: &Metadata<'_>,
) -> Result<Problem, ParseError> {
    let rule = match metadata.get("scale_rule")? {
        "nominal" => ScaleRule::Nominal,
        "unbiased" => ScaleRule::Unbiased,
        other => return Err(format!("scale_rule must be nominal or unbiased, got {other}").into()),
    };
    let [dropout_p, seed, offset] = ["dropout_p", "seed", "offset"].map(|key| metadata.get(key));
    let dropout = Dropout::new(dropout_p?.parse()?, seed?.parse()?, offset?.parse()?)?;
    let problem = Problem::builder(shape)
        .causal(metadata.get("causal")? == "True")
        .softmax_scale(metadata.get("softmax_scale")?.parse()?)
        .dropout(dropout.with_scale_rule(rule));
    let problem = match metadata.get("window") {
        Ok(sides) => {
            let (left, right) = sides.split_once(',').ok_or("window must be two numbers")?;
            let side = |side: &str| -> Result<Option<usize>, ParseError> {
                Ok(usize::try_from(side.parse::<i64>()?).ok()) // -1 has no bound
            };
            problem.window(side(left)?, side(right)?)
        }
        Err(_) => problem, // files from before there were windows
    };
    let problem = match lengths {
        Some([q, k]) => problem.packed(&q, &k),
        None => problem,
    };
    Ok(problem.build()?)
}

/// Whole numbers, none below zero.
fn numbers(tensor: &TensorView<'_>) -> Result<Vec<u32>, ParseError> {
    if tensor.dtype() != safetensors::Dtype::I32 {
        return Err(format!("cu_seqlens must be I32, got {:?}", tensor.dtype()).into());
    }
    let number = |x: &[u8]| u32::try_from(bytemuck::pod_read_unaligned::<i32>(x));
    Ok(tensor.data().chunks_exact(4).map(number).collect::<Result<_, _>>()?)
}

fn elements(tensor: &TensorView<'_>) -> Result<Vec<f64>, ParseError> {
    fn of<T: Element>(bytes: &[u8]) -> Vec<f64> {
        bytes.chunks_exact(size_of::<T>()).map(|x| bytemuck::pod_read_unaligned::<T>(x).to_f64()).collect()
    }
    match tensor.dtype() {
        safetensors::Dtype::F32 => Ok(of::<f32>(tensor.data())),
        safetensors::Dtype::F16 => Ok(of::<f16>(tensor.data())),
        safetensors::Dtype::BF16 => Ok(of::<bf16>(tensor.data())),
        other => Err(format!("tensors must be F32, F16 or BF16, got {other:?}").into()),
    }
}
