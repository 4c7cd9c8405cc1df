//! PyTorch's operator for cuDNN's kernel, which newer PyTorch prefers on Hopper: with dropout ours.

use super::drawn::{self, Drawn};
use super::given::{Given, Saved};
use super::operand::{Operand, Room};
use super::python;
use super::stable::{Handle, Outcome, Tensor, Torch, signed};
use super::stack::{Arguments, Found};
use crate::dims::Dims;
use std::ptr::null_mut;

/// (out, lse (batch, num_heads, seqlen_q, 1), None, None, max_q, max_k, seed, offset, None).
pub(crate) fn forward(torch: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let tensors = [(); 3].map(|()| arguments.tensor());
    let bias = arguments.optional_tensor();
    let wants_lse = arguments.flag();
    let (dropout_p, is_causal, wants_mask) = (arguments.number(), arguments.flag(), arguments.flag());
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, bias)? };
    if let Some(why) = given.why_left() {
        python::leave(&given, why)?;
        return own_forward(torch, &given, wants_lse, wants_mask);
    }
    let out = Room::in_order_of(&given.q, given.v.shape()[3])?;
    let drawn = Drawn::of(&given)?;
    let lse = given.forward(&out.lies, drawn.for_kernels()?, None)?;
    let [batch, num_heads, seqlen_q, _] = given.q.shape();
    let lse = lse.view(
        &signed([batch, num_heads, seqlen_q, 1]),
        &signed([num_heads * seqlen_q, seqlen_q, 1, 1]),
        0,
    )?;
    let [max_q, max_k] = signed([seqlen_q, given.k.shape()[2]]).map(Found::Integer);
    let [seed, offset] = drawn.as_two(torch)?.map(Found::Tensor);
    let [out, lse] = [out.filled()?, lse].map(Found::Tensor);
    Ok(vec![out, lse, Found::Nothing, Found::Nothing, max_q, max_k, seed, offset, Found::Nothing])
}

/// (dq, dk, dv).
pub(crate) fn backward(torch: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let grad_out = arguments.tensor();
    let tensors = [(); 3].map(|()| arguments.tensor());
    let [out, lse, seed, offset] = [(); 4].map(|()| arguments.tensor());
    let bias = arguments.defined()?;
    let starts = [(); 2].map(|()| arguments.tensor());
    let lengths = [(); 2].map(|()| arguments.integer());
    let (dropout_p, is_causal) = (arguments.number(), arguments.flag());
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, bias)? };
    if given.why_left().is_some() {
        return own_backward(torch, &given, [grad_out, out, lse, seed, offset], starts, lengths);
    }
    let saved = Saved {
        out: Operand::new(out)?,
        grad_out: Operand::new(grad_out)?,
        lse: Operand::new(without_last(lse)?)?.into_dense()?,
        state: drawn::of_two(&seed, &offset)?,
    };
    let [dq, dk, dv] = [&given.q, &given.k, &given.v].map(Room::like);
    let rooms = [dq?, dk?, dv?];
    given.backward(&saved, [&rooms[0], &rooms[1], &rooms[2]], false)?;
    rooms.map(|room| room.filled().map(Found::Tensor)).into_iter().collect()
}

/// (batch, num_heads, seqlen_q) of (batch, num_heads, seqlen_q, 1).
fn without_last(lse: Tensor) -> Outcome<Tensor> {
    let Dims { shape: [a, b, c, d], strides: [of_a, of_b, of_c, _], count } = lse.dims()?;
    if count != 4 || d != 1 {
        return Ok(lse);
    }
    let first = lse.within_storage()?.0 as i64;
    lse.view(&signed([a, b, c]), &signed([of_a, of_b, of_c]), first)
}

/// By PyTorch's own kernel.
fn own_forward(
    torch: &'static Torch,
    given: &Given,
    wants_lse: bool,
    wants_mask: bool,
) -> Outcome<Vec<Found>> {
    let [q, k, v] = given.handles()?;
    let (mut bias, mut scale) = (given.bias_handle(), given.scale);
    let (mut made, mut lengths) = ([null_mut(); 7], [0i64; 2]);
    let [r0, r1, r2, r3, r6, r7, r8] = made.each_mut().map(|handle| handle as *mut Handle);
    let [max_q, max_k] = lengths.each_mut().map(|length| length as *mut i64);
    // SAFETY: handles that live as long as this; it writes handles that are ours, and numbers.
    let status = unsafe {
        let (bias, scale) =
            (bias.as_mut().map_or(null_mut(), |x| x), scale.as_mut().map_or(null_mut(), |x| x));
        let (p, is_causal) = (given.dropout_p, given.is_causal.into());
        (torch.functions.cudnn)(
            q,
            k,
            v,
            bias,
            wants_lse.into(),
            p,
            is_causal,
            wants_mask.into(),
            scale,
            r0,
            r1,
            r2,
            r3,
            max_q,
            max_k,
            r6,
            r7,
            r8,
        )
    };
    torch.check(status)?;
    let mut found = made
        .map(|handle| torch.made(0, handle).map(Found::Tensor))
        .into_iter()
        .collect::<Outcome<Vec<_>>>()?;
    found.splice(4..4, lengths.map(Found::Integer));
    Ok(found)
}

fn own_backward(
    torch: &'static Torch,
    given: &Given,
    [grad_out, out, lse, seed, offset]: [Tensor; 5],
    [starts_q, starts_k]: [Tensor; 2],
    [max_q, max_k]: [i64; 2],
) -> Outcome<Vec<Found>> {
    let [q, k, v] = given.handles()?;
    let nothing = torch.nothing()?;
    let (bias, mut scale) = (given.bias_handle().unwrap_or(nothing.handle()), given.scale);
    let mut made = [null_mut(); 3];
    let [r0, r1, r2] = made.each_mut().map(|handle| handle as *mut Handle);
    let [grad_out, out, lse, seed, offset] = [&grad_out, &out, &lse, &seed, &offset].map(Tensor::handle);
    let [starts_q, starts_k] = [&starts_q, &starts_k].map(Tensor::handle);
    // SAFETY: as above.
    let status = unsafe {
        let scale = scale.as_mut().map_or(null_mut(), |x| x);
        let (p, is_causal) = (given.dropout_p, given.is_causal.into());
        (torch.functions.cudnn_backward)(
            grad_out, q, k, v, out, lse, seed, offset, bias, starts_q, starts_k, max_q, max_k, p, is_causal,
            scale, r0, r1, r2,
        )
    };
    torch.check(status)?;
    made.map(|handle| torch.made(0, handle).map(Found::Tensor)).into_iter().collect()
}
