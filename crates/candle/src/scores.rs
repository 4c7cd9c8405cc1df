//! The operands of scores, as the engines take them.

use crate::call::refused;
use crate::inputs::ScoreInputs;
use candle_core::{DType, Layout as Lies, Result, Storage, Tensor, bail};
use signflash_core::{Description, Dtype, Problem, ProblemBuilder, ScoreDescription, Slopes, TensorName};
use std::ops::Deref;

/// What one call's scores are made of besides q and k.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operands {
    /// (1, 1, 1 or sequences, num_heads), f32, dense.
    pub(crate) alibi_slopes: Option<Tensor>,
    /// Four dimensions, any strides.
    pub(crate) bias: Option<Tensor>,
    /// The same, u8.
    pub(crate) mask: Option<Tensor>,
    /// (num_heads), f32, dense.
    pub(crate) sinks: Option<Tensor>,
}

/// Which of them have gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) dbias: bool,
    pub(crate) dsinks: bool,
}

/// A tensor's storage, which nobody writes to while this lives, and how the tensor lies in it.
pub(crate) struct Held<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>, // candle does not name its lock
    pub(crate) lies: &'a Lies,
}

impl<'a> Held<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        let (storage, lies) = tensor.storage_and_layout();
        Self { storage: Box::new(storage), lies }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// All storages of [`Operands`].
pub(crate) struct HeldOperands<'a> {
    pub(crate) alibi_slopes: Option<Held<'a>>,
    pub(crate) bias: Option<Held<'a>>,
    pub(crate) mask: Option<Held<'a>>,
    pub(crate) sinks: Option<Held<'a>>,
}

impl Operands {
    /// Judges dtypes and numbers of dimensions; sizes are the problem's to judge. Where there is one key for `keys`, it is
    /// repeated.
    pub(crate) fn of(scores: &ScoreInputs<'_>, keys: Option<usize>) -> Result<Self> {
        let ScoreInputs { alibi_slopes, bias, mask, sinks } = *scores;
        let floats = |name, x: Option<&Tensor>| x.map_or(Ok(()), |x| judge_float(name, x));
        floats("alibi_slopes", alibi_slopes)?;
        floats("bias", bias)?;
        floats("sinks", sinks)?;
        if let Some(mask) = mask.filter(|mask| mask.dtype() != DType::U8) {
            let got = mask.dtype();
            bail!(
                "signflash: mask must be u8, 0 where a query does not see a key, got {got:?}; make it with ne(0)"
            )
        }
        Ok(Self {
            alibi_slopes: alibi_slopes.map(slopes).transpose()?,
            bias: bias.map(|bias| of_entries("bias", bias, keys)).transpose()?,
            mask: mask.map(|mask| of_entries("mask", mask, keys)).transpose()?,
            sinks: sinks.map(of_heads).transpose()?,
        })
    }

    /// The problem of such scores.
    pub(crate) fn declare(&self, builder: ProblemBuilder) -> ProblemBuilder {
        let slopes = self.alibi_slopes.as_ref().map(|slopes| match slopes.dims()[2] {
            1 => Slopes::PerHead,
            _ => Slopes::PerSequence,
        });
        let mut builder = builder.alibi(slopes).sinks(self.sinks.is_some());
        if let Some(bias) = &self.bias {
            builder = builder.bias(dtype_of(bias.dtype()), sizes(bias));
        }
        match &self.mask {
            Some(mask) => builder.mask(sizes(mask)),
            None => builder,
        }
    }

    /// That these are what the problem declares.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        let described = |tensor, x: &Option<Tensor>| {
            x.as_ref().map(|x| Description { tensor, shape: sizes(x), strides: four(x.stride()) })
        };
        let bias = described(TensorName::Bias, &self.bias);
        let given = ScoreDescription {
            alibi_slopes: described(TensorName::AlibiSlopes, &self.alibi_slopes),
            bias: self.bias.as_ref().map(|bias| dtype_of(bias.dtype())).zip(bias),
            mask: described(TensorName::Mask, &self.mask),
            sinks: self.sinks.as_ref().map(Tensor::elem_count),
        };
        given.check(problem).map_err(refused)
    }

    /// That they lie where q does.
    pub(crate) fn check_device(&self, q: &Tensor) -> Result<()> {
        let named = [
            ("alibi_slopes", &self.alibi_slopes),
            ("bias", &self.bias),
            ("mask", &self.mask),
            ("sinks", &self.sinks),
        ];
        for (name, tensor) in named {
            tensor.as_ref().map_or(Ok(()), |tensor| judge_device(name, tensor, q))?;
        }
        Ok(())
    }

    /// Those that a variable leads to.
    pub(crate) fn wanted(&self) -> Wanted {
        let tracked = |x: &Option<Tensor>| x.as_ref().is_some_and(Tensor::track_op);
        Wanted { dbias: tracked(&self.bias), dsinks: tracked(&self.sinks) }
    }

    pub(crate) fn held(&self) -> HeldOperands<'_> {
        HeldOperands {
            alibi_slopes: self.alibi_slopes.as_ref().map(Held::of),
            bias: self.bias.as_ref().map(Held::of),
            mask: self.mask.as_ref().map(Held::of),
            sinks: self.sinks.as_ref().map(Held::of),
        }
    }
}

/// That a tensor lies where q does.
pub(crate) fn judge_device(name: &str, tensor: &Tensor, q: &Tensor) -> Result<()> {
    if tensor.device().same_device(q.device()) {
        return Ok(());
    }
    let [expected, got] = [q, tensor].map(|x| x.device().location());
    bail!("signflash: {name} must lie on q's device {expected:?}, got {got:?}; move it with to_device")
}

fn judge_float(name: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        got => bail!("signflash: {name} must be f32, f16 or bf16, got {got:?}; convert it with to_dtype"),
    }
}

/// (num_heads) or (sequences, num_heads) as (1, 1, 1 or sequences, num_heads).
fn slopes(slopes: &Tensor) -> Result<Tensor> {
    if slopes.track_op() {
        bail!(
            "signflash: alibi_slopes must not require a gradient, got some that a variable leads to; they have none: \
             detach them"
        )
    }
    let dims = match *slopes.dims() {
        [num_heads] => (1, 1, 1, num_heads),
        [sequences, num_heads] => (1, 1, sequences, num_heads),
        ref got => bail!("signflash: alibi_slopes must be (num_heads) or (batch, num_heads), got {got:?}"),
    };
    slopes.to_dtype(DType::F32)?.contiguous()?.reshape(dims)
}

/// A bias or a mask in four dimensions; a last one of 1 is repeated for all keys.
fn of_entries(name: &str, tensor: &Tensor, keys: Option<usize>) -> Result<Tensor> {
    if !(1..=4).contains(&tensor.rank()) {
        let got = tensor.dims();
        bail!(
            "signflash: {name} must be (batch, num_heads, seqlen_q, seqlen_k), each of the first three or 1, got {got:?}"
        )
    }
    let mut tensor = tensor.clone();
    while tensor.rank() < 4 {
        tensor = tensor.unsqueeze(0)?;
    }
    let [a, b, c, d] = sizes(&tensor);
    match keys {
        Some(keys) if d == 1 && keys != 1 => tensor.broadcast_as((a, b, c, keys)),
        _ => Ok(tensor),
    }
}

fn of_heads(sinks: &Tensor) -> Result<Tensor> {
    match sinks.rank() {
        1 => sinks.to_dtype(DType::F32)?.contiguous(),
        _ => bail!("signflash: sinks must be (num_heads), got {:?}", sinks.dims()),
    }
}

/// Of a tensor that was given four dimensions.
pub(crate) fn sizes(tensor: &Tensor) -> [usize; 4] {
    four(tensor.dims())
}

fn four(numbers: &[usize]) -> [usize; 4] {
    numbers.try_into().expect("operands of entries were given four dimensions")
}

/// Of a dtype that was judged.
fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        _ => Dtype::F32,
    }
}
