"""Hugging Face Transformers with attn_implementation="signflash" next to eager."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

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
    _, ours = pair("mistral", device, sliding_window=4)
    with pytest.raises(NotImplementedError, match="sliding window of 4"):
        ours(tokens(device))
    _, ours = pair("mistral", device, sliding_window=64)
    ours(tokens(device))
    _, ours = pair("llama", device)
    packed = torch.arange(12, device=device).remainder(6)[None].expand(3, -1)
    with pytest.raises(NotImplementedError, match="packed sequences.*only causal and full attention"):
        ours(tokens(device), position_ids=packed, use_cache=False)
    from signflash._transformers import attention_forward

    x = torch.zeros(1, 2, 3, 8, device=device, dtype=torch.float16)
    with pytest.raises(NotImplementedError, match="softcap was given"):
        attention_forward(torch.nn.Module(), x, x, x, None, is_causal=True, softcap=30.0)
    with pytest.raises(NotImplementedError, match="does not say whether it is causal"):
        attention_forward(torch.nn.Module(), x, x, x, None)


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4 or newer")
@pytest.mark.parametrize("padding", [None, "right"])
def test_compiled_models_are_computed(padding, device):
    torch._dynamo.reset()
    eager, ours = pair("llama", device)
    ids = tokens(device)
    mask = None if padding is None else torch.tensor(MASKS[padding], device=device)
    with torch.no_grad():
        expected = first(eager(ids, attention_mask=mask, use_cache=False))
        got = first(torch.compile(ours, backend="aot_eager")(ids, attention_mask=mask, use_cache=False))
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    assert torch.allclose(got[counts], expected[counts], **tolerance(device))


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
