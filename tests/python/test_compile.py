"""The operators of torch.library: what PyTorch's own checks say, torch.compile, torch.export."""

import pytest

torch = pytest.importorskip("torch")

import signflash
from signflash._settings import Settings, to_operator

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer"
)


def make(device, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 40, 4, 32), (2, 50, 2, 32), (2, 50, 2, 32)]
    made = [torch.randn(size, generator=generator).to(device, torch.float16) for size in sizes]
    return [x.requires_grad_(requires_grad) for x in made]


@pytest.fixture(autouse=True)
def start_anew():
    torch._dynamo.reset()


@pytest.mark.parametrize("p,probs", [(0.0, False), (0.3, True)])
def test_opcheck_finds_nothing(p, probs, device):
    import signflash._torch.attention  # noqa: F401 (registers the operators)

    q, k, v = make(device)
    forward = torch.ops.signflash.attention_forward.default
    whole = to_operator(Settings(p, causal=True))
    part = to_operator(Settings(p, causal=True, shard=signflash.Shard(first_batch=1)))
    state = torch.tensor([3, 64], dtype=torch.int64, device=device)
    alone, nobody = (None,) * 6, (False, False)  # no cu_seqlens, and nothing that joins scores
    torch.library.opcheck(forward, (q, k, v, *alone, state, None, 0, True, probs, *whole))
    torch.library.opcheck(forward, (q, k, v, *alone, None, 5, 7, True, probs, *part))
    inputs = [x.detach() for x in (q, k, v)]
    out, lse, _, state = forward(*inputs, *alone, state, None, 0, True, probs, *whole)
    backward = torch.ops.signflash.attention_backward.default
    saved = (torch.ones_like(out), *inputs, out, lse)
    torch.library.opcheck(backward, (*saved, *alone, state, None, *nobody, True, *whole))
    torch.library.opcheck(backward, (*saved, *alone, state, torch.ones_like(lse), *nobody, True, *part))
    heads, seqlen_q, seqlen_k = q.shape[2], q.shape[1], k.shape[1]
    bias = torch.randn(1, heads, seqlen_q, seqlen_k, device=device).requires_grad_()
    sinks = torch.randn(heads, device=device).requires_grad_()
    joined = (torch.ones(heads, device=device), bias, torch.ones(1, 1, 1, seqlen_k, device=device) > 0, sinks)
    torch.library.opcheck(forward, (q, k, v, None, None, *joined, None, 5, 7, True, probs, *part))
    joined = [x.detach() for x in joined]
    torch.library.opcheck(backward, (*saved, None, None, *joined, state, None, True, True, True, *part))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_graph_break(backend, device):
    if backend == "inductor" and device == "cpu" and not _has_compiler():
        pytest.skip("no C++ compiler for inductor")
    tensors = make(device)

    def step(q, k, v):
        out, lse = signflash.attention(
            q * 1.5, k, v, dropout_p=0.3, causal=True, seed=5, deterministic=True, return_lse=True
        )
        return out * 2, lse

    def loss(out, lse):
        return out.sum() + lse.square().sum()

    out, lse = step(*tensors)
    expected = torch.autograd.grad(loss(out, lse), tensors)
    compiled_out, compiled_lse = torch.compile(step, backend=backend, fullgraph=True)(*tensors)
    got = torch.autograd.grad(loss(compiled_out, compiled_lse), tensors)
    assert torch.allclose(compiled_out, out, atol=2e-3, rtol=2e-3) and torch.allclose(compiled_lse, lse, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-2, rtol=1e-2) for a, b in zip(got, expected))


def _has_compiler():
    import shutil

    return shutil.which("g++") or shutil.which("clang++")


def test_every_run_of_compiled_code_draws_a_dropout_mask_and_so_does_every_call_in_it(device):
    q, k, v = make(device, requires_grad=False)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(q, k, v):
        return signflash.attention(q, k, v, dropout_p=0.5), signflash.attention(q, k, v, dropout_p=0.5)

    first, second = twice(q, k, v)
    assert not torch.equal(first, second)
    assert not torch.equal(first, twice(q, k, v)[0])
    torch.manual_seed(0)
    first = twice(q, k, v)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, twice(q, k, v)))


def test_compiled_and_eager_draw_alike(device):
    q, k, v = make(device, requires_grad=False)
    call = torch.compile(signflash.attention, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    expected = signflash.attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(call(q, k, v, dropout_p=0.5), expected)
    with signflash.random_state(3):
        expected = signflash.attention(q, k, v, dropout_p=0.5)
    with signflash.random_state(3):
        assert torch.equal(call(q, k, v, dropout_p=0.5), expected)


@pytest.mark.parametrize("function", ["flash_attn_qkvpacked_func", "flash_attn_func", "flash_attn_kvpacked_func"])
def test_flash_attentions_functions_compile(function, device):
    qkv = torch.randn(2, 20, 3, 4, 32, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    given = {"flash_attn_qkvpacked_func": (qkv,), "flash_attn_func": qkv.unbind(2)}
    given = given.get(function, (qkv[:, :, 0], qkv[:, :, 1:]))
    call = torch.compile(getattr(signflash, function), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    expected = getattr(signflash, function)(*given, 0.2, causal=True, return_attn_probs=True)
    torch.manual_seed(0)
    got = call(*given, 0.2, causal=True, return_attn_probs=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_lengths_may_change_without_compiling_again(device):
    count = torch._dynamo.testing.CompileCounter()
    call = torch.compile(lambda q: signflash.attention(q, q, q, dropout_p=0.1), backend=count, dynamic=True)
    for length in (16, 48, 80):
        x = torch.randn(2, length, 4, 32, device=device, dtype=torch.float16)
        assert call(x).shape == x.shape
    assert count.frame_count == 1


def test_bad_input_is_refused_while_tracing(device):
    q, k, v = make(device)
    call = torch.compile(signflash.attention, backend="aot_eager")
    with pytest.raises(Exception, match="dtype"):
        call(q, k.bfloat16(), v)


def test_autocast_is_traced(device):
    q, k, v = (x.detach().float() for x in make(device))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(q, k, v):
        with torch.autocast(device, dtype=torch.bfloat16):
            return signflash.attention(q, k, v)

    assert step(q, k, v).dtype == torch.bfloat16


def test_exported_programs_hold_the_operator():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return signflash.attention(q, k, v, causal=True)

    q, k, v = make("cpu", requires_grad=False)
    program = torch.export.export(Module(), (q, k, v))
    assert "signflash.attention_forward" in program.graph_module.code
    assert torch.equal(program.module()(q, k, v), signflash.attention(q, k, v, causal=True))


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
def test_a_compiled_vmap_over_other_tensors_draws_as_its_randomness_says(randomness):
    q, k, v = make("cpu", requires_grad=False)

    def call(x):
        return x + signflash.attention(q, k, v, dropout_p=0.5).float().sum()

    mapped = torch.compile(lambda x: torch.vmap(call, randomness=randomness)(x), backend="aot_eager", fullgraph=True)
    if randomness == "same":
        first, second = mapped(torch.zeros(2))
        assert first == second
    else:
        with pytest.raises(Exception, match="not mapped over would drop the same for all"):
            mapped(torch.zeros(2))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_derivative_of_probs_alone_is_refused_and_not_zeros(fullgraph):
    q, k, v = make("cpu", requires_grad=False)

    def slope(q):
        return torch.func.grad(lambda q: signflash.attention(q, k, v, return_probs=True)[1].sum())(q)

    with pytest.raises(Exception, match="probs have no derivative|attention"):
        torch.compile(slope, backend="aot_eager", fullgraph=fullgraph)(q)
