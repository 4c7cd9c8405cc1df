//! A tensor of a call, and how kernels read and write it: rows first, (batch, seqlen, num_heads, head_dim), where PyTorch's
//! operators have (batch, num_heads, seqlen, head_dim).

use super::stable::{Failure, Outcome, Tensor, signed};
use crate::call::Place;
use crate::dims::Dims;
use crate::exchange::Elements;
use crate::foreign::ForeignTensor;
use crate::lent::Layout;
use signflash_core::{Dtype, contiguous_strides};

/// With what is asked of it more than once.
pub(crate) struct Operand {
    pub(crate) tensor: Tensor,
    pub(crate) dims: Dims,
    pub(crate) dtype: i32,
    pub(crate) gpu: Option<u32>,
}

/// A tensor that kernels can read, and the copy that it is, if it could not be read where it was.
pub(crate) struct Readable {
    pub(crate) lies: ForeignTensor,
    _copy: Option<Tensor>,
}

impl Operand {
    pub(crate) fn new(tensor: Tensor) -> Outcome<Self> {
        Ok(Self { dims: tensor.dims()?, dtype: tensor.dtype()?, gpu: tensor.gpu()?, tensor })
    }

    /// (batch, num_heads, seqlen, head_dim).
    pub(crate) fn shape(&self) -> [usize; 4] {
        self.dims.shape
    }

    pub(crate) fn is_of(&self, dtype: Dtype) -> bool {
        self.tensor.torch().float_of(self.dtype) == Some(dtype)
    }

    /// As kernels read it.
    pub(crate) fn rows_first(&self, layout: Layout) -> Outcome<Readable> {
        let lent = self.tensor.lent(rows_first(self.dims), self.gpu)?;
        if let Some(lies) = lent.readable(layout) {
            return Ok(Readable { lies, _copy: None });
        }
        self.require_memory(lent.is_in_memory(layout.dtype.size_bytes()))?;
        let copy = self.copied()?;
        let lies = copy.tensor.lent(rows_first(copy.dims), copy.gpu)?.readable(layout);
        let lies = lies.ok_or_else(|| self.unreadable(layout))?;
        Ok(Readable { lies, _copy: Some(copy.tensor) })
    }

    /// Numbers of scores, as they lie, or a dense copy of them.
    pub(crate) fn entries(&self, dims: Dims, dtype: Dtype, at: Place) -> Outcome<Readable> {
        let lent = self.tensor.lent(dims, self.gpu)?;
        if let Some(lies) = lent.entries(Elements::Float(dtype), dtype.size_bytes(), at) {
            return Ok(Readable { lies, _copy: None });
        }
        self.require_memory(lent.is_in_memory(dtype.size_bytes()))?;
        Err(Failure(
            "attn_bias cannot be read where it lies: it must be of floats, aligned, on query's device"
                .to_owned(),
        ))
    }

    fn require_memory(&self, is_there: bool) -> Outcome<()> {
        if is_there {
            return Ok(());
        }
        Err(Failure(format!(
            "a tensor of shape {:?} reaches beyond its storage: its memory was freed or shortened \
             (untyped_storage().resize_, as FSDP does to parameters); call while it is there",
            &self.dims.shape[4 - self.dims.count..]
        )))
    }

    fn unreadable(&self, layout: Layout) -> Failure {
        let got = self.tensor.torch().float_of(self.dtype);
        let got = got.map_or("another dtype".to_owned(), |dtype| dtype.to_string());
        Failure(format!(
            "query, key, value, their output and its gradient must have one dtype and device, (batch, num_heads, seqlen, \
             head_dim): expected {} on {:?}, got {got} of shape {:?} on {:?}",
            layout.dtype,
            layout.at,
            &self.dims.shape[4 - self.dims.count..],
            self.gpu
        ))
    }

    /// A dense copy.
    fn copied(&self) -> Outcome<Operand> {
        let Self { dims: Dims { count, shape, .. }, dtype, gpu, ref tensor } = *self;
        let strides = contiguous_strides(shape);
        let (sizes, of_sizes) = (signed(shape), signed(strides));
        let copy = tensor.torch().empty(&sizes[4 - count..], &of_sizes[4 - count..], dtype, gpu)?;
        copy.copy_from(tensor)?;
        Ok(Self { tensor: copy, dims: Dims { count, shape, strides }, dtype, gpu })
    }

    /// A dense copy, if it is not dense already.
    pub(crate) fn into_dense(self) -> Outcome<Operand> {
        let Dims { shape, strides, .. } = self.dims;
        let dense = contiguous_strides(shape);
        let is_dense = shape.contains(&0) || (0..4).all(|dim| shape[dim] == 1 || strides[dim] == dense[dim]);
        if is_dense { Ok(self) } else { self.copied() }
    }
}

fn rows_first(dims: Dims) -> Dims {
    let Dims { count, mut shape, mut strides } = dims;
    shape.swap(1, 2);
    strides.swap(1, 2);
    Dims { count, shape, strides }
}

/// Room for a result (batch, num_heads, seqlen, head_dim), and for what kernels write of it: their last dimension is dense.
pub(crate) struct Room {
    result: Tensor,
    written: Option<Tensor>,
    /// Rows first.
    pub(crate) lies: ForeignTensor,
}

impl Room {
    /// That lies with these strides.
    pub(crate) fn new(like: &Operand, shape: [usize; 4], strides: [usize; 4]) -> Outcome<Self> {
        let torch = like.tensor.torch();
        let result = torch.empty(&signed(shape), &signed(strides), like.dtype, like.gpu)?;
        let fits = strides[3] == 1 || shape[3] == 1;
        let written = if fits { None } else { Some(torch.dense(shape, like.dtype, like.gpu)?) };
        let strides = if fits { strides } else { contiguous_strides(shape) };
        let address = written.as_ref().unwrap_or(&result).address()?;
        let lies = ForeignTensor {
            address,
            shape: [shape[0], shape[2], shape[1], shape[3]],
            strides: [strides[0], strides[2], strides[1], strides[3]],
        };
        Ok(Self { result, written, lies })
    }

    /// As `torch.empty_like` has it.
    pub(crate) fn like(x: &Operand) -> Outcome<Self> {
        Self::new(x, x.shape(), strides_like(x.dims.shape, x.dims.strides))
    }

    /// With a head_dim of its own, its dimensions in memory in the order of x's.
    pub(crate) fn in_order_of(x: &Operand, head_dim: usize) -> Outcome<Self> {
        let mut shape = x.shape();
        if head_dim == shape[3] {
            return Self::like(x);
        }
        shape[3] = head_dim;
        let of = x.dims.strides;
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&dim| (of[dim] == 0, std::cmp::Reverse(of[dim])));
        Self::new(x, shape, strides_in(order, shape))
    }

    /// (batch, num_heads, seqlen, head_dim) of a dense (batch, seqlen, num_heads, head_dim).
    pub(crate) fn rows_first(x: &Operand, head_dim: usize) -> Outcome<Self> {
        let mut shape = x.shape();
        shape[3] = head_dim;
        Self::new(x, shape, strides_in([0, 2, 1, 3], shape))
    }

    pub(crate) fn filled(self) -> Outcome<Tensor> {
        if let Some(written) = &self.written {
            self.result.copy_from(written)?;
        }
        Ok(self.result)
    }
}

/// Dense, with the dimensions in this order, the outermost first.
fn strides_in(order: [usize; 4], shape: [usize; 4]) -> [usize; 4] {
    let mut strides = [0; 4];
    let mut next = 1usize;
    for &dim in order.iter().rev() {
        strides[dim] = next;
        next = next.saturating_mul(shape[dim].max(1));
    }
    strides
}

/// The strides of `torch.empty_like`: those of a tensor without gaps and overlaps; of any other, without them, its dimensions in
/// the same order.
pub(crate) fn strides_like(shape: [usize; 4], strides: [usize; 4]) -> [usize; 4] {
    if is_dense_in_some_order(shape, strides) {
        return strides;
    }
    // PyTorch sorts by insertion, from the innermost on, and leaves those alone that cannot be compared: of stride 0.
    let mut order = [3, 2, 1, 0];
    for last in 1..4 {
        let mut place = last;
        for before in (0..last).rev() {
            match comes_after(shape, strides, order[before], order[place]) {
                std::cmp::Ordering::Greater => {
                    order.swap(before, place);
                    place = before;
                }
                std::cmp::Ordering::Less => break,
                std::cmp::Ordering::Equal => {}
            }
        }
    }
    order.reverse();
    strides_in(order, shape)
}

/// Whether dimension `x` lies further out than `y`.
fn comes_after(shape: [usize; 4], strides: [usize; 4], x: usize, y: usize) -> std::cmp::Ordering {
    if strides[x] == 0 || strides[y] == 0 {
        return std::cmp::Ordering::Equal;
    }
    let by_size = if shape[x] > shape[y] { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Equal };
    strides[x].cmp(&strides[y]).then(by_size)
}

fn is_dense_in_some_order(shape: [usize; 4], strides: [usize; 4]) -> bool {
    let mut order = [0, 1, 2, 3];
    order.sort_by_key(|&dim| strides[dim]);
    let mut next = 1;
    order.iter().filter(|&&dim| shape[dim] > 1).all(|&dim| {
        let fits = strides[dim] == next;
        next *= shape[dim];
        fits
    })
}
