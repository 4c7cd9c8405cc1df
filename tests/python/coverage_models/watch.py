"""Sees every dropout of attention probabilities, every fused attention of PyTorch, and every call of ours; and has eager
attention drop what ours has dropped."""

import contextlib
import functools
import os

import torch
import torch.nn.functional as F

#: The largest head_dim that ours takes, and so how many keys' probabilities are read in one call.
KEYS = 256


class Watch:
    """Counts since reset(): ours (all, and with dropout), and dropouts of others."""

    def __init__(self):
        #: What ours kept in each call, and what to multiply it with: recorded, or to be used by eager attention.
        self.kept = self.replayed = None
        self.reset()

    def reset(self):
        self.calls = self.dropped = 0
        self.others = []

    def install(self):
        """From now on F.dropout, F.scaled_dot_product_attention and our attention function are counted."""
        import signflash
        from signflash import _transformers as ours
        from signflash._sdpa import notes
        from transformers import AttentionInterface

        signflash.enable(pytorch=False)
        ours.own.trying.all = os.environ.get("SIGNFLASH_READ") == "all"
        notes.listeners.append(self)
        dropout, fused = F.dropout, F.scaled_dot_product_attention
        unbiased = signflash.keep_scale(0.1)

        @functools.wraps(dropout)  # by its name it is known to whoever overrides it
        def watched_dropout(input, p=0.5, training=True, inplace=False):
            if isinstance(input, ours.recognised.Node):
                return dropout(input, p, training, inplace)
            if training and p > 0 and looks_like_probabilities(input):
                self.others.append(float(p))
                if self.replayed is not None:
                    return self.drop_as_ours(input)
            elif self.kept is not None or self.replayed is not None:
                return input
            return dropout(input, p, training, inplace)

        def watched_fused(query, key, value, attn_mask=None, dropout_p=0.0, *args, **kwargs):
            before, state = self.dropped, torch.get_rng_state()
            if dropout_p > 0 and self.replayed is not None:
                self.others.append(float(dropout_p))
                return self.fused_as_ours(query, key, value, attn_mask, *args, **kwargs)
            result = fused(query, key, value, attn_mask, dropout_p, *args, **kwargs)
            if dropout_p > 0 and self.dropped == before:
                self.others.append(float(dropout_p))
            elif dropout_p > 0 and self.kept is not None:
                mask = None if attn_mask is None else attn_mask.detach()

                def again(v):
                    return fused(query.detach(), key.detach(), v, mask, dropout_p, *args, **kwargs)

                self.keep(again, value, state, 1 / (1 - dropout_p))
            return result

        def attention(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
            state = torch.get_rng_state()
            result = ours.attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
            self.calls += 1
            self.dropped += dropout > 0
            if dropout > 0 and self.kept is not None:
                given = dict(kwargs, dropout=dropout, output_attentions=False)

                def again(v):
                    return ours.attention_forward(module, query, key, v, attention_mask, **given)[0].transpose(1, 2)

                self.keep(again, value, state, unbiased)
            return result

        F.dropout, F.scaled_dot_product_attention = watched_dropout, watched_fused
        for name in (ours.NAME, ours.ALIAS):
            AttentionInterface.register(name, attention)

    def note(self, call, reason, seen):
        """What became of a call of F.scaled_dot_product_attention."""
        if reason is None:
            self.calls += 1
            self.dropped += call.dropout_p > 0

    def keep(self, again, value, state, scale):
        """With the identity for values, ours returns its probabilities, 0 where they were dropped."""
        after, counts = torch.get_rng_state(), (self.calls, self.dropped)
        identity, parts = torch.eye(value.shape[-2], dtype=value.dtype), []
        for columns in identity.split(KEYS, 1):
            torch.set_rng_state(state)
            with torch.no_grad():
                parts.append(again(columns.expand(*value.shape[:-1], -1).contiguous()) != 0)
        torch.set_rng_state(after)
        self.calls, self.dropped = counts
        self.kept.append((torch.cat(parts, -1), scale))

    def drop_as_ours(self, probabilities):
        keep, scale = self.replayed.pop(0)
        keep = keep.reshape(-1, *keep.shape[-2:])[..., : probabilities.shape[-1]]
        return probabilities * keep.reshape(probabilities.shape) * scale

    def fused_as_ours(self, query, key, value, mask=None, is_causal=False, scale=None, enable_gqa=False):
        """PyTorch's documented formula."""
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        return self.drop_as_ours(scores.softmax(-1)) @ value

    @contextlib.contextmanager
    def recording(self):
        """What ours keeps; and nothing but attention drops."""
        self.kept = []
        try:
            yield self.kept
        finally:
            self.kept = None

    @contextlib.contextmanager
    def replaying(self, kept):
        """Eager attention drops what ours has dropped, call by call."""
        self.replayed = list(kept)
        try:
            yield
            if self.replayed:
                raise LookupError(f"eager attention dropped {len(self.replayed)} times less")
        finally:
            self.replayed = None


def looks_like_probabilities(x):
    """Rows that add up to 1, or a softmax not far behind."""
    if x.dim() < 3 or x.shape[-1] < 2 or not x.is_floating_point() or x.numel() == 0:
        return False
    values = x.detach()
    if float(values.min()) < 0:
        return False
    sums = values.float().sum(-1)
    near = ((sums - 1).abs() < 2e-3) | (sums.abs() < 1e-6)
    if bool(near.float().mean() > 0.9) and float(sums.max()) > 0.5:
        return True
    function, depth = x.grad_fn, 0
    while function is not None and depth < 5:
        if "Softmax" in function.name():
            return bool(sums.max() < 1.01)
        function = function.next_functions[0][0] if function.next_functions else None
        depth += 1
    return False
