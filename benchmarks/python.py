#!/usr/bin/env python3
"""The Python package next to PyTorch's FlashAttention-2 and cuDNN on a GPU: speed, what a call costs the host, memory.

    python3 python.py [--quick] [--only host,memory,speed] [--json OUT.json] [--markdown OUT.md]

All take turns. FLOP convention (the field's): forward 4 b h sq sk d, halved when causal; backward 2.5 times that.
batch * seqlen = 16384, heads * head_dim = 2048, bf16. cuDNN has dropout at multiples of 1/16 only and is run at
p = 0.125 where the others are at 0.1.
Host: time until a call returns, in rounds of 30 calls after which the GPU is waited for: the best round and the
median one; "whole" is the best with that wait: where it is hardly more, the GPU has little to do and the host did not
wait for it. p = 0.125, which all of them have.
"""

import argparse
import contextlib
import functools
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


def make(shape, requires_grad=True):
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_(requires_grad) for _ in range(3)]


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


def passes(shape, p, causal):
    """A forward without autograd and a backward of each peer that takes the problem."""
    tensors = make(shape)
    dout = torch.randn_like(tensors[0])
    forwards, backwards = {}, {}
    for name, call in PEERS.items():
        try:
            out = call(*tensors, p, causal)
        except RuntimeError as error:  # a peer that cannot run this case is left out, and said so
            print(f"# {name}: {str(error).splitlines()[0][:120]}")
            continue
        forwards[name] = lambda call=call: call(*tensors, p, causal)
        backwards[name] = lambda out=out: torch.autograd.grad(out, tensors, dout, retain_graph=True)
    return forwards, backwards


def speed(a):
    seqlens = (4096,) if a.quick else (1024, 4096, 8192)
    cases = [(d, s, causal, p) for d in (128, 64) for s in seqlens for causal in (False, True) for p in (0.0, 0.1)]
    rows = []
    for dim, seqlen, causal, p in cases:
        shape = (16384 // seqlen, seqlen, 2048 // dim, dim)
        forwards, backwards = passes(shape, p, causal)
        with torch.no_grad():
            found = {"forward": take_turns(forwards, a.rounds)}
        found["backward"] = take_turns(backwards, a.rounds)
        for pass_, times in found.items():
            of_peers = {name: flops(shape, causal, pass_ == "backward") / ms / 1e9 for name, ms in times.items()}
            case = {"head_dim": dim, "seqlen": seqlen, "causal": causal, "p": p, "pass": pass_}
            rows.append({**case, **of_peers})
            print(*case.values(), {name: round(tflops) for name, tflops in of_peers.items()}, flush=True)
    return rows


def host_us(runs, rounds, calls=30):
    """(best, median, best with the GPU's work) in microseconds a call; all take turns, each within its context."""
    found = {name: [] for name in runs}
    for round_ in range(rounds + 2):
        for name, (context, run) in runs.items():
            torch.cuda.synchronize()
            with context():
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                returned = time.perf_counter()
            torch.cuda.synchronize()
            if round_ >= 2:
                found[name].append(((returned - start) / calls * 1e6, (time.perf_counter() - start) / calls * 1e6))
    return {
        name: (min(us for us, _ in times), statistics.median(us for us, _ in times), min(whole for _, whole in times))
        for name, times in found.items()
    }


def one_thread():
    """Without the thread that PyTorch gives each GPU's backward."""
    return torch.autograd.set_multithreading_enabled(False)


def host_peers(p):
    """Each with its own layout and what it needs around it, so that only calls are timed."""
    shape = (1, 128, 2, 64)

    def through_sdpa(q, k, v):
        return scaled_dot_product_attention(q, k, v, dropout_p=p)

    def turned(tensors):
        return [x.detach().transpose(1, 2).requires_grad_(x.requires_grad) for x in tensors]

    plain, learning = make(shape, requires_grad=False), make(shape)
    yield (
        "signflash",
        contextlib.nullcontext,
        lambda q, k, v: signflash.attention(q, k, v, dropout_p=p),
        plain,
        learning,
    )
    flash = functools.partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION)
    yield "FA2", flash, through_sdpa, turned(plain), turned(learning)
    cudnn = functools.partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION)
    yield "cuDNN", cudnn, through_sdpa, turned(plain), turned(learning)


def host_runs(p):
    runs = {}
    for peer, context, call, plain, learning in host_peers(p):
        with context():
            out = call(*learning)
        backward = functools.partial(torch.autograd.grad, out, learning, out, retain_graph=True)
        runs[peer, p, "forward"] = context, functools.partial(call, *plain)
        runs[peer, p, "recording"] = context, functools.partial(call, *learning)
        runs[peer, p, "backward"] = contextlib.nullcontext, backward
        runs[peer, p, "backward, one thread"] = one_thread, backward
    # Without PyTorch's engine: what is the engine's, and what is ours.
    q, k, v = make((1, 128, 2, 64), requires_grad=False)
    out, lse = signflash.attention(q, k, v, dropout_p=p, seed=1, return_lse=True)
    by_hand = functools.partial(signflash.attention_backward, out, q, k, v, out, lse, dropout_p=p, seed=1)
    runs["signflash, by hand", p, "backward"] = contextlib.nullcontext, by_hand
    return runs


def host(a):
    runs = {**host_runs(0.0), **host_runs(0.125)}
    rows = []
    for (peer, p, what), (best, median, whole) in host_us(runs, 10 if a.quick else 60).items():
        rows.append(dict(peer=peer, p=p, what=what, us=best, median_us=median, whole_us=whole))
        print(f"host: {peer:18s} p={p} {what:20s} {best:5.1f} us, median {median:5.1f}, whole {whole:5.1f}", flush=True)
    return rows


def peak(run):
    """Bytes that run holds at most beyond what is there before; with its result."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    return torch.cuda.max_memory_allocated() - before, kept


def memory_of(call, shape):
    """MiB beyond q, k, v and out, and in the backward beyond those, dout and the gradients."""
    tensors = make(shape)
    size = tensors[0].numel() * 2
    forward, out = peak(lambda: call(*tensors, 0.1, False))
    dout = torch.randn_like(out)
    backward, _ = peak(lambda: torch.autograd.grad(out, tensors, dout, retain_graph=True))
    return (forward - size) / 2**20, (backward - 3 * size) / 2**20


def memory(a):
    rows = []
    for dim in (64, 128, 256):
        for name in ("signflash", "FA2"):
            forward, backward = memory_of(PEERS[name], (2, 8192, 2048 // dim, dim))
            rows.append(dict(peer=name, head_dim=dim, forward_mib=forward, backward_mib=backward))
            print("memory:", rows[-1], flush=True)
    return rows


def table(columns, rows):
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if i == 0 else "---:" for i in range(len(columns))) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(str(x) for x in row) + " |" for row in rows])


def markdown(found):
    """The tables of python.md."""
    parts = [f"{found['gpu']}, PyTorch {found['torch']}"]
    if "host" in found:
        whats = ("forward", "recording", "backward", "backward, one thread")
        cells = {(r["peer"], r["p"], r["what"]): f"{r['us']:.0f} ({r['median_us']:.0f})" for r in found["host"]}
        keys = dict.fromkeys((r["peer"], r["p"]) for r in found["host"])
        rows = [(*key, *(cells.get((*key, what), "") for what in whats)) for key in keys]
        parts.append(table(("", "p", *whats), rows))
    if "memory" in found:
        rows = [
            (r["peer"], r["head_dim"], f"{r['forward_mib']:.1f}", f"{r['backward_mib']:.1f}") for r in found["memory"]
        ]
        parts.append(table(("", "head_dim", "forward", "backward"), rows))
    if "speed" in found:
        rows = [
            (r["head_dim"], r["seqlen"], "yes" if r["causal"] else "no", r["p"], r["pass"])
            + tuple(f"{r[name]:.0f}" if name in r else "" for name in PEERS)
            for r in found["speed"]
        ]
        parts.append(table(("head_dim", "seqlen", "causal", "p", "pass", *PEERS), rows))
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="host,memory,speed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    parser.add_argument("--markdown")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; benchmarks/cpu.py measures the CPU")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, signflash {signflash.__version__}")
    found = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__)
    parts = {"host": host, "memory": memory, "speed": speed}
    for name in a.only.split(","):
        found[name] = parts[name](a)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    if a.markdown:
        with open(a.markdown, "w", encoding="utf-8") as file:
            file.write(markdown(found))


if __name__ == "__main__":
    main()
