//! PyTorch's operator for its flash kernel: all calls are ours, with dropout and without.

use super::drawn::{self, Drawn};
use super::given::{Given, Saved};
use super::operand::{Operand, Room};
use super::stable::{Outcome, Torch, signed};
use super::stack::{Arguments, Found};
use crate::settings::RandomState;
use signflash_core::contiguous_strides;

/// (output, logsumexp, None, None, max_q, max_k, rng_state, unused, debug_attn_mask); the last are our probs.
pub(crate) fn forward(torch: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let tensors = [(); 3].map(|()| arguments.tensor());
    let (dropout_p, is_causal, wants_probs) = (arguments.number(), arguments.flag(), arguments.flag());
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, None)? };
    let out = Room::like(&given.q)?;
    let drawn = Drawn::of(&given)?;
    let ([batch, num_heads, seqlen_q, _], seqlen_k) = (given.q.shape(), given.k.shape()[2]);
    let shape = if wants_probs { vec![batch, num_heads, seqlen_q, seqlen_k] } else { vec![0] };
    let strides = if wants_probs {
        contiguous_strides([batch, num_heads, seqlen_q, seqlen_k]).to_vec()
    } else {
        vec![1]
    };
    let [shape, strides] =
        [shape, strides].map(|numbers| numbers.iter().map(|&x| x as i64).collect::<Vec<_>>());
    let probs = torch.empty(&shape, &strides, given.q.dtype, given.q.gpu)?;
    let lse = given.forward(&out.lies, drawn.for_kernels()?, wants_probs.then_some(&probs))?;
    // Nobody reads a state without dropout; while a graph is captured, all that is returned has to be on the GPU.
    let state = match dropout_p {
        0.0 => torch.row(2, torch.codes.uint64, given.q.gpu)?,
        _ => drawn.as_one(torch)?,
    };
    let unused = torch.empty(&[], &[], torch.codes.uint64, given.q.gpu)?;
    let lengths = signed([seqlen_q, seqlen_k]).map(Found::Integer);
    let [max_q, max_k] = lengths;
    Ok(vec![
        Found::Tensor(out.filled()?),
        Found::Tensor(lse),
        Found::Nothing,
        Found::Nothing,
        max_q,
        max_k,
        Found::Tensor(state),
        Found::Tensor(unused),
        Found::Tensor(probs),
    ])
}

/// (grad_query, grad_key, grad_value).
pub(crate) fn backward(_: &'static Torch, mut arguments: Arguments<'_>) -> Outcome<Vec<Found>> {
    let grad_out = arguments.tensor();
    let tensors = [(); 3].map(|()| arguments.tensor());
    let [out, lse, _, _] = [(); 4].map(|()| arguments.tensor());
    let (_, _) = (arguments.integer(), arguments.integer());
    let (dropout_p, is_causal) = (arguments.number(), arguments.flag());
    let [state, _] = [(); 2].map(|()| arguments.tensor());
    let given =
        Given { dropout_p, is_causal, scale: arguments.optional_number(), ..Given::new(tensors, None)? };
    let saved = Saved {
        out: Operand::new(out)?,
        grad_out: Operand::new(grad_out)?,
        lse: Operand::new(lse)?.into_dense()?,
        state: if dropout_p > 0.0 { drawn::of_one(&state)? } else { RandomState::default() },
    };
    let [dq, dk, dv] = [&given.q, &given.k, &given.v].map(Room::like);
    let rooms = [dq?, dk?, dv?];
    given.backward(&saved, [&rooms[0], &rooms[1], &rooms[2]], false)?;
    rooms.map(|room| room.filled().map(Found::Tensor)).into_iter().collect()
}
