"""The formulas, in float64 with PyTorch's own autograd, and the dropout mask as NumPy computes it."""

import math

import numpy as np

LOW32, SHIFT32 = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32_7(key, counter):
    k0, k1 = (np.uint64(x) for x in key)
    c0, c1, c2, c3 = (np.asarray(x, np.uint64) for x in counter)
    for _ in range(7):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> SHIFT32) ^ c1 ^ k0, p1 & LOW32, (p0 >> SHIFT32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & LOW32, (k1 + np.uint64(0xBB67AE85)) & LOW32
    return c0, c1, c2, c3


def threshold(p):
    return int(np.floor(np.float64(np.float32(1) - np.float32(p)) * 255.0))


def keep(shape, p, seed, offset=0, first=(0, 0, 0, 0), num_heads_total=None):
    """FlashAttention-2's dropout mask, from its definition: bool (batch, num_heads, seqlen_q, seqlen_k)."""
    batch, heads, rows, columns = shape
    total = num_heads_total or heads
    i, j = np.meshgrid(np.arange(rows) + first[2], np.arange(columns) + first[3], indexing="ij")
    lane = ((i % 8) * 4 + (j % 8) // 2).astype(np.uint64)
    byte = 8 * ((j // 16) % 2) + 4 * ((j // 8) % 2) + 2 * ((i // 8) % 2) + j % 2
    kept = np.empty(shape, bool)
    for b in range(batch):
        for h in range(heads):
            stream = ((b + first[0]) * total + h + first[1]) * 32
            o = np.uint64((offset + stream) & 0xFFFF_FFFF_FFFF_FFFF) + lane
            words = philox4x32_7((seed & 0xFFFFFFFF, seed >> 32), (o & LOW32, o >> SHIFT32, i // 16, j // 32))
            word = np.take_along_axis(np.stack(words), (byte // 4)[None], 0)[0]
            kept[b, h] = ((word >> (8 * (byte % 4)).astype(np.uint64)) & np.uint64(255)) <= np.uint64(threshold(p))
    return kept


def keep_scale(p, nominal):
    if p == 0:
        return 1.0
    return 1 / (1 - p) if nominal else 256 / (threshold(p) + 1)


def hidden(rows, columns, causal=False, window=(-1, -1)):
    """Which keys a query does not see, from the definition: query i faces key i + columns - rows."""
    import torch

    behind = torch.arange(columns)[None, :] - (torch.arange(rows)[:, None] + columns - rows)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros(rows, columns, dtype=torch.bool)
    if left >= 0:
        hidden |= behind < -left
    if right >= 0:
        hidden |= behind > right
    return hidden


def attention(
    q,
    k,
    v,
    *,
    keep=None,
    scale=1.0,
    causal=False,
    window=(-1, -1),
    softmax_scale=None,
    softcap=None,
    alibi_slopes=None,
    bias=None,
    mask=None,
    sinks=None,
):
    """(out, lse, probabilities) in float64; tensors (batch, seqlen, heads, head_dim), differentiable."""
    import torch

    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale)
    rows, columns = scores.shape[-2:]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        distance = (torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)).abs().to(q.device)
        scores = scores - alibi_slopes.double()[..., None, None] * distance
    seen = ~hidden(rows, columns, causal, window).to(q.device)
    if bias is not None:
        scores = scores + bias.double()
        seen = seen & (bias != -math.inf)
    if mask is not None:
        seen = seen & mask
    scores = scores.masked_fill(~seen, -math.inf)
    logits = scores
    if sinks is not None:
        logits = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:3], 1)], -1)
    lse = torch.logsumexp(logits, -1)
    probs = torch.exp(scores - lse.masked_fill(torch.isinf(lse), 0)[..., None])
    kept = probs if keep is None else probs * torch.as_tensor(keep, device=q.device)
    return (kept @ v * scale).transpose(1, 2), lse, probs


def packed(q, k, v, lengths, *, keep=None, **settings):
    """(out, lse) of packed sequences, (total_q, heads, head_dim) and (heads, total_q): each by itself, zeros behind
    the last.

    lengths are pairs (queries, keys); keep is (sequences, heads, the most queries, the most keys), bias and mask are alike
    or 1 in any but the last, alibi_slopes (heads) or (sequences, heads).
    """
    import torch

    def of_entries(x, b, of_q, of_k):
        own = slice(b, b + 1) if x.shape[0] > 1 else slice(1)
        return x[own, :, : of_q if x.shape[2] > 1 else 1, :of_k]

    outs, lses, first_q, first_k = [], [], 0, 0
    for b, (of_q, of_k) in enumerate(lengths):
        own = [q[first_q : first_q + of_q], *(x[first_k : first_k + of_k] for x in (k, v))]
        kept = None if keep is None else keep[b : b + 1, :, :of_q, :of_k]
        joined = {name: of_entries(settings[name], b, of_q, of_k) for name in ("bias", "mask") if name in settings}
        slopes = settings.get("alibi_slopes")
        if slopes is not None and slopes.dim() == 2:
            joined["alibi_slopes"] = slopes[b]
        out, lse, _ = attention(*(x[None] for x in own), keep=kept, **{**settings, **joined})
        outs.append(out[0])
        lses.append(lse[0])
        first_q, first_k = first_q + of_q, first_k + of_k
    rest = (q[first_q:].double() * 0).sum(-1, keepdim=True).expand(-1, -1, v.shape[-1])
    outs.append(rest)
    lses.append(torch.full((q.shape[1], len(rest)), -math.inf, dtype=torch.float64, device=q.device))
    return torch.cat(outs), torch.cat(lses, 1)


def error(got, expected):
    """In the Frobenius norm, relative: docs/contract.md where nothing cancels, which is what these tests compute."""
    got, expected = got.detach().double(), expected.detach().double()
    norm = expected.norm()
    return float((got - expected).norm() / norm) if norm > 0 else float(got.norm())


OUT = {"float32": 1e-6, "float16": 4e-4, "bfloat16": 3e-3}
GRADIENT = {"float32": 3e-6, "float16": 5e-4, "bfloat16": 4e-3}
#: Tensors of fewer numbers average badly: the core's judge, by which the suite goes, knows what rounding makes of each.
FEW = 4096


def gradient_bound(*tensors):
    """Of the gradient of the first, of the coarsest of their dtypes."""
    return max(GRADIENT[str(x.dtype)[6:]] for x in tensors) * (1.25 if tensors[0].numel() < FEW else 1.0)
