"""The dropout mask: FlashAttention-2's, wherever it is drawn."""

import pytest

np = pytest.importorskip("numpy")

import reference
import signflash


@pytest.mark.parametrize("p", [0.004, 0.1, 0.17, 0.5, 0.6, 0.999])
@pytest.mark.parametrize("seed,offset", [(0, 0), (42, 96), (2**64 - 1, 2**40 + 4)])
def test_the_dropout_mask_is_that_of_its_definition(p, seed, offset):
    shape = (2, 3, 70, 101)
    assert np.array_equal(signflash.dropout_mask(shape, p, seed, offset), reference.keep(shape, p, seed, offset))


def test_the_dropout_mask_of_a_shard_is_part_of_the_wholes():
    whole = signflash.dropout_mask((3, 4, 50, 80), 0.3, 7, 32)
    shard = signflash.Shard(first_batch=1, first_head=2, first_row=17, first_column=33, num_heads_total=4)
    piece = signflash.dropout_mask((2, 2, 33, 47), 0.3, 7, 32, shard=shard)
    assert np.array_equal(piece, whole[1:, 2:, 17:, 33:])


def test_without_dropout_everything_is_kept():
    assert signflash.dropout_mask((1, 2, 3, 4), 0.0, 1).all()


def test_the_kept_share_is_the_documented_one():
    for p in (0.01, 0.1, 0.9, 0.99):
        kept = signflash.dropout_mask((4, 8, 256, 256), p, 3).mean()
        assert kept == pytest.approx((reference.threshold(p) + 1) / 256, abs=1e-3)


def test_empty_dropout_masks_have_their_shape():
    for shape in ((0, 1, 2, 3), (1, 1, 0, 3), (1, 1, 2, 0)):
        assert signflash.dropout_mask(shape, 0.5, 1).shape == shape


def test_the_dropout_mask_can_be_a_tensor(device):
    torch = pytest.importorskip("torch")
    keep = signflash.dropout_mask((1, 2, 33, 47), 0.3, 5, device=device)
    assert keep.dtype == torch.bool and keep.device.type == device
    assert np.array_equal(keep.cpu().numpy(), signflash.dropout_mask((1, 2, 33, 47), 0.3, 5))


def test_decoding_reads_the_sign_bit_and_not_the_sign():
    probability, dropped = signflash.decode(np.array([0.5, -0.25, 0.0, -0.0], "float32"))
    assert probability.tolist() == [0.5, 0.25, 0.0, 0.0]
    assert dropped.tolist() == [False, True, False, True]


def test_the_keep_scale_follows_its_rule():
    for p in (0.0, 0.1, 0.9):
        for rule in ("unbiased", "nominal"):
            expected = reference.keep_scale(float(np.float32(p)), rule == "nominal")
            assert signflash.keep_scale(p, rule) == pytest.approx(expected, rel=1e-6)
