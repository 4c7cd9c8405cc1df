//! The tensors of a file as the operands of a problem.

use crate::errors::Error;
use crate::files::{Archive, Data, FileElement, Tensor, listing};
use crate::settings::{Layout, Settings};
use signflash_core::{Inputs, Problem, Shape, TensorRef};

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
        Ok(Self { q, k, v, dout, dlse })
    }

    /// As views of the problem's shapes.
    pub fn inputs(&self, problem: &Problem, layout: Layout) -> Inputs<'_, T> {
        let shape = problem.shape();
        Inputs::new(
            layout.view(&self.q, shape.q()),
            layout.view(&self.k, shape.k()),
            layout.view(&self.v, shape.v()),
        )
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

/// The problem that a file and settings describe. Judges every tensor's shape, in the file's order of dimensions, so
/// that messages say what the file's author sees.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Problem`].
pub fn problem(archive: &Archive, settings: &Settings) -> Result<Problem, Error> {
    let layout = settings.layout;
    let q = dims(archive, "q", layout)?;
    let k = dims(archive, "k", layout)?;
    let [batch, seqlen_q, num_heads, head_dim] = q;
    let [_, seqlen_k, num_heads_k, _] = k;
    let expected_k = [batch, seqlen_k, num_heads_k, head_dim];
    expect_shape(archive, "k", layout, expected_k, "same batch and head_dim as q")?;
    expect_shape(archive, "v", layout, expected_k, "that of k")?;
    expect_shape(archive, "dout", layout, q, "that of q")?;
    expect_dlse(archive, [batch, num_heads, seqlen_q])?;
    settings.problem(Shape::new(batch, seqlen_q, seqlen_k).heads(num_heads, num_heads_k).head_dim(head_dim))
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
    let shape: [usize; 4] = tensor.shape.as_slice().try_into().map_err(|_| Error::TensorShape {
        tensor: name,
        got: tensor.shape.clone(),
        expected: "four dimensions".into(),
        meaning: meaning(layout),
    })?;
    Ok(layout.reorder(shape))
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
    let expected = layout.reorder(expected);
    match archive.tensors.get(name) {
        Some(tensor) if tensor.shape != expected => Err(Error::TensorShape {
            tensor: name,
            got: tensor.shape.clone(),
            expected: format!("{expected:?} ({why})"),
            meaning: meaning(layout),
        }),
        _ => Ok(()),
    }
}

/// Judges the shapes of the results that a file holds to be compared with.
///
/// # Errors
/// [`Error::TensorShape`].
pub fn references(archive: &Archive, settings: &Settings, problem: &Problem) -> Result<(), Error> {
    let shape = problem.shape();
    let [out, q, k, v] =
        [shape.out(), shape.q(), shape.k(), shape.v()].map(|shape| settings.layout.reorder(shape));
    let lse = [shape.batch, shape.num_heads, shape.seqlen_q];
    let rows = "(batch, heads, seqlen_q), whatever the layout";
    let signbit = "(batch, heads, seqlen_q, seqlen_k), whatever the layout";
    let expected: [(&'static str, &[usize], &'static str); 6] = [
        ("out", &out, meaning(settings.layout)),
        ("lse", &lse, rows),
        ("dq", &q, meaning(settings.layout)),
        ("dk", &k, meaning(settings.layout)),
        ("dv", &v, meaning(settings.layout)),
        ("signbit", &shape.probs(), signbit),
    ];
    for (tensor, expected, meaning) in expected {
        if let Some(Tensor { shape: got, .. }) =
            archive.tensors.get(tensor).filter(|there| there.shape != expected)
        {
            let (got, expected) = (got.clone(), format!("{expected:?}"));
            return Err(Error::TensorShape { tensor, got, expected, meaning });
        }
    }
    Ok(())
}

/// The gradient of lse, if it is there: of lse's shape, beside a dout.
fn expect_dlse(archive: &Archive, expected: [usize; 3]) -> Result<(), Error> {
    let Some(dlse) = archive.tensors.get("dlse") else { return Ok(()) };
    if dlse.shape != expected {
        return Err(Error::TensorShape {
            tensor: "dlse",
            got: dlse.shape.clone(),
            expected: format!("{expected:?} (that of lse)"),
            meaning: "(batch, heads, seqlen_q), whatever the layout",
        });
    }
    tensor(archive, "dout", "dlse asks for gradients, which need dout: zeros, if only lse has a gradient")?;
    Ok(())
}

const fn meaning(layout: Layout) -> &'static str {
    match layout {
        Layout::Bhsd => "(batch, heads, seqlen, head_dim); if seqlen comes before heads, pass --layout bshd",
        Layout::Bshd => "(batch, seqlen, heads, head_dim); if heads come before seqlen, pass --layout bhsd",
    }
}
