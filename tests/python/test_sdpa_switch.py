"""enable, disable and enabled: on and off, nested, from threads, and what torch.compile made before."""

import os
import threading

import pytest

torch = pytest.importorskip("torch")

import sdpa
import signflash

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)

from signflash._torch import native, quick


@pytest.fixture(autouse=True)
def off():
    signflash.disable()
    yield
    signflash.disable()


@pytest.fixture
def runs(monkeypatch):
    """How often our kernel has run."""
    count, forward, attend = [], native.forward, quick.attend

    def shortly(*args):
        found = attend(*args)
        count.extend([1] * (found is not None))
        return found

    monkeypatch.setattr(native, "forward", lambda *args, **kwargs: count.append(1) or forward(*args, **kwargs))
    monkeypatch.setattr(quick, "attend", shortly)
    return count


def attend(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.5)


def is_ours(runs, function=attend):
    del runs[:]
    function(*sdpa.make(1, 2, 9, 8)).sum().backward()
    assert len(runs) <= 1
    return bool(runs)


def test_on_and_off(runs):
    assert not is_ours(runs)
    assert signflash.enable(transformers=False) == ("pytorch",)
    assert is_ours(runs)
    signflash.enable(transformers=False)
    signflash.disable()
    assert not is_ours(runs)
    signflash.disable()


def test_pytorchs_result_is_its_own_again():
    tensors, results = sdpa.make(1, 2, 9, 8), []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(attend(*tensors))
        signflash.enable(transformers=False)
        signflash.disable()
    assert torch.equal(*results)


def test_blocks(runs):
    with signflash.enabled():
        with signflash.enabled():
            assert is_ours(runs)
        assert is_ours(runs)
        with pytest.raises(RuntimeError, match="block"):
            signflash.disable()
    assert not is_ours(runs)
    with pytest.raises(ZeroDivisionError), signflash.enabled():
        1 / 0
    assert not is_ours(runs)
    signflash.enable(transformers=False)
    with signflash.enabled():
        pass
    assert is_ours(runs)


def test_enabling_within_a_block_stays(runs):
    with signflash.enabled():
        signflash.enable(transformers=False)
    assert is_ours(runs)


def test_a_block_of_one_thread_is_seen_by_others(runs):
    begun, ended = threading.Event(), threading.Event()

    def other():
        with signflash.enabled():
            begun.set()
            ended.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(10)
    with signflash.enabled():
        assert is_ours(runs)
    assert is_ours(runs)
    ended.set()
    thread.join()
    assert not is_ours(runs)


needs_compiler = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4"
)


@needs_compiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_was_compiled_before_a_switch_is_compiled_anew(runs, backend):
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    for expected in (False, True, False, True):
        if expected:
            signflash.enable(transformers=False)
        else:
            signflash.disable()
        assert is_ours(runs, compiled) is expected
        assert is_ours(runs, compiled) is expected


@needs_compiler
@pytest.mark.skipif(os.environ.get("SIGNFLASH_TEST") != "full", reason="compiles C++, which takes a minute")
@pytest.mark.parametrize("first", ["ours", "PyTorch's"])
def test_caches_on_disk_know_the_switch(runs, first, tmp_path, monkeypatch):
    """Inductor's, in a folder of its own: what one compiled is not what the other finds."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for ours in (first == "ours", first != "ours", first == "ours"):
        if ours:
            signflash.enable(transformers=False)
        else:
            signflash.disable()
        torch._dynamo.reset()
        assert is_ours(runs, torch.compile(attend, fullgraph=True)) is ours


@needs_compiler
@pytest.mark.skipif(os.environ.get("SIGNFLASH_TEST") != "full", reason="compiles C++, which takes a minute")
def test_what_inductor_recognises_as_attention_is_ours(runs):
    def own(q, k, v):
        scores = (q @ k.transpose(-2, -1)).div(q.shape[-1] ** 0.5)
        return torch.nn.functional.dropout(scores.softmax(-1), 0.5) @ v

    tensors, results = sdpa.make(2, 4, 64, 32), []
    with signflash.enabled():
        for function in (torch.compile(own), attend):
            function(*tensors)
            del runs[:]
            with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
                out = function(*tensors)
            assert runs == [1]
            results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@needs_compiler
def test_a_tag_of_the_users_stays():
    config = pytest.importorskip("torch.compiler.config")
    if not hasattr(config, "cache_key_tag"):
        pytest.skip("this PyTorch has no tag")
    before = config.cache_key_tag
    try:
        config.cache_key_tag = "mine"
        with signflash.enabled():
            assert config.cache_key_tag.startswith("mine+signflash")
        assert config.cache_key_tag == "mine"
    finally:
        config.cache_key_tag = before


@needs_compiler
def test_a_switch_cannot_be_compiled():
    def step(x):
        with signflash.enabled():
            return x + 1

    with pytest.raises(Exception, match="cannot be compiled|signflash"):
        torch.compile(step, backend="eager", fullgraph=True)(torch.ones(2))
    signflash.disable()  # no block is left open
