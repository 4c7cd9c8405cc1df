"""NumPy arrays, and what speaks DLPack."""

import pytest

np = pytest.importorskip("numpy")

import signflash


def make(dtype="float32"):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 20, 4, 16)).astype(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_give_what_tensors_give(dtype):
    torch = pytest.importorskip("torch")
    q, k, v = make(dtype)
    settings = dict(dropout_p=0.3, causal=True, seed=5, return_lse=True, return_probs=True)
    got = signflash.attention(q, k, v, **settings)
    expected = signflash.attention(*(torch.from_numpy(x) for x in (q, k, v)), **settings)
    assert all(isinstance(x, np.ndarray) for x in got)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(got, expected))


def test_the_backward_of_arrays_is_autograds():
    torch = pytest.importorskip("torch")
    q, k, v = make()
    out, lse, state = signflash.attention(q, k, v, dropout_p=0.3, return_lse=True, return_rng_state=True)
    got = signflash.attention_backward(
        np.ones_like(out), q, k, v, out, lse, dropout_p=0.3, seed=state[0], offset=state[1]
    )
    tensors = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    signflash.attention(*tensors, dropout_p=0.3, seed=state[0], offset=state[1]).sum().backward()
    assert all(np.array_equal(a, b.grad.numpy()) for a, b in zip(got, tensors))


def test_bfloat16_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    q, k, v = make(ml_dtypes.bfloat16)
    out, probs = signflash.attention(q, k, v, dropout_p=0.3, seed=1, return_probs=True)
    assert out.dtype == probs.dtype == ml_dtypes.bfloat16
    assert np.array_equal(~signflash.decode(probs)[1], signflash.dropout_mask(probs.shape, 0.3, 1))


def test_strides_of_all_kinds():
    q, k, v = make()
    expected = signflash.attention(q, k, v)
    reversed_twice = [np.ascontiguousarray(x[:, ::-1])[:, ::-1] for x in (q, k, v)]
    heads_first = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    big_endian = [x.astype(">f4") for x in (q, k, v)]
    for arrays in (reversed_twice, heads_first, [np.asfortranarray(x) for x in (q, k, v)], big_endian):
        assert np.array_equal(signflash.attention(*arrays), expected)
    one = np.broadcast_to(k[:1], k.shape)
    assert np.array_equal(signflash.attention(q, one, v), signflash.attention(q, one.copy(), v))


class Speaks:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_is_understood():
    q, k, v = make()
    assert np.array_equal(signflash.attention(Speaks(q), Speaks(k), Speaks(v)), signflash.attention(q, k, v))


def test_results_are_arrays_of_the_callers_kind():
    strict = pytest.importorskip("array_api_strict")
    q, k, v = make()
    given = [strict.asarray(x) for x in (q, k, v)]
    out, lse, probs = signflash.attention(*given, dropout_p=0.3, seed=1, return_lse=True, return_probs=True)
    gradients = signflash.attention_backward(out, *given, out, lse, dropout_p=0.3, seed=1)
    for x in (out, lse, probs, *gradients, *signflash.decode(probs)):
        assert x.__array_namespace__() is strict
    assert np.array_equal(np.from_dlpack(out), signflash.attention(q, k, v, dropout_p=0.3, seed=1))


def test_a_seed_for_arrays_repeats_what_follows():
    q, k, v = make()
    signflash.manual_seed(3)
    first = signflash.attention(q, k, v, dropout_p=0.5), signflash.attention(q, k, v, dropout_p=0.5)
    signflash.manual_seed(3)
    assert not np.array_equal(*first)
    assert all(np.array_equal(x, signflash.attention(q, k, v, dropout_p=0.5)) for x in first)


def test_what_is_no_array_is_refused():
    q, k, v = make()
    with pytest.raises(TypeError, match="q must be a torch.Tensor, a NumPy array or speak DLPack, got list"):
        signflash.attention([1.0], k, v)
    with pytest.raises(TypeError, match="k must have q's dtype float32, got float16"):
        signflash.attention(q, k.astype("float16"), v)
    with pytest.raises(TypeError, match="q must be float32, float16 or bfloat16"):
        signflash.attention(*(x.astype("float64") for x in (q, k, v)))
    with pytest.raises(ValueError, match="q must have 4 dimensions"):
        signflash.attention(q[0], k, v)


def test_pytorch_is_not_imported_for_arrays():
    import subprocess
    import sys

    code = "import sys, numpy, signflash; x = numpy.ones((1, 2, 1, 8), 'float32'); signflash.attention(x, x, x);"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def test_calls_of_many_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    q, k, v = make()
    expected = [signflash.attention(q, k, v, dropout_p=0.5, seed=seed) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda seed: signflash.attention(q, k, v, dropout_p=0.5, seed=seed), range(32)))
    assert all(np.array_equal(a, b) for a, b in zip(expected, got))
    # One generator gives each call a state of its own.
    generator = signflash.Generator(1)
    with ThreadPoolExecutor(8) as pool:
        states = set(pool.map(lambda _: generator.next(2, 4), range(100)))
    assert len(states) == 100


def test_the_examples_in_docstrings_run():
    import doctest
    import importlib

    tried = 0
    for name in ("signflash", "signflash._attention", "signflash._random", "signflash._dropout", "signflash._info"):
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0
        tried += result.attempted
    assert tried >= 20


def test_an_lse_that_is_reversed_along_one_of_one_is_read():
    q, k, v = (x[:1] for x in make())
    out, lse = signflash.attention(q, k, v, return_lse=True)
    expected = signflash.attention_backward(np.ones_like(out), q, k, v, out, lse)
    reversed_lse = lse[::-1]
    assert reversed_lse.flags.c_contiguous and reversed_lse.strides[0] < 0
    got = signflash.attention_backward(np.ones_like(out), q, k, v, out, reversed_lse)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected))


LENGTHS = [(5, 9), (0, 3), (20, 7)]


def packed_arrays(rest=2):
    rng = np.random.default_rng(1)
    rows = [sum(pair[side] for pair in LENGTHS) + rest for side in (0, 1)]
    shapes = [(rows[0], 4, 16), (rows[1], 2, 16), (rows[1], 2, 16)]
    cu_seqlens = [np.cumsum([0, *(pair[side] for pair in LENGTHS)]).astype("int32") for side in (0, 1)]
    return [rng.standard_normal(shape).astype("float32") for shape in shapes], cu_seqlens


def test_packed_arrays_and_windows_give_what_tensors_give():
    torch = pytest.importorskip("torch")
    arrays, (cu_q, cu_k) = packed_arrays()
    settings = dict(dropout_p=0.3, window=(4, 1), seed=5)
    results = dict(return_lse=True, return_probs=True)
    out, lse, probs = signflash.attention(*arrays, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **settings, **results)
    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
    settings_of_tensors = dict(settings, cu_seqlens_q=torch.from_numpy(cu_q), cu_seqlens_k=torch.from_numpy(cu_k))
    expected = signflash.attention(*tensors, **settings_of_tensors, **results)
    assert all(np.array_equal(a, b.detach().numpy()) for a, b in zip((out, lse, probs), expected))
    assert lse.shape == (4, 27) and probs.shape == (3, 4, 20, 9)
    settings.update(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    got = signflash.attention_backward(np.ones_like(out), *arrays, out, lse, **settings)
    expected[0].backward(torch.ones_like(expected[0]))
    assert all(np.array_equal(a, b.grad.numpy()) for a, b in zip(got, tensors))


def test_a_generator_of_arrays_advances_by_sequences():
    arrays, (cu_q, cu_k) = packed_arrays()
    generator, given = signflash.Generator(3), dict(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_rng_state=True)
    states = [signflash.attention(*arrays, dropout_p=0.1, generator=generator, **given)[1] for _ in range(2)]
    assert states == [(3, 0), (3, 3 * 4 * 32)]


def test_numbers_of_arrays_are_refused_by_name():
    arrays, (cu_q, cu_k) = packed_arrays()
    for wrong, error, message in [
        ((cu_q.astype("int64"), cu_k), TypeError, r'cu_seqlens_q must be int32, got int64; use astype\("int32"\)'),
        ((cu_q, [0, 3]), TypeError, "cu_seqlens_k must be a torch.Tensor, a NumPy array or speak DLPack, got list"),
        ((cu_q[None], cu_k), ValueError, "cu_seqlens_q must have 1 dimensions"),
        ((cu_q, cu_k[:-1]), ValueError, "as many numbers, .* got 4 and 3"),
        ((cu_q + 1, cu_k), ValueError, r"cu_seqlens_q\[0\] must be 0, got 1"),
        ((cu_q, cu_k[::-1]), ValueError, r"cu_seqlens_k\[0\] must be 0, got 19"),
        ((cu_q, cu_k + (cu_k == 19) * np.int32(3)), ValueError, r"cu_seqlens_k\[3\] must be at most 21, the rows of k, got 22"),
    ]:
        with pytest.raises(error, match=message):
            signflash.attention(*arrays, cu_seqlens_q=wrong[0], cu_seqlens_k=wrong[1])
    with pytest.raises(ValueError, match=r"q must have 3 dimensions \(total, num_heads, head_dim\) with cu_seqlens"):
        signflash.attention(*(x[None] for x in arrays), cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
