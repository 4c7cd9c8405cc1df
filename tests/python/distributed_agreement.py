"""What ranks must have alike, and what else than plain tensors takes part: seeds, debug, contexts, DTensors."""

import pytest
import signflash
import torch
import torch.distributed as dist
import torch.nn.functional as F
from signflash import distributed


def tensors(seqlen=48, heads=4, dim=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, seqlen, heads, dim, generator=generator).to(dtype) for _ in range(4)]


def call_with(rank, ranks, of_last=None, **common):
    """A call in whose arguments the last rank differs."""
    q, k, v, _ = (distributed.shard_sequence(x) for x in tensors(16 * ranks))
    given = dict(causal=True, dropout_p=0.1, seed=5, seqlen=16 * ranks, debug=True, **common)
    if rank == ranks - 1:
        given.update(of_last or {})
    q, k, v = (x.to(given.pop("dtype", x.dtype)) if name == "q" else x for name, x in zip("qkv", (q, k, v)))
    if q.dtype != k.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)
    return distributed.attention(q, k, v, **given)


def debug_names_the_rank_that_differs(rank, ranks):
    last = ranks - 1
    differences = {
        "the random state": dict(seed=6),
        "dropout_p": dict(dropout_p=0.2),
        "causal": dict(causal=False),
        "window": dict(window=(3, -1)),
        "method": dict(method="all_gather"),
        "q's dtype": dict(dtype=torch.bfloat16),
        "sinks": dict(sinks=torch.zeros(4)),
    }
    for name, of_last in differences.items() if ranks > 1 else ():
        with pytest.raises(
            ValueError, match=rf"ranks differ, and must not: .*{name} is .* on rank {last}\b|{name} is "
        ):
            call_with(rank, ranks, of_last)
    call_with(rank, ranks)  # and alike they are computed


def debug_refuses_on_every_rank_what_one_refuses(rank, ranks):
    with pytest.raises(ValueError, match=f"refused on 1 of {ranks} ranks: rank {ranks - 1}: ValueError: dropout_p"):
        call_with(rank, ranks, dict(dropout_p=1.5))
    with pytest.raises(ValueError, match=f"rank {ranks - 1}: ValueError: q must have the .* positions"):
        call_with(rank, ranks, dict(seqlen=16 * ranks + 77))


def uneven_lengths_without_seqlen_are_named(rank, ranks):
    if ranks == 1:
        return
    x = torch.randn(1, 5 if rank == 0 else 4, 2, 8)
    with pytest.raises(ValueError, match="seqlen is"):
        distributed.attention(x, x, x, layout="contiguous", debug=True)


def kept_of(out, layout, seqlen):
    return distributed.unshard_sequence(out, layout=layout, seqlen=seqlen).transpose(1, 2) != 0


def drawn_states_are_those_of_rank_0(rank, ranks):
    """Two calls without a seed: the masks of (seed of rank 0, 0) and of what follows."""
    seqlen, heads = 32, 2
    torch.manual_seed(100 + rank)  # each rank another, as trainers do
    q = torch.zeros(1, seqlen, heads, 8)
    v = torch.eye(seqlen)[None, :, None, :].expand(1, seqlen, heads, seqlen).contiguous()
    parts = [distributed.shard_sequence(x) for x in (q, q, v)]
    distributed.seeds._agreed.clear()
    for offset in (0, heads * 32):
        out = distributed.attention(*parts, dropout_p=0.4, seqlen=seqlen, debug=True)
        keep = signflash.dropout_mask((1, heads, seqlen, seqlen), 0.4, 100, offset)
        assert torch.equal(kept_of(out, "zigzag", seqlen), torch.as_tensor(keep)), offset
    for given in (dict(generator=signflash.Generator(9)), None):
        with signflash.random_state(9):
            out = distributed.attention(*parts, dropout_p=0.4, seqlen=seqlen, **(given or {}))
        keep = signflash.dropout_mask((1, heads, seqlen, seqlen), 0.4, 9, 0)
        assert torch.equal(kept_of(out, "zigzag", seqlen), torch.as_tensor(keep))
    distributed.manual_seed(11)
    out = distributed.attention(*parts, dropout_p=0.4, seqlen=seqlen)
    keep = signflash.dropout_mask((1, heads, seqlen, seqlen), 0.4, 11, 0)
    assert torch.equal(kept_of(out, "zigzag", seqlen), torch.as_tensor(keep))


def checkpoints_repeat_the_mask_or_say_so(rank, ranks):
    from torch.utils.checkpoint import checkpoint

    parts = [distributed.shard_sequence(x).requires_grad_() for x in tensors()[:3]]

    def run(q, k, v, **seed):
        return distributed.attention(q, k, v, dropout_p=0.3, seqlen=48, **seed)

    out = checkpoint(run, *parts, seed=4, use_reentrant=False)
    found = torch.autograd.grad(out.sum(), parts)
    wanted = torch.autograd.grad(run(*parts, seed=4).sum(), parts)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    out = checkpoint(run, *parts, use_reentrant=False)
    with pytest.raises(RuntimeError, match="recomputed forward drew the dropout state"):
        out.sum().backward()


def the_context_is_that_of_one_process(rank, ranks):
    q, k, v, dout = (x.transpose(1, 2).contiguous() for x in tensors())
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*whole, is_causal=True)
    wanted = [want, *torch.autograd.grad(want, whole, dout)]
    buffers = [x.clone() for x in (q, k, v, dout)]
    plain = F.scaled_dot_product_attention
    for method in ("ring", "all_gather"):
        with distributed.context_parallel(buffers=buffers, buffer_seq_dims=[2] * 4, method=method):
            own = [x.clone().requires_grad_() for x in buffers[:3]]
            for call in (F.scaled_dot_product_attention, plain):
                out = call(*own, is_causal=True)
                found = [out, *torch.autograd.grad(out, own, buffers[3])]
                for got, one in zip(found, wanted):
                    got = distributed.unshard_sequence(got.detach(), dim=2, seqlen=48)
                    torch.testing.assert_close(got, one.detach(), atol=1e-5, rtol=1e-4)
        assert F.scaled_dot_product_attention is plain
        assert all(torch.equal(a, b) for a, b in zip(buffers, (q, k, v, dout)))
    # With dropout it is the mask of one device, by PyTorch's scale; with a mask, rows are this rank's.
    mask = torch.rand(48, 48, generator=torch.Generator().manual_seed(1)) > 0.3
    drop = dict(dropout_p=0.2, seed=21, offset=0, scale_rule="nominal", mask=mask)
    want = signflash.attention(*(x.transpose(1, 2) for x in (q, k, v)), **drop).transpose(1, 2)
    with distributed.context_parallel(buffers=buffers, buffer_seq_dims=[2] * 4, generator=signflash.Generator(21)):
        rows = distributed.shard_sequence(mask, dim=0)
        out = F.scaled_dot_product_attention(*buffers[:3], attn_mask=rows, dropout_p=0.2)
        own = rows[:, : len(rows)]
        with pytest.raises(ValueError, match="a column for each of all 48 keys, got"):
            F.scaled_dot_product_attention(*buffers[:3], attn_mask=own)
    torch.testing.assert_close(distributed.unshard_sequence(out, dim=2, seqlen=48), want, atol=1e-5, rtol=1e-4)


def dtensors_say_where_they_lie(rank, ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    q, k, v, dout = tensors()
    settings = dict(causal=True, dropout_p=0.3, seed=8, offset=64, alibi_slopes=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    want = signflash.attention(*whole, **settings)
    wanted = [want, *torch.autograd.grad(want, whole, dout)]
    splits = [((ranks,), [Shard(1)], "ring")]
    if ranks % 2 == 0 and ranks > 2:
        splits += [((2, ranks // 2), [other, Shard(1)], "all_gather") for other in (Shard(0), Shard(2), Replicate())]
    for number, (sizes, placements, method) in enumerate(splits):
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=[f"m{number}d{dim}" for dim in range(len(sizes))])
        own = [distribute_tensor(x, mesh, placements).requires_grad_() for x in (q, k, v)]
        out, lse = distributed.attention(*own, method=method, **settings, return_lse=True, debug=True)
        assert out.placements == tuple(placements) and lse.shape == (2, 4, 48)
        found = [out, *torch.autograd.grad(out, own, distribute_tensor(dout, mesh, placements))]
        for got, one in zip(found, wanted):
            torch.testing.assert_close(got.detach().full_tensor(), one.detach(), atol=1e-5, rtol=1e-4)


def heads_of_tensor_parallel_ranks_are_the_whole(rank, ranks):
    """Each rank computes all positions' keys by a ring, for half of the heads: two calls, as two groups would."""
    q, k, v, _ = tensors()
    want = signflash.attention(q, k, v, dropout_p=0.3, seed=8, offset=0)
    parts = [distributed.shard_sequence(x) for x in (q, k, v)]
    for first in (0, 2):
        shard = signflash.Shard(first_head=first, num_heads_total=4)
        halves = [x[:, :, first : first + 2] for x in parts]
        out = distributed.attention(*halves, dropout_p=0.3, seed=8, offset=0, shard=shard, seqlen=48)
        got = distributed.unshard_sequence(out, seqlen=48)
        torch.testing.assert_close(got, want[:, :, first : first + 2], atol=1e-5, rtol=1e-4)


def nothing_of_anything_is_computed(rank, ranks):
    for batch, seqlen in ((0, 16), (2, 0), (1, 1)):
        x = torch.randn(batch, seqlen, 8, 16)
        for method in ("ring", "all_gather", "ulysses"):
            own = distributed.shard_sequence(x).requires_grad_()
            out = distributed.attention(own, own, own, seqlen=seqlen, method=method, dropout_p=0.1, seed=1)
            (found,) = torch.autograd.grad(out.sum(), own)
            assert out.shape == own.shape == found.shape


def compiled_code_and_recorders(rank, ranks):
    """A compiler runs it as it is; who records operators would not see what is sent, and is refused."""
    x = distributed.shard_sequence(tensors()[0])

    def call(x):
        return distributed.attention(x, x, x, causal=True, seqlen=48) + 1.0

    torch.testing.assert_close(torch.compile(call, backend="eager")(x), call(x))
    from torch.utils.flop_counter import FlopCounterMode

    with pytest.raises(NotImplementedError, match="recorded"), FlopCounterMode(display=False):
        call(x)


def the_example_learns_as_one_process_does(rank, ranks):
    """FSDP2 over all ranks, half of them sharing each sequence, or all."""
    import sys
    from pathlib import Path

    pytest.importorskip("torch.distributed.fsdp", reason="FSDP2").fully_shard
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))
    import context_parallel

    a = context_parallel.arguments(["--quick", "--device", "cpu", "--dropout", "0.2", "--steps", "3"])
    a.context = 0
    alone = context_parallel.train(a, torch.device("cpu"))
    for a.context, a.method in ((ranks // 2, "ring"), (ranks, "ulysses")):
        losses = context_parallel.train(a, torch.device("cpu"))
        torch.testing.assert_close(losses, alone, atol=1e-4, rtol=0)


CHECKS = [
    debug_names_the_rank_that_differs,
    debug_refuses_on_every_rank_what_one_refuses,
    uneven_lengths_without_seqlen_are_named,
    drawn_states_are_those_of_rank_0,
    checkpoints_repeat_the_mask_or_say_so,
    the_context_is_that_of_one_process,
    dtensors_say_where_they_lie,
    heads_of_tensor_parallel_ranks_are_the_whole,
    nothing_of_anything_is_computed,
    compiled_code_and_recorders,
    the_example_learns_as_one_process_does,
]


def a_rank_that_ends_is_named(rank, ranks):
    """The others get the backend's error with the name of the call; the group's timeout is short."""
    import os
    import time

    x = torch.randn(1, 8, 2, 8, requires_grad=True)
    dist.barrier()
    if rank == ranks - 1:
        os._exit(0)
    began = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"signflash.distributed.attention\(method='ring'\), forward, step .* failed: a rank has"
    ):
        distributed.attention(x, x, x, layout="contiguous")
    assert time.monotonic() - began < 30
    os._exit(0)  # no rank waits for the one that has ended


def a_rank_that_falls_behind_is_named(rank, ranks):
    """The group's timeout ends it, and no hang of ours."""
    import datetime
    import time

    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    x = torch.randn(1, 8, 2, 8)
    dist.barrier()
    if rank == ranks - 1:
        time.sleep(8)
        return
    began = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"signflash.distributed.attention\(method='all_gather'\), forward: .* failed: a rank has"
    ):
        distributed.attention(x, x, x, layout="contiguous", method="all_gather", group=group)
    assert time.monotonic() - began < 30


FAULTS = [a_rank_that_falls_behind_is_named, a_rank_that_ends_is_named]
