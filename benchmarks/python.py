#!/usr/bin/env python3
"""The Python package next to PyTorch's FlashAttention-2 and cuDNN on a GPU, taking turns, and what a call costs the host.

    python3 python.py [--quick] [--json OUT.json]

FLOP convention (the field's): forward 4 b h sq sk d, halved when causal; backward 2.5 times that. batch * seqlen = 16384,
heads * head_dim = 2048, bf16. cuDNN has dropout at multiples of 1/16 only and is run at p = 0.125 where the others are at 0.1.
Host: time until a call returns while the GPU has little to do, best of five rounds; with autograd recording, and the backward
including PyTorch's engine.
"""

import argparse
import json
import statistics
import time

import signflash
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def through_pytorch(backend):
    def call(q, k, v, p, causal):
        if backend is SDPBackend.CUDNN_ATTENTION and p > 0:
            p = 0.125
        with sdpa_kernel(backend):
            given = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(*given, dropout_p=p, is_causal=causal).transpose(1, 2)

    return call


PEERS = {
    "signflash": lambda q, k, v, p, causal: signflash.attention(q, k, v, dropout_p=p, causal=causal),
    "FA2": through_pytorch(SDPBackend.FLASH_ATTENTION),
    "cuDNN": through_pytorch(SDPBackend.CUDNN_ATTENTION),
}


def flops(shape, causal, backward):
    batch, seqlen, heads, dim = shape
    return 4.0 * batch * heads * seqlen * seqlen * dim / (2 if causal else 1) * (2.5 if backward else 1)


def take_turns(runs, rounds):
    """Median milliseconds of each, measured in turns so that clocks and heat are the same for all."""
    times = {name: [] for name in runs}
    for round_ in range(rounds + 3):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if round_ >= 3:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def kernels(a):
    rows = []
    for dim in (128, 64):
        for seqlen in (4096,) if a.quick else (1024, 4096, 8192):
            for causal in (False, True):
                for p in (0.0, 0.1):
                    shape = (16384 // seqlen, seqlen, 2048 // dim, dim)
                    q, k, v = (
                        torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
                    )
                    dout = torch.randn_like(q)
                    forwards, backwards = {}, {}
                    for name, call in PEERS.items():
                        try:
                            out = call(q, k, v, p, causal)
                        except RuntimeError as error:  # a peer that cannot run this case is left out, and said so
                            print(f"# {name}: {str(error).splitlines()[0][:120]}")
                            continue
                        forwards[name] = lambda call=call: call(q, k, v, p, causal)
                        backwards[name] = lambda out=out: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
                    with torch.no_grad():
                        found = {"forward": take_turns(forwards, a.rounds)}
                    found["backward"] = take_turns(backwards, a.rounds)
                    for pass_, times in found.items():
                        for name, ms in times.items():
                            tflops = flops(shape, causal, pass_ == "backward") / ms / 1e9
                            rows.append(
                                dict(
                                    peer=name,
                                    head_dim=dim,
                                    seqlen=seqlen,
                                    causal=causal,
                                    p=p,
                                    **{"pass": pass_},
                                    ms=ms,
                                    tflops=tflops,
                                )
                            )
                        text = "  ".join(
                            f"{name} {flops(shape, causal, pass_ == 'backward') / ms / 1e9:6.1f}"
                            for name, ms in times.items()
                        )
                        print(
                            f"d={dim:3d} s={seqlen:5d} causal={causal:d} p={p:3.1f} {pass_:8s} TFLOP/s: {text}",
                            flush=True,
                        )
    return rows


def host_us(run, calls=200):
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - start) / calls)
        torch.cuda.synchronize()
    return best * 1e6


def host():
    q, k, v = (torch.randn(1, 128, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    rows = []
    for name, call in PEERS.items():
        for p in (0.0, 0.1):
            try:
                with torch.no_grad():
                    forward = host_us(lambda: call(q, k, v, p, False))
                tensors = [x.clone().requires_grad_() for x in (q, k, v)]
                recording = host_us(lambda: call(*tensors, p, False))
                out = call(*tensors, p, False)
                backward = host_us(lambda: torch.autograd.grad(out, tensors, out, retain_graph=True))
            except RuntimeError as error:
                print(f"# {name}: {str(error).splitlines()[0][:120]}")
                continue
            rows.append(dict(peer=name, p=p, forward_us=forward, recording_us=recording, backward_us=backward))
            print(
                f"host: {name:9s} p={p:3.1f} forward {forward:5.1f} us, recording {recording:5.1f} us, backward {backward:5.1f} us",
                flush=True,
            )
    rows.extend(by_hand(q, k, v))
    return rows


def by_hand(q, k, v):
    """Our backward without PyTorch's engine, which runs it in a thread of its own: what is the engine's, and what is ours."""
    rows = []
    for p in (0.0, 0.1):
        out, lse = signflash.attention(q, k, v, dropout_p=p, seed=1, return_lse=True)
        us = host_us(lambda: signflash.attention_backward(out, q, k, v, out, lse, dropout_p=p, seed=1))
        rows.append(dict(peer="signflash, by hand", p=p, backward_us=us))
        print(f"host: signflash, by hand p={p:3.1f} backward {us:5.1f} us", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; benchmarks/cpu.py measures the CPU")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, signflash {signflash.__version__}")
    found = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__, host=host(), kernels=kernels(a))
    if a.json:
        with open(a.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
