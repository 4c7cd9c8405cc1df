"""Hugging Face Transformers with attn_implementation="signflash" next to eager."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

from signflash._transformers import attention_forward
from transformers import masking_utils

TINY = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=50)


def pair(kind, device, **settings):
    """The same model twice: eager, and ours."""
    made = {
        "bert": lambda: (transformers.BertConfig, transformers.BertModel),
        "llama": lambda: (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "gpt2": lambda: (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "mistral": lambda: (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[kind]()
    sizes = dict(TINY)
    if kind == "gpt2":
        sizes = dict(n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=64)
    if kind in ("llama", "mistral"):
        sizes["num_key_value_heads"] = 2
    models = []
    for implementation in ("eager", "signflash"):
        torch.manual_seed(0)
        config = made[0](**sizes, **settings)
        model = made[1]._from_config(config, attn_implementation=implementation)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        models.append(model.to(device, dtype).eval())
    assert models[1].config._attn_implementation == "signdense"
    return models


def tokens(device, shape=(3, 12)):
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(1)).to(device)


def tolerance(device):
    return dict(atol=2e-5, rtol=1e-4) if device == "cpu" else dict(atol=6e-2, rtol=6e-2)


def first(output):
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


MASKS = {
    "right": [[1] * 12, [1] * 7 + [0] * 5, [1] * 1 + [0] * 11],
    "left": [[1] * 12, [0] * 5 + [1] * 7, [0] * 11 + [1]],
    "holes": [[1] * 12, [1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]],
}


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("padding", [None, *MASKS])
def test_outputs_are_eagers_where_there_is_no_padding(kind, padding, device):
    eager, ours = pair(kind, device)
    ids = tokens(device)
    mask = None if padding is None else torch.tensor(MASKS[padding], device=device)
    with torch.no_grad():
        expected, got = (first(model(ids, attention_mask=mask)) for model in (eager, ours))
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    assert torch.allclose(got[counts], expected[counts], **tolerance(device))
    # What is padded must not matter.
    if mask is not None:
        with torch.no_grad():
            changed = first(ours(torch.where(counts, ids, 1), attention_mask=mask))
        assert torch.allclose(got[counts], changed[counts], **tolerance(device))


def test_gradients_are_eagers(device):
    gradients = []
    for model in pair("bert", device):
        mask = torch.tensor(MASKS["right"], device=device)
        output = model(tokens(device), attention_mask=mask).last_hidden_state
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(device)
        (output.float() * weights * mask[..., None]).sum().backward()
        gradients.append(model.encoder.layer[0].attention.self.query.weight.grad.float())
    assert (gradients[0] - gradients[1]).norm() <= (1e-4 if device == "cpu" else 0.1) * gradients[0].norm()


@pytest.mark.parametrize("padding", [None, *MASKS])
def test_attentions_are_the_probabilities(padding, device):
    eager, ours = pair("bert", device)
    mask = None if padding is None else torch.tensor(MASKS[padding], device=device)
    with torch.no_grad():
        results = [model(tokens(device), attention_mask=mask, output_attentions=True) for model in (eager, ours)]
    assert len(results[1].attentions) == 2
    for expected, got in zip(results[0].attentions, results[1].attentions):
        assert got.shape == expected.shape == (3, 4, 12, 12)
        assert torch.allclose(got, expected, **tolerance(device))


@pytest.mark.parametrize(
    "kind,name", [("bert", "attention_probs_dropout_prob"), ("llama", "attention_dropout"), ("gpt2", "attn_pdrop")]
)
def test_dropout_is_honoured_in_training_and_only_there(kind, name, device):
    quiet = dict(bert=dict(hidden_dropout_prob=0.0), gpt2=dict(resid_pdrop=0.0, embd_pdrop=0.0)).get(kind, {})
    eager, ours = pair(kind, device, **{name: 0.4}, **quiet)
    ids = tokens(device)
    with torch.no_grad():
        plain = first(ours(ids))
        assert torch.equal(first(ours(ids)), plain)
        ours.train()
        one, two = first(ours(ids)), first(ours(ids))
        assert not torch.equal(one, two) and not torch.equal(one, plain)
        mask = torch.tensor(MASKS["left"], device=device)
        assert not torch.equal(first(ours(ids, attention_mask=mask)), first(ours(ids, attention_mask=mask)))
        torch.manual_seed(5)
        one = first(ours(ids))
        torch.manual_seed(5)
        assert torch.equal(first(ours(ids)), one)


def test_sequences_of_a_padded_batch_have_masks_of_their_own(device):
    _, ours = pair("bert", device, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ours.train()
    ids = tokens(device)[:1].expand(3, -1)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    with torch.no_grad():
        out = first(ours(ids, attention_mask=mask))
    assert not torch.equal(out[0], out[1]) and not torch.equal(out[1], out[2])


@pytest.mark.parametrize("given", ["tokens", "numbers"])
def test_inference_mode_is_computed(given, device):
    """Tensors made there have no version."""
    eager, ours = pair("bert", device)
    with torch.inference_mode():
        mask = torch.tensor(MASKS["right"], device=device)
        counts = mask.bool()
        if given == "numbers":
            mask = torch.where(counts[:, None, None], 0.0, torch.finfo(ours.dtype).min).to(ours.dtype)
        expected, got = (first(model(tokens(device), attention_mask=mask)) for model in (eager, ours))
    assert torch.allclose(got[counts], expected[counts], **tolerance(device))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_eagers(cache, device):
    eager, ours = pair("llama", device)
    mask = torch.tensor(MASKS["left"], device=device)
    settings = dict(max_new_tokens=6, do_sample=False, cache_implementation=cache, pad_token_id=0, disable_compile=True)
    expected, got = (model.generate(tokens(device), attention_mask=mask, **settings) for model in (eager, ours))
    if device == "cpu":
        assert torch.equal(expected, got)
    else:
        assert expected.shape == got.shape  # in bfloat16 the largest of two near logits may be another


def test_what_cannot_be_computed_is_refused(device):
    x = torch.zeros(1, 2, 3, 8, device=device, dtype=torch.float16)
    with pytest.raises(NotImplementedError, match="block_indices was given"):
        attention_forward(torch.nn.Module(), x, x, x, None, is_causal=True, block_indices=x)
    starts = torch.tensor([0, 3], dtype=torch.int32, device=device)
    with pytest.raises(NotImplementedError, match="position_bias was given together with cu_seq_lens_q"):
        given = dict(is_causal=True, cu_seq_lens_q=starts, cu_seq_lens_k=starts)
        attention_forward(torch.nn.Module(), x, x, x, None, position_bias=x[..., :3], **given)
    with pytest.raises(NotImplementedError, match="does not say whether it is causal"):
        attention_forward(torch.nn.Module(), x, x, x, None)
    # A window that the mask does not have: eager attention sees what the mask says.
    for mask in (None, mask_of(x, torch.ones(1, 3))):
        with pytest.raises(NotImplementedError, match="sliding_window is 2, below 3 keys, and the attention mask has no such"):
            attention_forward(torch.nn.Module(), x, x, x, mask, is_causal=True, sliding_window=2)
        attention_forward(torch.nn.Module(), x, x, x, mask, is_causal=True, sliding_window=3)


def test_windows_over_keys_that_do_not_count_are_eagers(device):
    mask = torch.tensor(MASKS["holes"], device=device)
    expected, got = (first(model(tokens(device), attention_mask=mask)) for model in pair("mistral", device, sliding_window=4))
    # What a query sees whose own position does not count is nobody's.
    assert torch.allclose(expected[mask.bool()], got[mask.bool()], **tolerance(device))


def mask_of(q, attention_mask, function=None):
    from signflash._transformers import attention_mask_of

    batch, _, seqlen, _ = q.shape
    return attention_mask_of(batch, seqlen, seqlen, 0, 0, function, attention_mask.to(q.device), q.device)


def starts(device, *numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def test_lengths_that_contradict_themselves_or_the_mask_are_refused(device):
    x = torch.zeros(1, 2, 6, 8, device=device, dtype=torch.float16)
    module = torch.nn.Module()
    cu = starts(device, 0, 2, 6)

    def call(mask=None, **lengths):
        return attention_forward(module, x, x, x, mask, is_causal=True, **lengths)

    call(cu_seq_lens_q=cu, cu_seq_lens_k=cu, max_length_q=1, max_length_k=None)  # lengths decide, no maximum does
    for alone in (dict(cu_seq_lens_q=cu), dict(cu_seq_lens_k=cu), dict(max_length_q=4)):
        with pytest.raises(ValueError, match="cu_seq_lens_q and cu_seq_lens_k must be given together"):
            call(**alone)
    for wrong in ([0, 2, 6], cu.float(), cu[None]):
        with pytest.raises(TypeError, match="cu_seq_lens_q must be an int32 tensor of one dimension"):
            call(cu_seq_lens_q=wrong, cu_seq_lens_k=wrong)
    padded = mask_of(x, torch.tensor([[1, 1, 1, 1, 0, 0]]))
    with pytest.raises(NotImplementedError, match="cu_seq_lens_q and cu_seq_lens_k were given, and attention_mask"):
        call(padded, cu_seq_lens_q=cu, cu_seq_lens_k=cu)
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1]], device=device)
    visible = (numbers[:, None, :, None] == numbers[:, None, None]).tril()
    other = torch.zeros(1, 1, 6, 6, device=device).masked_fill(~visible, -torch.inf)
    with pytest.raises(NotImplementedError, match="sequences that begin elsewhere"):
        call(other, cu_seq_lens_q=cu, cu_seq_lens_k=cu)
    call(other, cu_seq_lens_q=starts(device, 0, 3, 6), cu_seq_lens_k=starts(device, 0, 3, 6))


def test_lengths_without_a_mask_are_flash_attentions(device):
    """Also from one row of the batch into the next, of windows as wide as FlashAttention's, and longer keys."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 3, 16, generator=generator).to(device, torch.float16)
    k, v = (torch.randn(2, 2, 5, 16, generator=generator).to(device, torch.float16) for _ in range(2))
    cu_q, cu_k = starts(device, 0, 4, 6), starts(device, 0, 6, 10)
    given = dict(cu_seq_lens_q=cu_q, cu_seq_lens_k=cu_k, max_length_q=4, max_length_k=6)
    for causal, window in ((True, None), (False, None), (True, 2), (False, 2)):
        got, _ = attention_forward(torch.nn.Module(), q, k, v, None, is_causal=causal, sliding_window=window, **given)
        sides = (-1, -1) if window is None else (window - 1, window - 1)
        flat = [x.transpose(1, 2).reshape(-1, x.shape[1], 16) for x in (q, k, v)]
        for (q0, q1), (k0, k1) in (((0, 4), (0, 6)), ((4, 6), (6, 10))):
            one = (flat[0][None, q0:q1], flat[1][None, k0:k1], flat[2][None, k0:k1])
            expected = signflash.attention(*one, causal=causal, window=sides, softmax_scale=0.25)
            assert torch.allclose(got.reshape(6, 4, 16)[q0:q1], expected[0], atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", MASKS)
def test_the_dropout_masks_of_sequences_are_those_of_their_numbers(causal, padding, device):
    """A padded batch next to each sequence alone, with the same seed: what is dropped is equal, and so are gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(3, 4, 12, 16, generator=generator).to(device, torch.float16) for _ in range(4))
    counts = torch.tensor(MASKS[padding], device=device).bool()
    mask = mask_of(q, counts, None if causal else masking_utils.bidirectional_mask_function)
    packed, tensors = mask.of(12, 12).packed, [x.clone().requires_grad_() for x in (q, k, v)]
    with signflash.random_state(7, 64):
        out, probs = attention_forward(torch.nn.Module(), *tensors, mask, dropout=0.4, output_attentions=True)
    out.backward(dout.transpose(1, 2))
    again = [x.clone().requires_grad_() for x in (q, k, v)]
    numbers = packed.cu_seqlens_q.diff().mul(packed.cu_seqlens_k.diff()).nonzero()[:, 0].tolist()
    assert len(numbers) == 3
    for row, number in enumerate(numbers):
        queries = counts[row] if causal else torch.ones_like(counts[row])
        one = [x[row : row + 1, :, which].transpose(1, 2) for x, which in zip(again, (queries, counts[row], counts[row]))]
        expected, weights = signflash.attention(
            *one, dropout_p=0.4, causal=causal, seed=7, offset=64, shard=signflash.Shard(first_batch=number),
            softmax_scale=0.25, return_probs=True,
        )  # fmt: skip
        assert torch.allclose(out[row, queries], expected[0], atol=2e-3)
        assert bool((out[row, ~queries] == 0).all()) and bool((probs[row, :, ~queries] == 0).all())
        assert torch.allclose(probs[row][:, queries][:, :, counts[row]], weights[0].abs(), atol=1e-3)
        assert bool((weights[0].view(torch.int16) < 0).any())
        expected.backward(dout.transpose(1, 2)[row : row + 1, queries])
    for x, y in zip(tensors, again):
        assert torch.allclose(x.grad, y.grad, atol=4e-3)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_padded_batch_is_one_call_a_layer(kind, padding, monkeypatch):
    _, ours = pair(kind, "cpu")
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs.get("cu_seqlens_q") is not None)
        return signflash.attention(*args, **kwargs)

    for name in ("packed", "attention"):
        monkeypatch.setattr(f"signflash._transformers.{name}.attention", counted)
    ours(tokens("cpu"), attention_mask=torch.tensor(MASKS[padding]))
    assert calls == [True, True]
    calls.clear()
    ours(tokens("cpu"), attention_mask=torch.ones(3, 12))
    assert calls == [False, False]


@pytest.mark.gpu
def test_the_gpu_is_waited_for_once_a_mask_and_not_by_layers():
    _, ours = pair("bert", "cuda")
    mask = torch.tensor(MASKS["right"], device="cuda")
    ours(tokens("cuda"), attention_mask=mask)
    q = torch.zeros(3, 4, 12, 16, device="cuda", dtype=torch.bfloat16)
    made = mask_of(q, mask)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention_forward(torch.nn.Module(), q, q, q, made)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer")
@pytest.mark.parametrize("padding", [None, *MASKS])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_compiled_models_are_computed(kind, padding, device):
    if kind == "mistral" and padding == "holes":
        pytest.skip("refused")
    torch._dynamo.reset()
    eager, ours = pair(kind, device, **(dict(sliding_window=4) if kind == "mistral" else {}))
    ids = tokens(device)
    mask = None if padding is None else torch.tensor(MASKS[padding], device=device)
    with torch.no_grad():
        expected = first(eager(ids, attention_mask=mask, use_cache=False))
        got = first(torch.compile(ours, backend="aot_eager")(ids, attention_mask=mask, use_cache=False))
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    assert torch.allclose(got[counts], expected[counts], **tolerance(device))


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer")
def test_layers_are_compiled_as_a_whole_and_once_for_all_lengths():
    torch._dynamo.reset()
    _, ours = pair("llama", "cpu")
    graphs = []

    def counting(graph, _):
        graphs.append(sum("attention_forward" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(ours, backend=counting)
    for shortest in (7, 3, 9, 1):
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, shortest:] = mask[0, shortest + 1 :] = 0
        compiled(tokens("cpu"), attention_mask=mask, use_cache=False)
        assert [n for n in graphs if n > 0] == [2]  # both layers


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_compiled_models_train_on_padded_batches_with_dropout(kind, device):
    torch._dynamo.reset()
    _, ours = pair(kind, device, **({} if kind == "bert" else dict(attention_dropout=0.1)))
    compiled = torch.compile(ours.train(), backend="aot_eager")
    for padding in ("right", "left", None):
        mask = None if padding is None else torch.tensor(MASKS[padding], device=device)
        ours.zero_grad()
        first(compiled(tokens(device), attention_mask=mask)).float().square().mean().backward()
        for name, parameter in ours.named_parameters():
            if "q_proj" in name or "query" in name:
                assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, (padding, name)
