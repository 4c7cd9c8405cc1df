//! The tensors of a file as the operands of a problem.

use crate::errors::Error;
use crate::files::{Archive, Data, FileElement, Tensor, listing};
use crate::joined::{self, Joined};
use crate::packed;
use crate::settings::{Layout, Settings};
use signflash_core::{Inputs, Problem, Shape, TensorName, TensorRef};

/// What attention reads, in the file's layout.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Operands<T> {
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    pub dout: Option<Vec<T>>,
    /// The gradient of lse, (batch, num_heads, seqlen_q) in either layout.
    pub dlse: Option<Vec<f32>>,
    /// What scores are made of besides q and k.
    pub joined: Joined,
}

impl<T: FileElement> Operands<T> {
    /// Takes the tensors out of `archive`; [`problem`] has judged their shapes.
    ///
    /// # Errors
    /// [`Error::TensorDtype`] if they are not all of type `T`, and dlse f32.
    pub fn take(archive: &mut Archive) -> Result<Self, Error> {
        let mut take = |name: &'static str| match archive.tensors.remove(name) {
            Some(tensor) => elements(name, tensor.data).map(Some),
            None => Ok(None),
        };
        let (q, k, v, dout) = (take("q")?, take("k")?, take("v")?, take("dout")?);
        let (q, k, v) = (q.unwrap_or_default(), k.unwrap_or_default(), v.unwrap_or_default());
        let dlse = archive.tensors.remove("dlse").map(|dlse| rows("dlse", dlse.data)).transpose()?;
        Ok(Self { q, k, v, dout, dlse, joined: Joined::take(archive) })
    }

    /// As views of the problem's shapes.
    pub fn inputs(&self, problem: &Problem, layout: Layout) -> Inputs<'_, T> {
        let shape = problem.shape();
        Inputs::new(
            layout.view(&self.q, shape.q()),
            layout.view(&self.k, shape.k()),
            layout.view(&self.v, shape.v()),
        )
        .scores(self.joined.scores(problem))
    }

    /// dout as a view, if there is one.
    pub fn dout(&self, problem: &Problem, layout: Layout) -> Option<TensorRef<'_, T>> {
        self.dout.as_deref().map(|dout| layout.view(dout, problem.shape().out()))
    }
}

/// One number a row, which is f32 whatever q is.
fn rows(tensor: &'static str, data: Data) -> Result<Vec<f32>, Error> {
    f32::take(data).map_err(|other| Error::TensorDtype {
        tensor,
        got: other.name(),
        expected: "f32, that of lse".into(),
    })
}

fn elements<T: FileElement>(tensor: &'static str, data: Data) -> Result<Vec<T>, Error> {
    T::take(data).map_err(|other| Error::TensorDtype {
        tensor,
        got: other.name(),
        expected: format!("{}, that of q", T::DTYPE),
    })
}

/// The problem that a file and settings describe, and the order of its dimensions. Judges every tensor's shape, in the
/// file's order of dimensions, so that messages say what the file's author sees.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Problem`]; what [`packed::cu_seqlens`] says;
/// [`Error::Argument`] for a layout that does not go with them.
pub fn problem(archive: &Archive, settings: &Settings) -> Result<(Problem, Layout), Error> {
    let packed = packed::cu_seqlens(archive)?;
    let layout = layout(settings, packed.is_some())?;
    let q = dims(archive, "q", layout)?;
    let k = dims(archive, "k", layout)?;
    let [batch, seqlen_q, num_heads, head_dim] = q;
    let [_, seqlen_k, num_heads_k, _] = k;
    let expected_k = [batch, seqlen_k, num_heads_k, head_dim];
    let as_q = if packed.is_some() { "same head_dim as q" } else { "same batch and head_dim as q" };
    expect_shape(archive, "k", layout, expected_k, as_q)?;
    let head_dim_v = dims(archive, "v", layout)?[3];
    let expected_v = [batch, seqlen_k, num_heads_k, head_dim_v];
    expect_shape(archive, "v", layout, expected_v, "that of k, with a head_dim of its own")?;
    let expected_out = [batch, seqlen_q, num_heads, head_dim_v];
    expect_shape(archive, "dout", layout, expected_out, "that of q, with v's head_dim")?;
    let shape = Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim);
    let builder = joined::declare(archive, settings.builder(shape.head_dim_v(head_dim_v))?, num_heads)?;
    let problem = match &packed {
        None => builder.build()?,
        Some([q, k]) => builder.packed(q, k).build()?,
    };
    joined::check_slopes(archive, &problem)?;
    expect_dlse(archive, &problem, layout)?;
    Ok((problem, layout))
}

/// The order that the settings say, which is of packed sequences if these are.
fn layout(settings: &Settings, packed: bool) -> Result<Layout, Error> {
    let expected = match (settings.layout, packed) {
        (None, true) => return Ok(Layout::Thd),
        (None, false) => return Ok(Layout::default()),
        (Some(layout), _) if (layout == Layout::Thd) == packed => return Ok(layout),
        (Some(_), true) => {
            "thd with cu_seqlens_q and cu_seqlens_k: tensors of packed sequences are (tokens, heads, head_dim)"
        }
        (Some(_), false) => "bhsd or bshd without the tensors cu_seqlens_q and cu_seqlens_k",
    };
    let got = settings.layout.map_or("nothing", Layout::name).to_string();
    Err(Error::Argument { argument: "layout", expected: expected.into(), got })
}

/// The tensor, or a sentence.
///
/// # Errors
/// [`Error::MissingTensor`].
pub fn tensor<'a>(
    archive: &'a Archive,
    name: &'static str,
    remedy: &'static str,
) -> Result<&'a Tensor, Error> {
    archive.tensors.get(name).ok_or_else(|| Error::MissingTensor {
        tensor: name,
        present: listing(&archive.present),
        remedy,
    })
}

/// (batch, seqlen, heads, head_dim) of a tensor that must be there.
fn dims(archive: &Archive, name: &'static str, layout: Layout) -> Result<[usize; 4], Error> {
    let tensor = tensor(archive, name, "attention needs q, k and v")?;
    layout.of_file(&tensor.shape).ok_or_else(|| Error::TensorShape {
        tensor: name,
        got: tensor.shape.clone(),
        expected: if layout == Layout::Thd { "three dimensions" } else { "four dimensions" }.into(),
        meaning: layout.meaning(TensorName::Q),
    })
}

/// `expected` is (batch, seqlen, heads, head_dim). A tensor that is not there has no wrong shape, except v.
fn expect_shape(
    archive: &Archive,
    name: &'static str,
    layout: Layout,
    expected: [usize; 4],
    why: &str,
) -> Result<(), Error> {
    if name != "dout" {
        dims(archive, name, layout)?;
    }
    let expected = layout.in_file(expected);
    match archive.tensors.get(name) {
        Some(tensor) if tensor.shape != expected => Err(Error::TensorShape {
            tensor: name,
            got: tensor.shape.clone(),
            expected: format!("{expected:?} ({why})"),
            meaning: layout.meaning(TensorName::Q),
        }),
        _ => Ok(()),
    }
}

/// Judges the shapes of the results that a file holds to be compared with.
///
/// # Errors
/// [`Error::TensorShape`].
pub fn references(archive: &Archive, problem: &Problem, layout: Layout) -> Result<(), Error> {
    let named: [(&'static str, TensorName); 8] = [
        ("out", TensorName::Out),
        ("lse", TensorName::Lse),
        ("dq", TensorName::Dq),
        ("dk", TensorName::Dk),
        ("dv", TensorName::Dv),
        ("dbias", TensorName::Dbias),
        ("dsinks", TensorName::Dsinks),
        ("signbit", TensorName::Probs),
    ];
    for (tensor, like) in named {
        let expected = layout.shape_of(problem, like);
        if let Some(Tensor { shape: got, .. }) =
            archive.tensors.get(tensor).filter(|there| there.shape != expected)
        {
            let (got, expected) = (got.clone(), format!("{expected:?}"));
            return Err(Error::TensorShape { tensor, got, expected, meaning: layout.meaning(like) });
        }
    }
    Ok(())
}

/// The gradient of lse, if it is there: of lse's shape, beside a dout.
fn expect_dlse(archive: &Archive, problem: &Problem, layout: Layout) -> Result<(), Error> {
    let Some(dlse) = archive.tensors.get("dlse") else { return Ok(()) };
    let expected = layout.shape_of(problem, TensorName::Dlse);
    if dlse.shape != expected {
        return Err(Error::TensorShape {
            tensor: "dlse",
            got: dlse.shape.clone(),
            expected: format!("{expected:?} (that of lse)"),
            meaning: layout.meaning(TensorName::Dlse),
        });
    }
    tensor(archive, "dout", "dlse asks for gradients, which need dout: zeros, if only lse has a gradient")?;
    Ok(())
}
