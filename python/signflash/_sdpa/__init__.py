"""PyTorch's own ``F.scaled_dot_product_attention``, made ours where it drops.

``switch`` turns it on and off, ``override`` is what PyTorch then calls, ``takes`` decides, ``masks`` reads masks,
``run`` computes, ``notes`` and ``explain`` tell what became of a call. Imported by :func:`signflash.enable`.
"""
