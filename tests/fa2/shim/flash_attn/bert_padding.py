"""What the tests pack padded batches with."""

import torch


def unpad_input(x, mask, unused_mask=None):
    """The positions of x (batch, seqlen, ...) that count in mask (batch, seqlen), or are room to spare: (these, where
    they were, cu_seqlens, the longest, how many count in each sequence)."""
    room = mask.bool() if unused_mask is None else mask.bool() | unused_mask.bool()
    where = room.flatten().nonzero()[:, 0]
    lengths = room.sum(-1, dtype=torch.int32)
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return x.flatten(0, 1)[where], where, starts, int(lengths.max()), mask.bool().sum(-1, dtype=torch.int32)


def pad_input(x, where, batch, seqlen):
    """The inverse: (batch, seqlen, ...), 0 elsewhere."""
    return x.new_zeros((batch * seqlen, *x.shape[1:])).index_copy(0, where, x).unflatten(0, (batch, seqlen))
