"""The random state: what is drawn from where, and that no two calls share a dropout mask."""

import pytest

torch = pytest.importorskip("torch")

import signflash


def make(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 33, 4, 16, generator=generator).to(device, torch.float16) for _ in range(3)]


def run(tensors, **settings):
    return signflash.attention(*tensors, dropout_p=0.5, **settings)


def test_two_calls_draw_two_dropout_masks(device):
    tensors = make(device)
    assert not torch.equal(run(tensors), run(tensors))


def test_manual_seed_repeats_what_follows(device):
    tensors = make(device)
    torch.manual_seed(3)
    first = run(tensors), run(tensors)
    torch.manual_seed(3)
    assert all(torch.equal(a, run(tensors)) for a in first)


def test_a_generator_of_ones_own_is_advanced_and_the_default_is_not(device):
    tensors = make(device)
    default = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    generator = torch.Generator(device).manual_seed(5)
    first, second = run(tensors, generator=generator), run(tensors, generator=generator)
    assert not torch.equal(first, second)
    assert torch.equal(run(tensors, generator=torch.Generator(device).manual_seed(5)), first)
    now = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(default, now)


def test_without_dropout_no_generator_is_advanced(device):
    before = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    signflash.attention(*make(device))
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)


def test_a_scope_draws_as_flash_attention_counts(device):
    tensors = make(device)
    with signflash.random_state(42, 8) as generator:
        first, state = run(tensors, return_rng_state=True)
        second = run(tensors)
    assert state == (42, 8) and generator.get_state() == (42, 8 + 2 * 2 * 4 * 32)
    assert torch.equal(first, run(tensors, seed=42, offset=8))
    assert torch.equal(second, run(tensors, seed=42, offset=8 + 2 * 4 * 32))
    generator.set_state((42, 8))
    assert torch.equal(run(tensors, generator=generator), first)


def test_scopes_nest_and_end():
    tensors = make()
    with signflash.random_state(1) as outer:
        with signflash.random_state(2) as inner:
            run(tensors)
        run(tensors)
    assert outer.offset == inner.offset == 2 * 4 * 32
    run(tensors)
    assert outer.offset == 2 * 4 * 32


def test_the_state_that_is_returned_draws_the_dropout_mask_again(device):
    tensors = make(device)
    out, probs, (seed, offset) = run(tensors, return_probs=True, return_rng_state=True)
    assert torch.equal(run(tensors, seed=seed, offset=offset), out)
    keep = signflash.dropout_mask(probs.shape, 0.5, seed, offset, device=device)
    assert torch.equal(~torch.signbit(probs), keep)


def test_a_state_in_memory_is_read(device):
    tensors = make(device)
    state = torch.tensor([-5, 128], dtype=torch.int64, device=device)
    assert torch.equal(run(tensors, rng_state=state), run(tensors, seed=-5, offset=128))


def test_negative_seeds_are_those_of_64_bits():
    tensors = make()
    assert torch.equal(run(tensors, seed=-1), run(tensors, seed=2**64 - 1))


def test_generators_can_be_copied_and_pickled():
    import copy
    import pickle

    generator = signflash.Generator(3, 4)
    for copied in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        copied.next(1, 1)
        assert copied.get_state() == (3, 4 + 32) and generator.get_state() == (3, 4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_draw_the_dropout_mask_again(reentrant, device):
    from torch.utils.checkpoint import checkpoint

    tensors = [x.requires_grad_() for x in make(device)]
    gradients = []
    for call in (run, lambda given: checkpoint(lambda *x: run(x), *given, use_reentrant=reentrant)):
        torch.manual_seed(1)
        out = call(tensors)
        gradients.append(torch.autograd.grad(out.sum(), tensors) if not reentrant else _backward(out, tensors))
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(*gradients))


def _backward(out, tensors):
    for x in tensors:
        x.grad = None
    out.sum().backward()
    return [x.grad for x in tensors]
