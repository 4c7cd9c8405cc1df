//! FlashAttention-2's own results on an H200, recorded by PyTorch: the files of `testdata/`, described there.

use super::inputs::Values;
use crate::{Dropout, Dtype, Element, Problem, ScaleRule, Shape, bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One file: the problem, its operands, what FlashAttention-2 made of them.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Causality, scale, dropout.
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
    /// Which visible entries it kept, (batch, num_heads, seqlen_q, seqlen_k); `None` without dropout.
    pub dropped: Option<Vec<bool>>,
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
    let metadata = header.metadata().as_ref().ok_or("it has no metadata")?;
    let file = SafeTensors::deserialize(bytes)?;
    let (q, k) = (file.tensor("q")?, file.tensor("k")?);
    let (&[batch, num_heads, seqlen_q, head_dim], &[_, num_heads_k, seqlen_k, _]) = (q.shape(), k.shape())
    else {
        return Err("q and k must have four dimensions".into());
    };
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
    let tensor = |name: &str| elements(&file.tensor(name)?);
    let heads_last =
        |name: &str| -> Result<Vec<f64>, ParseError> { Ok(bshd(&tensor(name)?, file.tensor(name)?.shape())) };
    Ok(Vector {
        problem: problem(shape, metadata)?,
        dtype: if q.dtype() == safetensors::Dtype::F16 { Dtype::F16 } else { Dtype::Bf16 },
        inputs: Values {
            q: heads_last("q")?,
            k: heads_last("k")?,
            v: heads_last("v")?,
            dout: heads_last("dout")?,
            dlse: None,
        },
        out: heads_last("out")?,
        lse: tensor("lse")?,
        dq: heads_last("dq")?,
        dk: heads_last("dk")?,
        dv: heads_last("dv")?,
        dropped: file.tensor("signbit").ok().map(|bits| bits.data().iter().map(|&bit| bit != 0).collect()),
    })
}

fn problem(shape: Shape, metadata: &HashMap<String, String>) -> Result<Problem, ParseError> {
    let get = |key: &str| metadata.get(key).ok_or_else(|| format!("its metadata lacks {key}"));
    if get("layout")? != "bhsd" {
        return Err(format!("layout must be bhsd, got {}", get("layout")?).into());
    }
    let rule = match get("scale_rule")?.as_str() {
        "nominal" => ScaleRule::Nominal,
        "unbiased" => ScaleRule::Unbiased,
        other => return Err(format!("scale_rule must be nominal or unbiased, got {other}").into()),
    };
    let dropout = Dropout::new(get("dropout_p")?.parse()?, get("seed")?.parse()?, get("offset")?.parse()?)?;
    let problem = Problem::builder(shape)
        .causal(get("causal")? == "True")
        .softmax_scale(get("softmax_scale")?.parse()?)
        .dropout(dropout.with_scale_rule(rule));
    Ok(problem.build()?)
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

/// (batch, heads, seqlen, dim) as (batch, seqlen, heads, dim).
fn bshd(dense: &[f64], shape: &[usize]) -> Vec<f64> {
    let &[batch, heads, seqlen, dim] = shape else { return Vec::new() };
    let rows = (0..batch).flat_map(|b| (0..seqlen).flat_map(move |s| (0..heads).map(move |h| (b, s, h))));
    rows.flat_map(|(b, s, h)| &dense[((b * heads + h) * seqlen + s) * dim..][..dim]).copied().collect()
}
