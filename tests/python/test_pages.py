"""The Python lines of the pages run."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import signflash

ROOT = Path(__file__).resolve().parents[2]


def blocks():
    pages = ("README.md", *(f"docs/{x}.md" for x in ("python", "pytorch", "scores", "transformers", "distributed")))
    for page in pages:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)):
            yield pytest.param(code, id=f"{page}-{number}")


def names_for(code):
    """What a page takes for granted: arrays, tensors, or a model's configuration."""
    if "distributed" in code and not has_processes():
        pytest.skip("signflash.distributed needs PyTorch 2.2 with gloo")
    if "AutoModel" in code:
        transformers = pytest.importorskip("transformers")
        if not hasattr(transformers, "AttentionMaskInterface"):
            pytest.skip("this Transformers has no AttentionMaskInterface")
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        return dict(signflash=signflash, AutoModel=transformers.AutoModel, config=transformers.BertConfig(**sizes))
    if "dout" in code:
        np = pytest.importorskip("numpy")
        q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 16, 2, 8), "f4")
        return dict(signflash=signflash, q=q, k=k, v=v, dout=dout)
    if "scaled_dot_product_attention" in code:
        if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
            pytest.skip("this PyTorch has no F.scaled_dot_product_attention")
        q, k, v = torch.randn(3, 1, 2, 16, 8)
        return dict(signflash=signflash, torch=torch, q=q, k=k, v=v)
    return {}


def has_processes():
    distributed = torch.distributed
    is_new = tuple(int(x) for x in torch.__version__.split(".")[:2]) >= (2, 2)
    return is_new and distributed.is_available() and distributed.is_gloo_available()


@pytest.mark.parametrize("code", list(blocks()))
def test_the_lines_of_a_page_run(code):
    names = names_for(code)
    try:
        exec(compile(code, "a page", "exec"), names)
    finally:
        signflash.disable()
