"""``debug=True``: ranks compare what they are about to do, and if they differ every one raises the same error."""

from __future__ import annotations

from typing import Dict, List

import torch.distributed as dist

NAME = "signflash.distributed.attention"


def description(q, k, v, bias, sinks, job, given) -> Dict[str, str]:
    """What must be the same on all ranks, in words."""
    call = job.call
    found = {
        "method": repr(given.method),
        "layout": repr(given.layout),
        "seqlen": f"{call.geometry.seqlen_q} queries, {call.geometry.seqlen_k} keys",
        "cu_seqlens_q": repr(call.geometry.starts_q),
        "cu_seqlens_k": repr(call.geometry.starts_k),
        "the random state": repr(job.state),
        "deterministic": repr(call.deterministic),
        "shard": repr(tuple(call.shard)),
    }
    found.update((name, repr(call.settings[name])) for name in ("dropout_p", "causal", "window", "softmax_scale"))
    found.update((name, repr(call.settings[name])) for name in ("scale_rule", "softcap"))
    for name, x in (("q", q), ("k", k), ("v", v)):
        others = [str(size) for dim, size in enumerate(x.shape) if dim != x.dim() - 3]
        found[f"{name}'s dtype"] = str(x.dtype)
        found[f"{name}'s shape but for its positions"] = f"({', '.join(others)})"
    for name, x in (("alibi_slopes", call.alibi_slopes), ("bias", bias), ("mask", call.mask), ("sinks", sinks)):
        # Rows of a bias and a mask are a rank's own.
        found[name] = "None" if x is None else f"{x.dtype}, {[size for dim, size in enumerate(x.shape) if dim != 2]}"
    return found


def refuse_everywhere(ranks, error: Exception) -> None:
    """Tells the others that this rank's arguments are refused, and raises what all of them raise."""
    _compare(ranks, {"error": f"{type(error).__name__}: {error}"}, error)


def all_alike(ranks, own: Dict[str, str]) -> None:
    """That all ranks say the same, and none was refused."""
    _compare(ranks, own, None)


def _compare(ranks, own, cause) -> None:
    every: List[Dict[str, str]] = [{}] * ranks.size
    dist.all_gather_object(every, own, group=ranks.group)
    refused = [f"rank {rank}: {of['error']}" for rank, of in enumerate(every) if "error" in of]
    if refused:
        raise ValueError(
            f"{NAME}: arguments were refused on {len(refused)} of {ranks.size} ranks: " + "; ".join(refused)
        ) from cause
    differences = [_difference(name, [of[name] for of in every]) for name in own]
    differences = [difference for difference in differences if difference]
    if differences:
        raise ValueError(f"{NAME}: ranks differ, and must not: " + "; ".join(differences))


def _difference(name: str, values: List[str]) -> str:
    """Who has which; empty if all have the same."""
    ranks_of: Dict[str, List[int]] = {}
    for rank, value in enumerate(values):
        ranks_of.setdefault(value, []).append(rank)
    if len(ranks_of) == 1:
        return ""
    # The ones that most have come first: the others are to be looked at.
    said = sorted(ranks_of.items(), key=lambda one: -len(one[1]))
    words = [f"{value} on rank{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}" for value, of in said]
    return f"{name} is " + " and ".join(words)
