"""The random state under torch.compile: seeds that are arguments, states that calls share, the first call of all."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import signflash

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer"
)


@pytest.fixture(autouse=True)
def start_anew():
    torch._dynamo.reset()


def make():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 20, 4, 16, generator=generator) for _ in range(3)]


def run(q, k, v, seed):
    return signflash.attention(q, k, v, dropout_p=0.5, seed=seed)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_seed_that_is_an_argument_is_that_of_an_eager_call(dynamic):
    tensors = make()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for seed in (5, -6, 0, 2**31, -(2**63), 2**63 - 1, 7, -1):
        assert torch.equal(compiled(*tensors, seed), run(*tensors, seed)), seed


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_a_seed_beyond_int64_is_too(seed):
    tensors = make()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*tensors, seed), run(*tensors, seed))
    assert torch.equal(compiled(*tensors, seed - 1), run(*tensors, seed - 1))


def test_the_first_call_of_a_process_may_be_compiled():
    code = (
        "import torch, signflash; q = torch.ones(1, 4, 2, 8);"
        "f = torch.compile(lambda q: signflash.attention(q, q, q), backend='eager', fullgraph=True);"
        "assert torch.equal(f(q), signflash.attention(q, q, q))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_state_that_layers_draw_for_several_calls_compiles():
    from signflash._settings import Settings
    from signflash._torch import random
    from signflash._torch.attention import attention

    def layer(q):
        seed, offset, state = random.draw(q)
        seed = seed if state is None else None
        halves = []
        for i in range(2):
            x = q[i : i + 1]
            settings = Settings(0.5, shard=signflash.Shard(first_batch=i, num_heads_total=4))
            halves.append(attention((x, x, x), settings, seed=seed, offset=offset, rng_state=state)[0])
        return torch.cat(halves)

    q = make()[0].requires_grad_()
    results = []
    for run in (
        lambda q: layer(layer(q)),
        torch.compile(lambda q: layer(layer(q)), backend="aot_eager", fullgraph=True),
    ):
        torch.manual_seed(3)
        out = run(q)
        results.append((out, *torch.autograd.grad(out.sum(), q)))
    assert all(torch.equal(a, b) for a, b in zip(*results))
