"""Sees every dropout of attention probabilities, every fused attention of PyTorch, and every call of ours."""

import torch.nn.functional as F


class Watch:
    """Counts since reset(): ours (all, and with dropout), and dropouts of others."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.calls = self.dropped = 0
        self.others = []

    def install(self):
        """From now on F.dropout, F.scaled_dot_product_attention and our attention function are counted."""
        import signflash
        from signflash import _transformers as ours
        from transformers import AttentionInterface

        signflash.enable(pytorch=False)
        dropout, fused = F.dropout, F.scaled_dot_product_attention

        def watched_dropout(input, p=0.5, training=True, inplace=False):
            if training and p > 0 and looks_like_probabilities(input):
                self.others.append(float(p))
            return dropout(input, p, training, inplace)

        def watched_fused(*args, **kwargs):
            p = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            if p > 0:
                self.others.append(float(p))
            return fused(*args, **kwargs)

        def attention(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
            result = ours.attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
            self.calls += 1
            self.dropped += dropout > 0
            return result

        F.dropout, F.scaled_dot_product_attention = watched_dropout, watched_fused
        for name in (ours.NAME, ours.ALIAS):
            AttentionInterface.register(name, attention)


def looks_like_probabilities(x):
    """Rows that add up to 1, or a softmax not far behind."""
    if x.dim() < 3 or x.shape[-1] < 2 or not x.is_floating_point() or x.numel() == 0:
        return False
    values = x.detach()
    if float(values.min()) < 0:
        return False
    sums = values.float().sum(-1)
    near = ((sums - 1).abs() < 2e-3) | (sums.abs() < 1e-6)
    if bool(near.float().mean() > 0.9) and float(sums.max()) > 0.5:
        return True
    function, depth = x.grad_fn, 0
    while function is not None and depth < 5:
        if "Softmax" in function.name():
            return bool(sums.max() < 1.01)
        function = function.next_functions[0][0] if function.next_functions else None
        depth += 1
    return False
