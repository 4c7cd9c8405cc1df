"""What is asked of signflash.distributed on every number of processes."""

import functools

import distributed_agreement as agreement
import distributed_cases as cases
import reference
import signflash
import torch
import torch.distributed as dist
from signflash import distributed
from signflash.distributed import heads
from signflash.distributed.layout import layouts_of


def named(family, ranks, count):
    """(name, check) of all that a world of so many ranks is asked."""
    found = [(f"case {number}", functools.partial(a_case, number)) for number in range(count)]
    checks = CHECKS + (agreement.CHECKS if ranks in (2, 4) else [])
    found += [(check.__name__, check) for check in (agreement.FAULTS if family == "fault" else checks)]
    if family == "fault":
        return found[count:]
    return [(name, check) for name, check in found if family in ("all", name.split()[0])]


@functools.lru_cache(maxsize=None)
def mesh_of(ranks, inner):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (ranks // inner, inner), mesh_dim_names=("outer", "inner"))


def mesh_arguments(method, ranks):
    if isinstance(method, tuple):
        return dict(method=method[:2], mesh=mesh_of(ranks, method[2]))
    return dict(method=method)


def gathered(x, layout, dim):
    return distributed.unshard_sequence(x.detach(), layout=layout, dim=dim, seqlen=layout.total)


def kernels_add_to_what_was_found_before(rank, ranks):
    """As those of GPUs do, whose part is played here: they are given tensors that they can write."""
    from signflash.distributed import compute

    forward, backward, where = compute._forward, compute._backward, compute.adds_in_kernels

    def forward_added(read, arguments, room):
        out, lse = forward(read, arguments, None)
        if room is not None:
            assert room[0].stride(-1) == 1 and room[1].is_contiguous()
            out, lse = (into.copy_(x) for into, x in zip(room, distributed.merge(*room, out, lse)))
            added.append(True)
        return out, lse

    def backward_added(read, dlse, arguments, asked, room):
        into, adds = room
        fresh = [torch.empty_like(x) for x in into]
        dbias = backward(read, dlse, arguments, asked, (fresh, (False, False)))
        for x, found, adds in zip(into, fresh, (adds[0], adds[1], adds[1])):
            x.add_(found) if adds else x.copy_(found)
        return dbias

    added = []
    compute._forward, compute._backward, compute.adds_in_kernels = forward_added, backward_added, lambda x: True
    try:
        for number in range(2):
            a_case(number, rank, ranks)
        causal = dict(
            layout="zigzag", lengths=(96, 96), starts=None, seen=dict(causal=True), p=0.3, heads=(8, 2), scores=()
        )
        for method in ("ring", "all_gather"):
            a_case(0, rank, ranks, dict(causal, method=method))
        assert added or ranks == 1
    finally:
        compute._forward, compute._backward, compute.adds_in_kernels = forward, backward, where


def a_case(number, rank, ranks, other=None, device=None):
    """out, lse and gradients next to the formulas, where all ranks' are put together."""
    heads.LEAST_BYTES = (0, 96 << 20)[number % 2]  # in parts wherever heads divide, or never for so few
    case = cases.draw(number, ranks)._replace(**(other or {}))
    given = cases.make(case)
    layouts = layouts_of(case.layout, case.lengths, ranks)
    on_device = given if device is None else cases.moved(given, device)
    leaves, joined, arguments = cases.local(case, on_device, mesh_arguments(case.method, ranks), layouts, rank)
    out, lse = distributed.attention(*leaves, **arguments, return_lse=True, debug=number % 2 == 0)
    dim = 0 if case.starts else 1
    dout = layouts[0].take(on_device.dout, rank, dim)
    dlse = layouts[0].take(on_device.dlse, rank, -1)
    dlse = torch.where(torch.isfinite(lse), dlse, torch.zeros_like(dlse))
    wanted = [*leaves, *(joined[name] for name in cases.differentiated(joined))]
    found = torch.autograd.grad((out, lse), wanted, (dout, dlse))
    assert out.dtype == leaves[0].dtype and all(g.dtype == x.dtype for g, x in zip(found, wanted))
    results = {"out": gathered(out, layouts[0], dim), "lse": gathered(lse, layouts[0], lse.dim() - 1)}
    for name, x, layout in zip("qkv", found, (layouts[0], layouts[1], layouts[1])):
        results[name] = gathered(x, layout, dim)
    for name, x in zip(cases.differentiated(joined), found[3:]):
        if name == "bias" and not case.starts and given.joined["bias"].shape[2] > 1:
            results[name] = gathered(x, layouts[0], 2)
        else:
            dist.all_reduce(x)  # contributions
            results[name] = x
    results = {name: x.cpu() for name, x in results.items()}
    if rank:
        return
    want_out, want_lse, gradients = cases.expected(case, given)
    one = dict(zip(gradients, of_one_process(case, given)))
    bounds = {"out": 2 * reference.OUT[case.dtype], "lse": 4e-6}
    bounds.update((name, 2 * reference.GRADIENT[case.dtype]) for name in gradients)
    for name, wanted in {"out": want_out, "lse": want_lse, **gradients}.items():
        assert results[name].shape == wanted.shape, (case, name, results[name].shape, wanted.shape)
        terms = float(given.dout.float().norm()) * 0.1 if name in gradients else 0.5
        got = cases.error(results[name], wanted, terms)
        # Where sums cancel, one process is as far off.
        limit = max(bounds[name], 2 * cases.error(one[name], wanted, terms) if name in one else 0.0)
        assert got <= limit, f"{case}: {name} is {got:.2e} off, expected at most {bounds[name]:.0e}"


def of_one_process(case, given):
    """Gradients of one process, in the order of q, k, v, and what joins."""
    whole = [x.clone().requires_grad_() for x in given[:3]]
    joined = dict(given.joined)
    for name in cases.differentiated(joined):
        joined[name] = joined[name].clone().requires_grad_()
    tensors = given._replace(q=whole[0], k=whole[1], v=whole[2], joined=joined)
    out, lse = cases.whole(case, tensors, return_lse=True)
    dlse = torch.where(torch.isfinite(lse), given.dlse, torch.zeros_like(given.dlse))
    wanted = [*whole, *(joined[name] for name in cases.differentiated(joined))]
    return torch.autograd.grad((out, lse), wanted, (given.dout, dlse))


def every_method(ranks, heads):
    return cases.methods(ranks, heads)


def the_dropout_mask_is_that_of_one_device(rank, ranks):
    """Equal scores and a v of one-hot rows: out says of each entry whether it was kept."""
    seqlen, heads = 64, 8
    q = torch.zeros(1, seqlen, heads, 8)
    v = torch.eye(seqlen)[None, :, None, :].expand(1, seqlen, heads, seqlen).contiguous()
    keep = signflash.dropout_mask((1, heads, seqlen, seqlen), 0.4, 5, 64)
    for method in every_method(ranks, heads):
        for layout in ("zigzag", "contiguous"):
            parts = [distributed.shard_sequence(x, layout=layout) for x in (q, q, v)]
            out = distributed.attention(
                *parts, layout=layout, dropout_p=0.4, seed=5, offset=64, seqlen=seqlen, **mesh_arguments(method, ranks)
            )
            kept = distributed.unshard_sequence(out, layout=layout, seqlen=seqlen).transpose(1, 2) != 0
            assert torch.equal(kept, torch.as_tensor(keep)), (method, layout)


def results_are_the_same_bits_in_every_run(rank, ranks):
    case = cases.draw(0, ranks)._replace(
        method="ring", dtype="bfloat16", starts=None, layout="zigzag", lengths=(96, 96), heads=(8, 2)
    )
    case = case._replace(p=0.2, seen=dict(causal=True), scores=(), dims=(16, 16))
    given = cases.make(case)
    layouts = layouts_of("zigzag", case.lengths, ranks)
    for method in every_method(ranks, 8):
        runs = []
        for _ in range(2):
            leaves, _, arguments = cases.local(case, given, mesh_arguments(method, ranks), layouts, rank)
            out = distributed.attention(*leaves, **arguments)
            runs.append([out, *torch.autograd.grad(out, leaves, layouts[0].take(given.dout, rank, 1))])
        assert all(torch.equal(a, b) for a, b in zip(*runs)), method


def ulysses_gives_the_bits_of_one_device(rank, ranks):
    if 8 % ranks:
        return
    case = cases.draw(0, ranks)._replace(dtype="bfloat16", starts=None, layout="zigzag", lengths=(96, 96), heads=(8, 8))
    case = case._replace(p=0.2, seen=dict(causal=True), scores=(), dims=(16, 16), method="ulysses")
    given = cases.make(case)
    layouts = layouts_of("zigzag", case.lengths, ranks)
    leaves, _, arguments = cases.local(case, given, dict(method="ulysses"), layouts, rank)
    out = distributed.attention(*leaves, **arguments)
    found = [out, *torch.autograd.grad(out, leaves, layouts[0].take(given.dout, rank, 1))]
    whole = [x.clone().requires_grad_() for x in given[:3]]
    want = cases.whole(case, given._replace(q=whole[0], k=whole[1], v=whole[2]))
    wanted = [want, *torch.autograd.grad(want, whole, given.dout)]
    for got, one in zip(found, wanted):
        assert torch.equal(gathered(got, layouts[0], 1), one.detach())


CHECKS = [
    kernels_add_to_what_was_found_before,
    the_dropout_mask_is_that_of_one_device,
    results_are_the_same_bits_in_every_run,
    ulysses_gives_the_bits_of_one_device,
]
