"""signflash.distributed on GPUs over NCCL, next to one GPU and to the formulas. A line for each case, and the end says how many failed.

    torchrun --nproc-per-node 2 tests/python/distributed_gpu.py [--small 40] [--device cpu]

Every rank has the whole problem, and computes it alone as well. ``--device cpu`` (gloo) shows that the script itself is right.
"""

import argparse
import datetime
import itertools
import os
import sys
import time
import traceback

import distributed_cases as cases
import distributed_families as families
import signflash
import torch
import torch.distributed as dist
from signflash import distributed

#: Twice the contract's bound, since both sides are that far from the formulas.
BOUND = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", type=int, default=40, help="random cases next to the formulas")
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), help="which of so many parts: several can run at once"
    )
    return parser.parse_args()


def whole_problems(a):
    """(name, dtype, head_dim, settings, cu_seqlens) of what is compared with one GPU."""
    full, causal, window = {}, dict(causal=True), dict(causal=True, window=(a.seqlen // 5, 0))
    chosen = [(torch.bfloat16, 128, p, seen) for p in (0.0, 0.1) for seen in (full, causal, window)]
    chosen += [(torch.bfloat16, 64, 0.1, full), (torch.bfloat16, 64, 0.1, causal), (torch.bfloat16, 64, 0.0, window)]
    chosen += [(torch.float16, 128, 0.1, causal), (torch.float16, 64, 0.1, window), (torch.float16, 64, 0.0, full)]
    for dtype, head_dim, p, seen in chosen:
        yield f"{dtype} {head_dim} p={p} {seen}", dtype, head_dim, dict(seen, dropout_p=p), None
    third = a.seqlen // 3
    starts = [0, third - 7, third, 2 * third + 50, a.seqlen - 5]
    yield "packed", torch.bfloat16, 64, dict(causal=True, dropout_p=0.1), starts
    yield "deterministic", torch.bfloat16, 128, dict(causal=True, dropout_p=0.1, deterministic=True), None


def make(a, dtype, head_dim, device, packed):
    generator = torch.Generator().manual_seed(head_dim)
    sizes = [(1, a.seqlen, heads, head_dim) for heads in (8, 4, 4, 8)]
    found = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    return [x[0] for x in found] if packed else found


def next_to_one(a, device, dtype, head_dim, settings, starts):
    """The largest relative distance of out and gradients to those of one GPU, of each method and layout."""
    dim = 1 if starts is None else 0
    whole = [x.requires_grad_() for x in make(a, dtype, head_dim, device, starts is not None)]
    dout = whole.pop().detach()
    drawn, packed = dict(seed=11, offset=64), {}
    if starts is not None:
        packed = dict(
            zip(("cu_seqlens_q", "cu_seqlens_k"), [torch.tensor(starts, dtype=torch.int32, device=device)] * 2)
        )
    one = signflash.attention(*whole, **settings, **drawn, **packed)
    one = [one, *torch.autograd.grad(one, whole, dout)]
    if starts is not None:
        packed = dict(cu_seqlens_q=starts, cu_seqlens_k=starts)
    told = []
    for method, layout in itertools.product(("ring", "all_gather", "ulysses"), ("zigzag", "contiguous")):
        runs = []
        for _ in range(2 if settings.get("deterministic") else 1):
            own = [
                distributed.shard_sequence(x.detach(), layout=layout, dim=dim).clone().requires_grad_() for x in whole
            ]
            out = distributed.attention(
                *own, method=method, layout=layout, seqlen=a.seqlen, **settings, **drawn, **packed
            )
            of_out = distributed.shard_sequence(dout, layout=layout, dim=dim)
            runs.append([out, *torch.autograd.grad(out, own, of_out.clone())])
        assert all(torch.equal(x, y) for x, y in zip(*(runs if len(runs) > 1 else runs * 2))), (method, layout, "bits")
        far = []
        for got, want in zip(runs[0], one):
            want = distributed.shard_sequence(want.detach(), layout=layout, dim=dim).float()
            far.append(float((got.detach().float() - want).norm() / want.norm()))
        assert max(far) <= BOUND[dtype], (method, layout, far)
        if method == "ulysses" and (settings.get("deterministic") or starts is None):
            assert far[0] == 0.0, (method, layout, "out has the bits of one GPU", far)
        if method == "ulysses" and settings.get("deterministic"):
            assert max(far) == 0.0, (method, layout, "gradients have the bits of one GPU", far)
        told.append(f"{method} {layout} {max(far):.1e}")
    return ", ".join(told)


def mask(device):
    """Equal scores and one-hot rows of v: out says of each entry whether it was kept."""
    seqlen, heads = 256, 8
    q = torch.zeros(1, seqlen, heads, 64, device=device, dtype=torch.bfloat16)
    v = (
        torch.eye(seqlen, device=device, dtype=torch.bfloat16)[None, :, None, :]
        .expand(1, seqlen, heads, seqlen)
        .contiguous()
    )
    keep = torch.as_tensor(signflash.dropout_mask((1, heads, seqlen, seqlen), 0.4, 5, 64)).to(device)
    for method, layout in itertools.product(("ring", "all_gather", "ulysses"), ("zigzag", "contiguous")):
        own = [distributed.shard_sequence(x, layout=layout).contiguous() for x in (q, q, v)]
        out = distributed.attention(*own, method=method, layout=layout, dropout_p=0.4, seed=5, offset=64)
        kept = distributed.unshard_sequence(out, layout=layout).transpose(1, 2) != 0
        assert torch.equal(kept, keep), (method, layout, int((kept != keep).sum()))
    return f"{keep.numel()} entries, each method and layout"


def small(number, rank, ranks, device):
    """A random case next to the formulas in float64."""
    case = cases.draw(number, ranks)
    if case.dtype == "float32":
        case = case._replace(dtype=("bfloat16", "float16")[number % 2])
    families.a_case(number, rank, ranks, dict(dtype=case.dtype), device)
    return f"{case.method} {case.dtype} {case.lengths} {case.heads} {case.dims} p={case.p} {case.seen} {case.scores}"


def pytorchs_own_is_refused(device, ranks):
    """PyTorch's context_parallel draws wrong masks with dropout: refused where signflash is enabled, and ours is right."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel

    mesh = init_device_mesh(device.type, (ranks,))
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, 8, 512, 64, generator=generator).to(device, torch.bfloat16)
    attend = torch.nn.functional.scaled_dot_product_attention
    told = "NOT REFUSED"
    with signflash.enabled():
        try:
            with context_parallel(mesh, buffers=[q.clone()], buffer_seq_dims=[2]):
                own = torch.chunk(q, ranks, 2)[dist.get_rank()].contiguous()
                torch.nn.functional.scaled_dot_product_attention(own, own, own, dropout_p=0.2, is_causal=True)
        except (NotImplementedError, RuntimeError) as error:
            told = f"refused: {type(error).__name__}: {str(error)[:200]}"
    assert told.startswith("refused") and "dropout" in told, told
    whole = q.clone()
    with distributed.context_parallel(mesh, buffers=[whole], buffer_seq_dims=[2]):
        ours = torch.nn.functional.scaled_dot_product_attention(whole, whole, whole, is_causal=True)
        ours = distributed.unshard_sequence(ours, dim=2)
    want = attend(q, q, q, is_causal=True)
    far = float((ours.float() - want.float()).norm() / want.float().norm())
    assert far < 8e-3, far
    return f"{told}; ours without dropout {far:.1e}"


def main():
    a = arguments()
    device = torch.device(a.device, int(os.environ["LOCAL_RANK"])) if a.device == "cuda" else torch.device(a.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait = datetime.timedelta(seconds=60)
    more = dict(device_id=device) if device.type == "cuda" else {}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait, **more)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    checks = [("the mask of one device", lambda: mask(device))]
    for name, *settings in whole_problems(a):
        checks.append((name, lambda settings=settings: next_to_one(a, device, *settings)))
    checks.append(("PyTorch's context_parallel", lambda: pytorchs_own_is_refused(device, ranks)))
    checks += [(f"case {n}", lambda n=n: small(n, rank, ranks, device)) for n in range(a.small)]
    checks = checks[a.part[0] :: a.part[1]]
    failed = 0
    for name, check in checks:
        began, told, error = time.perf_counter(), "", ""
        try:
            told = check()
        except Exception:  # a failure of one case is told, and the next one runs
            error = traceback.format_exc()
            print(f"rank {rank}: {name}: {error}", file=sys.stderr, flush=True)  # others may now wait for it
        every = [None] * ranks
        dist.all_gather_object(every, error)
        failed += any(every)
        if rank == 0:
            verdict = (
                "FAILED " + " | ".join(e.strip().splitlines()[-1][:300] for e in every if e) if any(every) else "ok"
            )
            print(f"{verdict:6} {name}: {told} ({time.perf_counter() - began:.1f} s)", flush=True)
    if rank == 0:
        print(f"{len(checks)} checks on {ranks} of {device.type}, {failed} failed", flush=True)
    dist.destroy_process_group()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
