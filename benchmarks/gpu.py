#!/usr/bin/env python3
"""Signflash next to PyTorch's FlashAttention-2 and cuDNN on one NVIDIA GPU, forward and backward.

    cargo build --release
    python3 benchmarks/gpu.py --signflash target/release/signflash     about 2 minutes; writes benchmarks/gpu.md, gpu.json,
                                                                       README's table
    ... --quick                                                        fewer lengths; prints, writes nothing

bf16, 16384 tokens in all, heads * head_dim = 2048. For each shape PyTorch's kernels and ours take turns, all in one run;
a time is the median of 20 calls after 5, by CUDA events. Ours is `signflash bench --device cuda --json`, the binary that
users run, which compares a few rows with the f64 formulas before it times them. PyTorch's is
scaled_dot_product_attention with one backend allowed, the forward under no_grad, the backward by autograd.grad. cuDNN
takes dropout only for p = k / 16 and is shown at 0.125 where ours and FlashAttention-2 are at 0.1.

Operations are counted as the field does: 4 * batch * heads * seqlen^2 * head_dim for the forward, half of it if causal,
2.5 times for the backward.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENS, WIDTH = 16384, 2048
WARM_UP, REPS = 5, 20
DROPOUT = 0.1
CUDNN_DROPOUT = 0.125


def flops(head_dim, seqlen, causal, direction):
    forward = 4.0 * TOKENS * WIDTH * seqlen / (2 if causal else 1)
    return forward * (2.5 if direction == "bwd" else 1.0)


def median_ms(torch, call):
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPS)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)[REPS // 2]


def torch_times(torch, backend, head_dim, seqlen, causal, p):
    """Forward and backward of one of PyTorch's kernels; None where it does not take the case."""
    from torch.nn.attention import sdpa_kernel

    torch.manual_seed(0)
    shape = (TOKENS // seqlen, WIDTH // head_dim, seqlen, head_dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def forward():
        with sdpa_kernel([backend]):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=causal)

    try:
        with torch.no_grad():
            times = {"fwd": median_ms(torch, forward)}
        for x in (q, k, v):
            x.requires_grad_(True)
        out = forward()
        dout = torch.randn_like(out)
        times["bwd"] = median_ms(torch, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        return times
    except RuntimeError as error:
        print(f"# {backend} head_dim {head_dim} seqlen {seqlen} causal {causal} p {p}: {str(error).splitlines()[0][:120]}")
        return None


def our_rows(binary, head_dim, seqlen, causal, p):
    command = [binary, "bench", "--device", "cuda", "--json", "--quiet", "--dtype", "bf16", "--pass", "fwd,bwd"]
    command += ["--batch", TOKENS // seqlen, "--heads", WIDTH // head_dim, "--head-dim", head_dim, "--seqlen", seqlen]
    command += ["--causal", "true" if causal else "false", "--dropout-p", p, "--reps", REPS]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return {row["pass"]: row for row in map(json.loads, done.stdout.splitlines())}


def measure(args):
    import torch
    from torch.nn.attention import SDPBackend

    lengths = (2048, 8192) if args.quick else (2048, 4096, 8192, 16384)
    rows = []
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    about["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    for head_dim, seqlen, causal in itertools.product((128, 64), lengths, (False, True)):
        for p in (0.0, DROPOUT):
            fa2 = torch_times(torch, SDPBackend.FLASH_ATTENTION, head_dim, seqlen, causal, p)
            ours = our_rows(args.signflash, head_dim, seqlen, causal, p)
            cudnn_p = CUDNN_DROPOUT if p else 0.0
            cudnn = torch_times(torch, SDPBackend.CUDNN_ATTENTION, head_dim, seqlen, causal, cudnn_p)
            about["commit"] = args.commit or ours["fwd"]["commit"]
            for direction in ("fwd", "bwd"):
                rate = lambda ms: flops(head_dim, seqlen, causal, direction) / ms / 1e9
                row = {"pass": direction, "head_dim": head_dim, "seqlen": seqlen, "causal": causal, "dropout_p": p}
                row["ours_ms"], row["ours_first_ms"] = ours[direction]["ms"], ours[direction]["first_ms"]
                row["ours_tflops"] = rate(row["ours_ms"])
                for name, times in (("fa2", fa2), ("cudnn", cudnn)):
                    row[f"{name}_tflops"] = rate(times[direction]) if times else None
                row["ratio"] = row["ours_tflops"] / row["fa2_tflops"] if fa2 else None
                rows.append(row)
                print(" ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()), flush=True)
    return about, rows


def number(x, digits=0):
    return "-" if x is None else f"{x:.{digits}f}"


def table(rows):
    """A line for each shape and pass, without and with dropout side by side."""
    columns = ["pass", "head_dim", "seqlen", "causal"]
    for p in ("p = 0", f"p = {DROPOUT}"):
        columns += [f"{p}: ours", f"{p}: FA2", f"{p}: ratio", f"{p}: cuDNN" + (" (0.125)" if p != "p = 0" else "")]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * 4 + " ---: |" * 8]
    key = lambda row: (row["pass"] != "fwd", -row["head_dim"], row["causal"], row["seqlen"])
    for _, group in itertools.groupby(sorted(rows, key=lambda row: (key(row), row["dropout_p"])), key=key):
        group = list(group)
        first = group[0]
        cells = [first["pass"], str(first["head_dim"]), str(first["seqlen"]), "yes" if first["causal"] else "no"]
        for row in group:
            cells += [number(row["ours_tflops"]), number(row["fa2_tflops"]), number(row["ratio"], 2), number(row["cudnn_tflops"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(about):
    return (
        f"{about['gpu']}, driver {about['driver']}, PyTorch {about['torch']}. Signflash {about['commit'][:12]}. {about['date']}.\n"
        f"bf16, {TOKENS} tokens in all, heads x head_dim = {WIDTH}. TFLOP/s; ratio is ours over FlashAttention-2 (FA2)."
    )


def report(about, rows):
    return f"""# Ours next to FlashAttention-2 and cuDNN on a GPU

{heading(about)}
Made by `python3 benchmarks/gpu.py --signflash target/release/signflash`, which says how.

{table(rows)}
"""


def fill_readme(text):
    path = ROOT / "README.md"
    begin, end = "<!-- gpu:begin -->", "<!-- gpu:end -->"
    readme = path.read_text()
    head, rest = readme.split(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def render(about, rows):
    (ROOT / "benchmarks" / "gpu.md").write_text(report(about, rows))
    chosen = [row for row in rows if row["seqlen"] == 8192]
    fill_readme(f"{heading(about)}\nAll rows: [benchmarks/gpu.md](benchmarks/gpu.md).\n\n{table(chosen)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signflash", help="the binary")
    parser.add_argument("--commit", help="what it was built from, if it does not know")
    parser.add_argument("--quick", action="store_true", help="two lengths; writes nothing")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "benchmarks" / "gpu.json", help="where results go")
    parser.add_argument("--render", action="store_true", help="only write the pages, from the results that are there")
    args = parser.parse_args()
    if args.render:
        results = json.loads(args.json.read_text())
        render(results["about"], results["rows"])
        return
    if not args.signflash:
        parser.error("--signflash is needed to measure")
    about, rows = measure(args)
    print(heading(about), table(rows), sep="\n\n")
    if not args.quick:
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        render(about, rows)


if __name__ == "__main__":
    main()
