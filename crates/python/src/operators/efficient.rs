//! PyTorch's operator for its efficient kernel, to which masks come as numbers: with dropout ours.

use super::drawn::{self, Drawn};
use super::given::{Given, Saved};
use super::operand::{Operand, Room};
use super::python;
use super::stable::{Handle, Outcome, Tensor, Torch, signed};
use super::stack::{Arguments, Found};
use crate::dims::Dims;
use signflash_core::Dtype;
use std::ptr::null_mut;

/// PyTorch's kernel has rows of lse for so many queries at once.
const ROWS: usize = 32;
/// Rows of a bias's gradient begin at multiples of so many numbers, as PyTorch's tracing predicts.
const ALIGNED: usize = 16;

/// (out, lse, seed, offset); lse has room for a multiple of 32 queries, or none.
pub(crate) fn forward(torch: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let tensors = [(); 3].map(|()| arguments.tensor());
    let bias = arguments.optional_tensor();
    let wants_lse = arguments.flag();
    let (dropout_p, is_causal) = (arguments.number(), arguments.flag());
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, bias)? };
    if let Some(why) = given.why_left() {
        python::leave(&given, why)?;
        return own_forward(torch, &given, wants_lse);
    }
    let out = Room::rows_first(&given.q, given.v.shape()[3])?;
    let drawn = Drawn::of(&given)?;
    let lse = given.forward(&out.lies, drawn.for_kernels()?, None)?;
    let lse = if wants_lse { padded(&given, lse)? } else { no_lse(&given)? };
    let [seed, offset] = drawn.as_two(torch)?;
    Ok([out.filled()?, lse, seed, offset].map(Found::Tensor).into())
}

/// (dq, dk, dv, dbias or nothing); what autograd does not ask for may be there all the same.
pub(crate) fn backward(torch: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let grad_out = arguments.tensor();
    let tensors = [(); 3].map(|()| arguments.tensor());
    let bias = arguments.defined()?;
    let [out, lse, seed, offset] = [(); 4].map(|()| arguments.tensor());
    let dropout_p = arguments.number();
    let wanted = arguments.flags::<4>()?;
    let is_causal = arguments.flag();
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, bias)? };
    if given.why_left().is_some() {
        return own_backward(torch, &given, [grad_out, out, lse, seed, offset], wanted);
    }
    let saved = Saved {
        out: Operand::new(out)?,
        grad_out: Operand::new(grad_out)?,
        lse: Operand::new(cut(&given, lse)?)?.into_dense()?,
        state: drawn::of_two(&seed, &offset)?,
    };
    let [dq, dk, dv] = [&given.q, &given.k, &given.v].map(|x| Room::rows_first(x, x.shape()[3]));
    let rooms = [dq?, dk?, dv?];
    let dbias =
        given.backward(&saved, [&rooms[0], &rooms[1], &rooms[2]], wanted[3] && given.bias.is_some())?;
    let [dq, dk, dv] = rooms.map(Room::filled);
    let dbias = dbias.map(|dbias| in_aligned_rows(dbias, given.q.gpu)).transpose()?;
    Ok([dq?, dk?, dv?]
        .map(Found::Tensor)
        .into_iter()
        .chain([dbias.map_or(Found::Nothing, Found::Tensor)])
        .collect())
}

fn no_lse(given: &Given) -> Outcome<Tensor> {
    let torch = given.torch();
    let [batch, num_heads, ..] = given.q.shape();
    torch.empty(
        &signed([batch, num_heads, 0]),
        &[num_heads.max(1) as i64, 1, 1],
        torch.code(Dtype::F32)?,
        given.q.gpu,
    )
}

/// With room for a multiple of 32 queries.
fn padded(given: &Given, lse: Tensor) -> Outcome<Tensor> {
    let torch = given.torch();
    let [batch, num_heads, seqlen_q, _] = given.q.shape();
    let all = seqlen_q.next_multiple_of(ROWS);
    if all == seqlen_q {
        return Ok(lse);
    }
    let strides = signed([num_heads * all, all, 1]);
    let padded =
        torch.empty(&signed([batch, num_heads, all]), &strides, torch.code(Dtype::F32)?, given.q.gpu)?;
    padded.zero()?;
    padded.view(&signed([batch, num_heads, seqlen_q]), &strides, 0)?.copy_from(&lse)?;
    Ok(padded)
}

/// Without that room.
fn cut(given: &Given, lse: Tensor) -> Outcome<Tensor> {
    let Dims { shape, strides, count } = lse.dims()?;
    let [batch, num_heads, seqlen_q, _] = given.q.shape();
    if count != 3 || shape[3] <= seqlen_q {
        return Ok(lse);
    }
    let first = lse.within_storage()?.0 as i64;
    lse.view(&signed([batch, num_heads, seqlen_q]), &signed([strides[1], strides[2], strides[3]]), first)
}

fn in_aligned_rows(dbias: Tensor, gpu: Option<u32>) -> Outcome<Tensor> {
    let shape = dbias.dims()?.shape;
    let [batch, num_heads, seqlen_q, seqlen_k] = shape;
    let all = seqlen_k.next_multiple_of(ALIGNED);
    if all == seqlen_k {
        return Ok(dbias);
    }
    let torch = dbias.torch();
    let wide = torch.dense([batch, num_heads, seqlen_q, all], dbias.dtype()?, gpu)?;
    let strides = signed([num_heads * seqlen_q * all, seqlen_q * all, all, 1]);
    let narrow = wide.view(&signed(shape), &strides, 0)?;
    narrow.copy_from(&dbias)?;
    Ok(narrow)
}

/// By PyTorch's own kernel.
fn own_forward(torch: &'static Torch, given: &Given, wants_lse: bool) -> Outcome<Vec<Found>> {
    let [q, k, v] = given.handles()?;
    let (mut bias, mut scale) = (given.bias_handle(), given.scale);
    let mut made = [null_mut(); 4];
    let [r0, r1, r2, r3] = made.each_mut().map(|handle| handle as *mut Handle);
    // SAFETY: handles that live as long as this; it writes handles that are ours.
    let status = unsafe {
        let (bias, scale) =
            (bias.as_mut().map_or(null_mut(), |x| x), scale.as_mut().map_or(null_mut(), |x| x));
        let is_causal = given.is_causal.into();
        (torch.functions.efficient)(
            q,
            k,
            v,
            bias,
            wants_lse.into(),
            given.dropout_p,
            is_causal,
            scale,
            r0,
            r1,
            r2,
            r3,
        )
    };
    torch.check(status)?;
    made.map(|handle| torch.made(0, handle).map(Found::Tensor)).into_iter().collect()
}

fn own_backward(
    torch: &'static Torch,
    given: &Given,
    [grad_out, out, lse, seed, offset]: [Tensor; 5],
    wanted: [bool; 4],
) -> Outcome<Vec<Found>> {
    let [q, k, v] = given.handles()?;
    let nothing = torch.nothing()?;
    let (bias, mut scale) = (given.bias_handle().unwrap_or(nothing.handle()), given.scale);
    let (wanted, mut made) = (wanted.map(i32::from), [null_mut(); 4]);
    let [r0, r1, r2, r3] = made.each_mut().map(|handle| handle as *mut Handle);
    let [grad_out, out, lse, seed, offset] = [&grad_out, &out, &lse, &seed, &offset].map(Tensor::handle);
    // SAFETY: as above.
    let status = unsafe {
        let scale = scale.as_mut().map_or(null_mut(), |x| x);
        let (p, is_causal, count) = (given.dropout_p, given.is_causal.into(), wanted.len() as i64);
        (torch.functions.efficient_backward)(
            grad_out,
            q,
            k,
            v,
            bias,
            out,
            lse,
            seed,
            offset,
            p,
            wanted.as_ptr(),
            count,
            is_causal,
            scale,
            r0,
            r1,
            r2,
            r3,
        )
    };
    torch.check(status)?;
    made.map(|handle| torch.made(0, handle).map(Found::Tensor)).into_iter().collect()
}
