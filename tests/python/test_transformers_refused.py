"""Models that Transformers would not compute by us, or not rightly: refused when they are made, or by a sentence."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_transformers_models import BART, DECODER, ENCODER, ids, kinds, make, short, state

WAVLM = ("WavLMConfig", "WavLMModel", dict(num_hidden_layers=1))
#: (package, configuration, model, settings, what the sentence names)
OWN = [
    ("wavlm", *WAVLM, "WavLMAttention"),
    ("convbert", "ConvBertConfig", "ConvBertModel", ENCODER, "ConvBertSelfAttention"),
    ("big_bird", "BigBirdConfig", "BigBirdModel", ENCODER, "BigBirdBlockSparseAttention"),
    ("openai", "OpenAIGPTConfig", "OpenAIGPTModel", dict(n_embd=64, n_layer=1, n_head=4, vocab_size=60), "Attention"),
    # Asks by getattr(), which finds nothing.
    ("yoso", "YosoConfig", "YosoModel", dict(ENCODER, num_hidden_layers=1), "registry"),
    # A table of classes.
    ("falcon", "FalconConfig", "FalconModel", dict(hidden_size=64, num_attention_heads=4), "FALCON_ATTENTION_CLASSES"),
    # The decoder asks, the encoder does not.
    ("led", "LEDConfig", "LEDModel", dict(BART, attention_window=8), "LEDEncoderSelfAttention"),
]


@pytest.mark.parametrize("package,config,model,settings,names", OWN, ids=[x[0] for x in OWN])
def test_models_with_attention_of_their_own_are_refused_when_they_are_made(package, config, model, settings, names):
    with pytest.raises(NotImplementedError, match=f"does not support attn_implementation='signflash': .*{names}"):
        make(package, config, model, **settings)
    make(package, config, model, "eager", **settings)


def test_a_composite_model_is_refused_for_its_part_and_made_without_it():
    config, model = kinds("bridgetower", "BridgeTowerConfig", "BridgeTowerModel")
    text, vision = dict(ENCODER), dict(hidden_size=64, num_hidden_layers=2, image_size=32, patch_size=16)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, text_config=text, vision_config=vision)
    whole = config(**sizes)
    whole._attn_implementation = "signflash"
    with pytest.raises(NotImplementedError, match="BridgeTowerVision.*does not support"):
        model(whole)
    part = config(**sizes)
    part._attn_implementation = {"": "signflash", "text_config": "signflash", "vision_config": "eager"}
    made = model(part)
    assert made.config.vision_config._attn_implementation == "eager"
    assert made.config.text_config._attn_implementation == "signdense"


def test_another_implementation_later_is_judged_too():
    wavlm = make("wavlm", *WAVLM[:2], "eager", **WAVLM[2])
    with pytest.raises(NotImplementedError, match="WavLM.* does not support"):
        wavlm.set_attn_implementation("signflash")
    assert wavlm.config._attn_implementation == "eager"
    llama = make("llama", "LlamaConfig", "LlamaModel", "eager", **DECODER)
    expected = state(llama(ids(), attention_mask=short()))
    llama.set_attn_implementation("signflash")
    assert llama.config._attn_implementation == "signdense"
    got = state(llama(ids(), attention_mask=short()))
    assert torch.allclose(got * short()[..., None], expected * short()[..., None], atol=2e-5)


def test_a_model_that_adds_the_mask_itself_is_refused_by_a_sentence():
    model = make("llama", "LlamaConfig", "LlamaModel", **DECODER)

    def own_attention(layer, args, kwargs):
        return args, dict(kwargs, attention_mask=0.5 + kwargs["attention_mask"])

    model.layers[0].register_forward_pre_hook(own_attention, with_kwargs=True)
    with pytest.raises(
        NotImplementedError, match="asks for .*add.* of the attention mask.*use attn_implementation='eager'"
    ):
        model(ids(), attention_mask=short())


def test_a_refusal_says_how_pytorchs_attention_in_a_model_is_ours():
    for package, config, model, settings, name in (
        (
            "falcon",
            "FalconConfig",
            "FalconModel",
            dict(hidden_size=64, num_attention_heads=4),
            "'sdpa' for it, whose dropout is",
        ),
        ("wavlm", *WAVLM, "Use 'eager' for it; where"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            make(package, config, model, **settings)
