"""Attention under the transforms of torch.func: the operators as functions that know grad and vmap.

What torch.library makes differentiable cannot be transformed, so these stand between.
"""

from __future__ import annotations

import torch

from . import scores, vmap
from .function import Final, no_derivative_of_probs
from .paths import no_forward_mode


class Forward(torch.autograd.Function):
    """The operator ``attention_forward``, with its arguments."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.signflash.attention_forward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        read, (_, _, _, deterministic, _, *settings) = inputs[: scores.READ], inputs[scores.READ :]
        out, lse, probs, state = output
        ctx.save_for_backward(*read[:3], out, lse, *read[3:], state)
        ctx.rest, ctx.inputs = (deterministic, *settings), len(inputs)
        # A derivative of probs alone would else be zeros, without a word.
        ctx.mark_non_differentiable(state)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dout, dlse, dprobs, _dstate):
        if dprobs is not None:
            raise no_derivative_of_probs()
        *read, state = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(read[3])
        wanted = scores.wanted_by(ctx.needs_input_grad)
        found = Backward.apply(dout, *read, state, dlse, *wanted, *ctx.rest)
        return scores.gradients_of_inputs(found, wanted, ctx.inputs)

    @staticmethod
    def jvp(ctx, *_):
        raise no_forward_mode()

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return vmap.forward(info, in_dims, *arguments)


class Backward(Final):
    """The operator ``attention_backward``, with its arguments."""

    @staticmethod
    def forward(*arguments):
        return torch.ops.signflash.attention_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return vmap.backward(info, in_dims, *arguments)
