"""What only a GPU shows: PyTorch's FlashAttention for equal seeds, streams, CUDA graphs, memory, time of a launch."""

import time

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash
from signflash import _native
from signflash._settings import Settings

pytestmark = pytest.mark.gpu


def make(batch=2, seqlen=300, heads=4, dim=64, dtype=torch.float16, requires_grad=True, heads_k=None, device="cuda"):
    generator = torch.Generator().manual_seed(0)
    sizes = [heads, heads_k or heads, heads_k or heads]
    made = [torch.randn(batch, seqlen, h, dim, generator=generator).to(device, dtype) for h in sizes]
    return [x.requires_grad_(requires_grad) for x in made]


def pytorchs(q, k, v, p, causal):
    """PyTorch's FlashAttention, of (batch, seqlen, heads, head_dim)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        given = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*given, dropout_p=p, is_causal=causal).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 64, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_results_are_pytorchs_for_equal_seeds(dtype, dim, causal, p):
    tensors = make(dim=dim, dtype=dtype)
    dout = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    results = []
    for call in (
        lambda: pytorchs(*tensors, p, causal),
        lambda: signflash.flash_attn_func(*tensors, dropout_p=p, causal=causal),
        lambda: signflash.attention(*tensors, dropout_p=p, causal=causal, scale_rule="nominal"),
    ):
        torch.manual_seed(42)
        torch.rand(5, device="cuda")  # some offset
        first = call()
        again = call()
        gradients = torch.autograd.grad(first, tensors, dout)
        results.append((first, again, *gradients, torch.cuda.get_rng_state()))
    name = str(dtype).split(".")[1]
    for ours in results[1:]:
        for got, theirs in zip(ours[:-1], results[0][:-1]):
            # Both are rounded: twice the bound that each keeps from the truth.
            assert reference.error(got, theirs) <= 2 * reference.GRADIENT[name]
        assert torch.equal(ours[-1], results[0][-1]), "the generator was advanced otherwise than by PyTorch"


def test_the_dropout_mask_is_pytorchs_to_the_bit():
    """With the identity for values the output is the dropped probabilities: 0 exactly where dropped."""
    q, k, _ = make(seqlen=64, dim=64, requires_grad=False)
    v = torch.eye(64, device="cuda", dtype=q.dtype)[None, :, None].expand(2, -1, 4, -1).contiguous()
    torch.manual_seed(3)
    theirs = pytorchs(q, k, v, 0.3, False)
    torch.manual_seed(3)
    ours, probs, (seed, offset) = signflash.attention(
        q, k, v, dropout_p=0.3, return_probs=True, return_rng_state=True, scale_rule="nominal"
    )
    keep = signflash.dropout_mask(probs.shape, 0.3, seed, offset, device="cuda")
    assert torch.equal(theirs.transpose(1, 2) != 0, keep)
    assert torch.equal(ours.transpose(1, 2) != 0, keep)
    assert torch.equal(~torch.signbit(probs), keep)


def test_the_cpu_draws_the_same_dropout_mask():
    q, k, v = make(requires_grad=False)
    settings = dict(dropout_p=0.2, causal=True, seed=77, offset=128)
    on_gpu = signflash.attention(q, k, v, **settings)
    on_cpu = signflash.attention(q.cpu(), k.cpu(), v.cpu(), **settings)
    assert reference.error(on_gpu.cpu(), on_cpu) < 1e-3


def test_the_deterministic_backward_repeats_itself_to_the_bit():
    tensors = make(seqlen=1000, heads=8)
    dout = torch.randn_like(tensors[0])

    def run(**settings):
        out = signflash.attention(*tensors, dropout_p=0.1, seed=1, **settings)
        return torch.autograd.grad(out, tensors, dout)

    first = run(deterministic=True)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(deterministic=True)))
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(a, b) for a, b in zip(first, run()))
    finally:
        torch.use_deterministic_algorithms(False)


def test_work_is_put_into_the_current_stream():
    q, k, v = make(seqlen=512, requires_grad=False)
    expected = signflash.attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # PyTorch loads its own kernels in the first round, and waits for the GPU while it does.
    for cycles in (1, 200_000_000):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)  # whoever does not wait for it sees zeros
            late = [torch.zeros_like(x).copy_(x) for x in (q, k, v)]
            out = signflash.attention(*late)
            waited = stream.query()
        stream.synchronize()
        assert torch.equal(out, expected)
    assert not waited, "the call waited for the GPU"


def test_the_backward_runs_in_the_forwards_stream():
    tensors = make(seqlen=512)
    expected = torch.autograd.grad(signflash.attention(*tensors, deterministic=True).sum(), tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = signflash.attention(*tensors, deterministic=True)
        torch.cuda._sleep(100_000_000)
        got = torch.autograd.grad(out.sum(), tensors)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_another_gpu_are_worked_on_there():
    first, second = make(device="cuda:0"), make(device="cuda:1")
    torch.cuda.set_device(0)
    outs = [signflash.attention(*tensors, dropout_p=0.1, seed=2, deterministic=True) for tensors in (first, second)]
    assert torch.cuda.current_device() == 0 and outs[1].device.index == 1
    for out in outs:
        out.sum().backward()
    assert torch.equal(outs[0].cpu(), outs[1].cpu())
    assert all(torch.equal(a.grad.cpu(), b.grad.cpu()) for a, b in zip(first, second))


def capture(run):
    """A CUDA graph of run, kernels compiled before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


def test_each_replay_of_a_graph_draws_a_new_dropout_mask_and_its_backward_the_same():
    tensors = make(seqlen=64)
    dout = torch.randn_like(tensors[0])

    def run():
        out, probs, state = signflash.attention(*tensors, dropout_p=0.5, return_probs=True, return_rng_state=True)
        return (out, probs, state, *torch.autograd.grad(out, tensors, dout))

    graph, (out, probs, state, *gradients) = capture(run)
    seen = set()
    for _ in range(5):
        graph.replay()
        seed, offset = state.tolist()
        seen.add((seed, offset))
        keep = signflash.dropout_mask(probs.shape, 0.5, seed, offset, device="cuda")
        assert torch.equal(~torch.signbit(probs), keep)
        again = signflash.attention(*tensors, dropout_p=0.5, seed=seed, offset=offset)
        assert torch.equal(out, again)
        expected = torch.autograd.grad(again, tensors, dout)
        assert all(reference.error(a, b) < 1e-3 for a, b in zip(gradients, expected))
    assert len(seen) == 5
    torch.manual_seed(9)
    graph.replay()
    first = state.tolist()
    torch.manual_seed(9)
    graph.replay()
    assert state.tolist() == first


def test_a_state_in_memory_can_be_set_between_replays():
    tensors = make(requires_grad=False)
    state = torch.zeros(2, dtype=torch.int64, device="cuda")
    graph, out = capture(lambda: signflash.attention(*tensors, dropout_p=0.5, rng_state=state))
    for seed in (1, -2):
        state.copy_(torch.tensor([seed, 32 * seed]))
        graph.replay()
        assert torch.equal(out, signflash.attention(*tensors, dropout_p=0.5, seed=seed, offset=32 * seed))


def test_compiled_graphs_draw_a_dropout_mask_a_run():
    tensors = make(requires_grad=False)
    call = torch.compile(
        lambda q, k, v: signflash.attention(q, k, v, dropout_p=0.5) * 2, mode="reduce-overhead", fullgraph=True
    )
    outs = [call(*tensors).clone() for _ in range(6)]
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])


def peak(run):
    """Bytes that run holds at most beyond what is there before, and its result."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    return torch.cuda.max_memory_allocated() - before, kept


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("deterministic", [False, True])
def test_memory_is_operands_results_and_the_documented_workspace(dim, deterministic):
    batch, seqlen, heads = 2, 4096, 16
    tensors = make(batch, seqlen, heads, dim, torch.bfloat16)
    size = tensors[0].numel() * 2
    rows = batch * heads * seqlen
    settings = Settings(dropout_p=0.1)
    workspace = _native.workspace_bytes(0, tuple(x.shape for x in tensors), None, None, deterministic, settings)
    slack = 1 << 20  # the allocator's rounding
    used, out = peak(lambda: signflash.attention(*tensors, dropout_p=0.1, deterministic=deterministic))
    assert size + 4 * rows <= used <= size + 4 * rows + slack
    dout = torch.randn_like(out)
    used, _ = peak(lambda: torch.autograd.grad(out, tensors, dout, retain_graph=True))
    assert 3 * size + workspace <= used <= 3 * size + workspace + slack
    assert workspace <= 8 * rows + 4 * rows * dim + slack  # docs/python.md: two numbers a row, and dq in float32


def host_times(runs, rounds=40, calls=30):
    """Microseconds until a call returns, the best of many rounds, in which all take turns."""
    best = {}
    for _ in range(rounds):
        for name, run in runs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            best[name] = min(best.get(name, float("inf")), (time.perf_counter() - start) / calls * 1e6)
    return best


def test_a_call_costs_the_host_less_than_30_microseconds():
    tensors = make(1, 128, 2, 64, requires_grad=False)
    learning = make(1, 128, 2, 64)
    times = host_times(
        {
            "p = 0": lambda: signflash.flash_attn_func(*tensors),
            "p = 0.1": lambda: signflash.flash_attn_func(*tensors, dropout_p=0.1),
            "recording": lambda: signflash.flash_attn_func(*learning, dropout_p=0.1),
        }
    )
    print(times)
    assert times["p = 0"] < 30 and times["p = 0.1"] < 30
    # PyTorch takes 15 us to record a function of Python's that does nothing.
    assert times["recording"] < times["p = 0.1"] + 30


def test_a_large_call_is_addressed_in_64_bits():
    """Keys with more than 2^31 elements; equal scores make the output their mean."""
    q = torch.zeros(1, 128, 64, 64, dtype=torch.float16, device="cuda")
    k = torch.randn(1, 34_000_000 // 64, 64, 64, dtype=torch.float16, device="cuda")
    k[:, -1000:] += 100  # what lies beyond 2^31 elements is seen in the mean
    assert k.numel() > 1 << 31
    expected = k.mean(1, keepdim=True, dtype=torch.float32).expand_as(q)
    assert reference.error(signflash.attention(q, k, k), expected) < 1e-2


LENGTHS = [(300, 300), (1, 40), (0, 0), (129, 513), (64, 64), (77, 0), (200, 200)]


def packed(lengths=LENGTHS, rows=None, dim=64, dtype=torch.bfloat16, requires_grad=True):
    """(q, k, v) with room for so many rows, (cu_seqlens_q, cu_seqlens_k)."""
    generator = torch.Generator().manual_seed(0)
    sizes = [rows or sum(pair[side] for pair in lengths) for side in (0, 1)]
    shapes = [(sizes[0], 4, dim), (sizes[1], 2, dim), (sizes[1], 2, dim)]
    made = [torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_(requires_grad) for shape in shapes]
    return made, starts(lengths)


def starts(lengths):
    sides = [torch.tensor([0, *(pair[side] for pair in lengths)]).cumsum(0) for side in (0, 1)]
    return [x.to("cuda", torch.int32) for x in sides]


def of_packed(tensors, cu_seqlens, **settings):
    return signflash.attention(*tensors, cu_seqlens_q=cu_seqlens[0], cu_seqlens_k=cu_seqlens[1], **settings)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("seen", [dict(), dict(causal=True), dict(window=(100, 20))], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_packed_sequences_are_dense_calls(p, seen, dim):
    tensors, (cu_q, cu_k) = packed(dim=dim)
    settings = dict(dropout_p=p, seed=3, offset=64, deterministic=True, return_lse=True, **seen)
    out, lse = of_packed(tensors, (cu_q, cu_k), **settings)
    found = torch.autograd.grad(out.float().sin().sum() + lse.masked_fill(torch.isinf(lse), 0).sum(), tensors)
    alone = [x.detach().clone().requires_grad_() for x in tensors]
    places_q, places_k = cu_q.tolist(), cu_k.tolist()
    for b in range(len(LENGTHS)):
        rows, keys = slice(*places_q[b : b + 2]), slice(*places_k[b : b + 2])
        own = [x[None, rows if i == 0 else keys] for i, x in enumerate(alone)]
        expected, expected_lse = signflash.attention(*own, shard=signflash.Shard(first_batch=b), **settings)
        assert reference.error(out[rows], expected[0]) <= 2 * reference.OUT["bfloat16"]
        seen_rows = ~torch.isinf(expected_lse[0])
        assert torch.equal(~torch.isinf(lse[:, rows]), seen_rows)
        assert reference.error(lse[:, rows][seen_rows], expected_lse[0][seen_rows]) <= 2e-6
        (expected.float().sin().sum() + expected_lse.masked_fill(torch.isinf(expected_lse), 0).sum()).backward()
    for got, x in zip(found, alone):
        assert reference.error(got, x.grad) <= 2 * reference.GRADIENT["bfloat16"]


def test_the_packed_backward_repeats_itself_to_the_bit_if_deterministic():
    tensors, cu_seqlens = packed([(700, 700), (30, 30), (1000, 1000), (257, 257)])

    def run():
        out = of_packed(tensors, cu_seqlens, dropout_p=0.1, seed=1, causal=True, deterministic=True)
        return torch.autograd.grad(out.sum(), tensors)

    first = run()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_packed_calls_never_wait_for_the_gpu():
    tensors, cu_seqlens = packed()

    def run():
        out = signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, 300, 513, 0.1, window_size=(64, 64))
        return torch.autograd.grad(out, tensors, torch.ones_like(out))

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_lengths_may_change_between_replays_of_a_graph():
    tensors, cu_seqlens = packed(rows=1600)
    dout = torch.randn_like(tensors[0])
    settings = dict(dropout_p=0.1, seed=5, causal=True, deterministic=True)

    def run(cu_seqlens):
        out, lse = of_packed(tensors, cu_seqlens, return_lse=True, **settings)
        return (out, lse, *torch.autograd.grad(out, tensors, dout))

    graph, results = capture(lambda: run(cu_seqlens))
    others = [[(10, 10)] * 7, [(1600, 1600)] + [(0, 0)] * 6, [(200, 100), (100, 200)] * 3 + [(1, 1)], LENGTHS]
    for lengths in others:
        changed = starts(lengths)
        for x, y in zip(cu_seqlens, changed):
            x.copy_(y)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, run(changed)))
        assert not results[0][int(changed[0][-1]) :].any()


def test_packed_sequences_in_cuda_graphs_of_the_compiler():
    tensors, cu_seqlens = packed(requires_grad=False)
    call = torch.compile(lambda q, k, v, *cu: of_packed((q, k, v), cu, causal=True) * 2, mode="reduce-overhead", fullgraph=True)
    expected = of_packed(tensors, cu_seqlens, causal=True) * 2
    for _ in range(4):
        assert torch.equal(call(*tensors, *cu_seqlens).clone(), expected)


def test_the_generator_advances_by_sequences_and_heads():
    tensors, cu_seqlens = packed(requires_grad=False)
    generator = torch.Generator("cuda").manual_seed(7)
    for calls in range(3):
        state = of_packed(tensors, cu_seqlens, dropout_p=0.1, generator=generator, return_rng_state=True)[1]
        assert state == (7, calls * len(LENGTHS) * 4 * 32)
