"""Windows and packed sequences under torch.compile: without a break, for lengths and totals that change."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo.testing")
if not hasattr(torch.library, "register_autograd"):
    pytest.skip("needs operators of PyTorch 2.4", allow_module_level=True)

import signflash
from signflash._settings import Settings, to_operator
from test_packed import LENGTHS, make, packed, starts


@pytest.fixture(autouse=True)
def start_anew():
    torch._dynamo.reset()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_opcheck_finds_nothing(p, device):
    import signflash._torch.attention  # noqa: F401 (registers the operators)

    lengths, rest = LENGTHS["rows behind the last"]
    tensors = make(lengths, rest, torch.float16, device)
    cu_seqlens = starts(lengths, device)
    settings = to_operator(Settings(p, window_left=5, window_right=2))
    joined, nobody = (None,) * 4, (False, False)  # nothing that joins scores
    forward = torch.ops.signflash.attention_forward.default
    torch.library.opcheck(forward, (*tensors, *cu_seqlens, *joined, None, 5, 7, True, False, *settings))
    q, k, v = (x.detach() for x in tensors)
    out, lse, _, state = forward(q, k, v, *cu_seqlens, *joined, None, 5, 7, True, False, *settings)
    backward = torch.ops.signflash.attention_backward.default
    given = (torch.ones_like(out), q, k, v, out, lse, *cu_seqlens, *joined, state)
    torch.library.opcheck(backward, (*given, None, *nobody, True, *settings))
    torch.library.opcheck(backward, (*given, torch.ones_like(lse), *nobody, True, *settings))


def test_compiled_without_a_graph_break(device):
    lengths, _ = LENGTHS["different"]
    tensors, cu_seqlens = make(lengths, dtype=torch.float16, device=device), starts(lengths, device)

    def step(q, k, v, cu_q, cu_k):
        settings = dict(dropout_p=0.3, window=(20, 5), deterministic=True)
        first = signflash.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, seed=3, **settings)
        return first, signflash.flash_attn_varlen_func(first, k, v, cu_q, cu_k, 129, 129, window_size=(9, 0))

    expected = step(*tensors, *cu_seqlens)
    gradients = torch.autograd.grad(sum(x.sum() for x in expected), tensors)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(*tensors, *cu_seqlens)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    found = torch.autograd.grad(sum(x.sum() for x in got), tensors)
    assert all(torch.allclose(a, b, atol=2e-3, rtol=2e-3) for a, b in zip(found, gradients))


def test_totals_counts_and_windows_may_change_without_compiling_again(device):
    count = torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=count, dynamic=True, fullgraph=True)
    def call(q, k, v, cu_q, cu_k, left):
        return signflash.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, window=(left, 0))

    for left, lengths in [(5, [(4, 7), (9, 3)] * 4), (7, [(30, 20), (5, 6)] * 3), (9, [(11, 12)] * 5)]:
        tensors = make(lengths, dtype=torch.float16, device=device, requires_grad=False)
        cu_seqlens = starts(lengths, device)
        assert torch.equal(call(*tensors, *cu_seqlens, left), packed(tensors, cu_seqlens, window=(left, 0)))
    assert count.frame_count == 1


def test_each_run_draws_a_dropout_mask_and_advances_as_eager(device):
    lengths, _ = LENGTHS["different"]
    tensors = make(lengths, dtype=torch.float16, device=device, requires_grad=False)
    cu_seqlens = starts(lengths, device)
    run = lambda: packed(tensors, cu_seqlens, dropout_p=0.5)  # noqa: E731
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    expected = [run(), run()]
    torch.manual_seed(0)
    assert all(torch.equal(compiled(), x) for x in expected) and not torch.equal(*expected)


def test_what_eager_refuses_is_refused_while_tracing():
    lengths, _ = LENGTHS["different"]
    tensors, cu_seqlens = make(lengths), starts(lengths)
    for wrong, message in [
        ((cu_seqlens[0].long(), cu_seqlens[1]), "must be int32"),
        ((cu_seqlens[0], cu_seqlens[1][:-1]), "as many numbers"),
        ((cu_seqlens[0], None), "given without"),
    ]:
        with pytest.raises(Exception, match=message):
            torch.compile(packed, backend="aot_eager", fullgraph=True)(tensors, wrong)
    with pytest.raises(Exception, match="window's left side must be from 0"):
        torch.compile(packed, backend="aot_eager", fullgraph=True)(tensors, cu_seqlens, window=(-2, 0))
