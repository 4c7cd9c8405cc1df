"""Attention that models write out, read while it runs: numbers, gradients and dropout are the formula's, and what is not read
raises."""

import copy
import math
import pickle

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

import torch.nn.functional as F
from signflash._transformers import own, products, recognised
from signflash._transformers.recognised import Node, Recognising, Unrecognised
from test_transformers_models import ENCODER, ids, make, short, state

BATCH, HEADS, LEN_Q, LEN_K, DIM = 2, 3, 5, 7, 8
LEAST = torch.finfo(torch.float32).min
GIT = ("git", "GitConfig", "GitModel")


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator).requires_grad_()
        for size in (
            (BATCH, HEADS, LEN_Q, DIM),
            (BATCH, HEADS, LEN_K, DIM),
            (BATCH, HEADS, LEN_K, DIM),
            (HEADS, LEN_Q, LEN_K),
            (HEADS, 1, 1),
        )
    ]


HIDES = torch.arange(LEN_K)[None, None, None] >= torch.tensor([7, 4])[:, None, None, None]
ADDED = torch.zeros(BATCH, 1, 1, LEN_K).masked_fill(HIDES, LEAST)
LOWER = torch.ones(LEN_Q, LEN_K, dtype=torch.bool).tril()


def plainly(q, k, v, bias, factor, drop):
    return drop(F.softmax(q @ k.transpose(-1, -2) / math.sqrt(DIM) + ADDED, dim=-1)) @ v


def causally(q, k, v, bias, factor, drop):
    scores = torch.matmul(q, k.transpose(2, 3)) * DIM**-0.5
    scores = torch.where(LOWER, scores, torch.tensor(LEAST))
    return torch.matmul(drop(torch.nn.Softmax(dim=-1)(scores).to(v.dtype)), v)


def in_place(q, k, v, bias, factor, drop):
    scores = torch.matmul(q / math.sqrt(DIM), k.transpose(2, 3))
    scores += bias
    scores.masked_fill_((HIDES | ~LOWER).expand_as(scores), -math.inf)
    return torch.matmul(drop(F.softmax(scores.float(), dim=-1).type_as(scores)), v)


def batch_and_heads_in_one(q, k, v, bias, factor, drop):
    q, k, v = (x.reshape(BATCH * HEADS, -1, DIM) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2))
    scores = scores.view(BATCH, HEADS, LEN_Q, LEN_K) + ADDED
    scores = scores.view(BATCH * HEADS, LEN_Q, LEN_K)
    probs = drop(F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype))
    return torch.bmm(probs, v).view(BATCH, HEADS, LEN_Q, DIM)


def never_apart(q, k, v, bias, factor, drop):
    q, k, v = (x.reshape(BATCH * HEADS, -1, DIM) for x in (q, k, v))
    scores = torch.baddbmm(bias.repeat(BATCH, 1, 1), q, k.transpose(1, 2), beta=0.5, alpha=0.25)
    scores = scores + LOWER.float().log()
    return torch.bmm(drop(torch.softmax(scores, -1)), v).view(BATCH, HEADS, LEN_Q, DIM)


def scaled_behind_the_bias(q, k, v, bias, factor, drop):
    scores = (q @ k.mT + bias + 3) / 2.0 * factor.exp()
    return drop(scores.softmax(-1)) @ v


def in_windows(q, k, v, bias, factor, drop):
    scores = (q @ k.mT + bias[None]).view(1, BATCH, HEADS, LEN_Q, LEN_K)
    scores = scores + ADDED.expand(-1, -1, LEN_Q, -1)[:, 0].unsqueeze(1).unsqueeze(0)
    return drop(scores.view(-1, HEADS, LEN_Q, LEN_K).softmax(dim=-1)) @ v


def by_letters(q, k, v, bias, factor, drop):
    q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
    scores = torch.einsum("ibnd,jbnd->bnij", q, k) + torch.einsum("ibnd,jbnd->bnij", q, 2 * k)
    probs = drop(F.softmax(scores - 1e30 * HIDES.float(), dim=3))
    return torch.einsum("bnij,jbnd->ibnd", probs, v).permute(1, 2, 0, 3)


WRITTEN = [
    plainly,
    causally,
    in_place,
    batch_and_heads_in_one,
    never_apart,
    scaled_behind_the_bias,
    in_windows,
    by_letters,
]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("written", WRITTEN)
def test_numbers_gradients_and_dropout_are_those_of_what_is_written(written, dropout, monkeypatch):
    calls = []
    forward = products.ALL_ATTENTION_FUNCTIONS["signdense"]
    monkeypatch.setitem(
        products.ALL_ATTENTION_FUNCTIONS, "signdense", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )

    def run(v=None):
        mine = tensors()
        if v is not None:
            mine[2] = v
        torch.manual_seed(5)
        with Recognising(torch.nn.Module()):
            out = written(*mine, lambda x: F.dropout(x, dropout, training=True))
        assert type(out) is torch.Tensor
        return out, mine

    out, mine = run()
    assert len(calls) == 1
    keep = 1.0
    if dropout:
        identity = F.pad(torch.eye(LEN_K), (0, DIM - LEN_K)).expand(BATCH, HEADS, -1, -1).contiguous()
        keep = (run(identity)[0][..., :LEN_K] != 0) * signflash.keep_scale(dropout)
    theirs = tensors()
    expected = written(*theirs, lambda x: x * (keep.reshape(x.shape) if dropout else 1.0))
    assert torch.allclose(out, expected, atol=2e-6)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for x, y in zip(mine, theirs):
        got, right = (
            torch.autograd.grad((o * weights).sum(), z, retain_graph=True, allow_unused=True)[0]
            for o, z in ((out, x), (expected, y))
        )
        assert (got is None) == (right is None) and (got is None or torch.allclose(got, right, atol=1e-5))


def test_other_operators_get_the_numbers():
    q, k, v, bias, _ = tensors()
    right = q @ k.mT / 2.0 + bias
    with Recognising(torch.nn.Module()):
        node = q @ k.mT / 2.0 + bias
        assert type(node) is Node and node.shape == right.shape and node.dtype is torch.float32 and node.dim() == 4
        assert type(node.exp()) is torch.Tensor and torch.equal(node.exp(), right.exp())
        assert torch.equal(torch.cat([node, bias[None].expand(BATCH, -1, -1, -1)], -1)[..., :LEN_K], right)
        assert torch.equal(torch.max(node, torch.tensor(0.0)), right.clamp(min=0.0))
        assert torch.equal(F.linear(q @ k.mT, torch.eye(LEN_K)), q @ k.mT)
        out = node.softmax(-1) @ v  # and nothing is lost by having looked
    assert torch.allclose(out, right.softmax(-1) @ v, atol=2e-6)
    assert torch.equal(node.sum(), right.sum())  # behind it, too


def test_who_writes_into_the_numbers_is_seen_by_all():
    q, k, *_ = tensors()
    right = (q @ k.mT).detach()
    with torch.no_grad(), Recognising(torch.nn.Module()):
        node = q @ k.mT
        view = node.view(BATCH * HEADS, LEN_Q, LEN_K)
        view += 1.0
        node[0] = 7.0
        assert torch.equal(node * 1.0, right.add(1.0).index_fill(0, torch.tensor(0), 7.0))
        assert torch.equal(view.view(node.shape) * 1.0, node * 1.0)


UNREAD = {
    "probabilities that are changed": lambda q, k, v: (q @ k.mT).softmax(-1).pow(2) @ v,
    "a softmax of other numbers": lambda q, k, v: (q @ k.mT).exp().softmax(-1) @ v,
    "a softmax over queries": lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
    "probabilities behind a dropout": lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.5).sum(),
    "PyTorch's own": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "two dropouts": lambda q, k, v: F.dropout(F.dropout((q @ k.mT).softmax(-1), 0.5), 0.5) @ v,
    "values of other heads": lambda q, k, v: (q @ k.mT).softmax(-1) @ v[:, :1],
    "a dropout of scores": lambda q, k, v: F.dropout(q @ k.mT, 0.5).softmax(-1) @ v,
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_raises_by_name(name):
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(Unrecognised, match="Linear computes attention in code of its own.*'eager' for this model"):
        with Recognising(layer):
            UNREAD[name](*tensors()[:3])
    assert torch.equal(torch.softmax(torch.zeros(2), -1), torch.full((2,), 0.5))  # it has ended


def test_probabilities_behind_their_dropout_raise_for_whoever_gets_them():
    q, k, *_ = tensors()
    with Recognising(torch.nn.Module()):
        probs = (q @ k.mT).softmax(-1)
        dropped = F.dropout(probs, 0.5)
    assert torch.allclose(probs + 0.0, (q @ k.mT).softmax(-1))
    with pytest.raises(Unrecognised, match="behind their dropout"):
        dropped + 0.0


def both(package=GIT, settings=ENCODER):
    eager, ours = (make(*package, name, **settings) for name in ("eager", "signflash"))
    ours.load_state_dict(eager.state_dict())
    return eager, ours


def test_a_model_is_eagers_and_stays_so_when_it_is_copied_saved_and_made_again(tmp_path):
    eager, ours = both()
    assert ours.config._attn_implementation == "signdense"
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path, attn_implementation="signflash").eval()
    expected = state(eager(ids(), attention_mask=short()))
    for model in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), again):
        with count_of_ours() as calls:
            got = state(model(ids(), attention_mask=short()))
        assert len(calls) == 2 and torch.allclose(got * short()[..., None], expected * short()[..., None], atol=2e-5)
    copied = copy.deepcopy(ours)
    copied.set_attn_implementation("eager")
    with count_of_ours() as calls:
        copied(ids())
        assert not calls
        ours(ids())
        assert len(calls) == 2


class count_of_ours:
    def __enter__(self):
        self.calls, self.function = [], products.attend
        products.attend = lambda *args: self.calls.append(1) or self.function(*args)
        return self.calls

    def __exit__(self, *_):
        products.attend = self.function


def test_checkpoints_draw_the_dropout_mask_again():
    gradients = []
    for checkpoints in (False, True):
        model = make(
            "megatron_bert",
            "MegatronBertConfig",
            "MegatronBertModel",
            **dict(ENCODER, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0),
        ).train()
        if checkpoints:
            model.gradient_checkpointing_enable()
        torch.manual_seed(2)
        model(ids()).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(*gradients))


def test_probabilities_are_there_in_evaluation_and_raise_in_training():
    eager, ours = both()
    for expected, got in zip(*(x(ids(), output_attentions=True).attentions for x in (eager, ours))):
        assert torch.allclose(got + 0.0, expected, atol=1e-6)
    trained = make(*GIT, **dict(ENCODER, attention_probs_dropout_prob=0.3)).train()
    with pytest.raises(NotImplementedError, match="behind their dropout"):
        trained(ids(), output_attentions=True).attentions[0] + 0.0


def test_an_error_in_a_layer_ends_the_reading():
    _, ours = both()
    layer = next(x for x in ours.modules() if own.is_read(x))
    with pytest.raises(Exception):
        layer("no tensor")
    assert recognised.current() is None and type(torch.ones(1, 2, 2) @ torch.ones(1, 2, 2)) is torch.Tensor


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="no compiler")
def test_compiled_code_leaves_it_to_ours():
    model = make(*GIT, **dict(ENCODER, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0)).train()
    results = []
    for call in (model, torch.compile(model, backend="eager")):
        torch.manual_seed(3)
        with count_of_ours() as calls:
            results.append(state(call(ids())))
        assert len(calls) == 2
    assert torch.allclose(*results, atol=2e-5)
    model.set_attn_implementation("eager")
    with count_of_ours() as calls:
        torch.compile(model, backend="eager")(ids())
    assert not calls


def test_only_known_classes_are_read():
    assert all(own.is_recognised(type(x), None) for x in both()[1].modules() if own.is_read(x))
    with pytest.raises(NotImplementedError, match="does not support attn_implementation='signflash': .*BigBird"):
        make("big_bird", "BigBirdConfig", "BigBirdModel", **ENCODER)
