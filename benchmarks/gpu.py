#!/usr/bin/env python3
"""Signflash next to PyTorch's FlashAttention-2 and cuDNN on one NVIDIA GPU, forward and backward.

    cargo build --release
    python3 benchmarks/gpu.py --signflash target/release/signflash     about 6 minutes; writes gpu.json, then
                                                                       what --render writes
    ... --quick                                                        fewer lengths; prints, writes nothing
    python3 benchmarks/gpu.py --render                                 without a GPU, from gpu.json: gpu.md,
                                                                       README's tables, pictures in docs/images

Long problems have 16384 tokens in all and heads * head_dim = 2048; short ones batch 4 and 16 heads. For
each problem PyTorch's kernels and ours take turns, all in one run; a time is the median of 20
measurements by CUDA events, after 5 calls that do not count. A measurement is one call, or, of a short
problem, 20 back to back. Ours is `signflash bench --device cuda --json`, the binary that users run, which
compares a few rows with the f64 formulas before it times them. PyTorch's is scaled_dot_product_attention
with one backend allowed, the forward under no_grad, the backward by autograd.grad. cuDNN takes dropout
only for p = k / 16 and is shown at 0.125 where ours and FlashAttention-2 are at 0.1.

Operations are counted as the field does: 4 * batch * heads * seqlen^2 * head_dim for the forward, half of
it if causal, 2.5 times for the backward.
"""

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True  # Else importing chart leaves a folder in the checkout.
import chart
from gpu_problems import (
    CUDNN_DROPOUT,
    DETERMINISTIC_LENGTHS,
    DROPOUT,
    FA3_AND_CUDNN,
    HOLD_CYCLES,
    README_LENGTH,
    REPS,
    SHORT_BATCH,
    SHORT_CALLS,
    SHORT_HEADS,
    TOKENS,
    WARM_UP,
    WIDTH,
    Cell,
    plan,
)
from pages import fill_readme

ROOT = pathlib.Path(__file__).resolve().parent.parent


def median_ms(torch, call, calls):
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPS)]
    for start, end in pairs:
        if calls > 1:
            # The calls queue up behind this, so that the kernels are timed and not PyTorch's host code.
            torch.cuda._sleep(HOLD_CYCLES)
        start.record()
        for _ in range(calls):
            call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in pairs)[REPS // 2] / calls


@functools.cache
def torch_ms(backend, cell, direction):
    """Of one of PyTorch's kernels; None where it does not take the case. Some cells are asked for twice."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    shape = (cell.batch, cell.heads, cell.seqlen, cell.head_dim)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[cell.dtype]
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention

    def forward():
        return attention(q, k, v, dropout_p=cell.dropout_p, is_causal=cell.causal)

    try:
        with sdpa_kernel([getattr(SDPBackend, backend)]):
            if direction == "fwd":
                with torch.no_grad():
                    return median_ms(torch, forward, cell.calls)
            for x in (q, k, v):
                x.requires_grad_(True)
            out = forward()
        dout = torch.randn_like(out)
        backward = lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        return median_ms(torch, backward, cell.calls)
    except RuntimeError as error:
        print(f"# {backend} {direction} {cell}: {str(error).splitlines()[0][:120]}")
        return None


def our_rows(binary, cell, passes, *flags):
    command = [binary, "bench", "--device", "cuda", "--json", "--quiet", "--dtype", cell.dtype]
    command += ["--pass", ",".join(passes), "--batch", cell.batch, "--heads", cell.heads, "--reps", REPS]
    command += ["--head-dim", cell.head_dim, "--seqlen", cell.seqlen, "--dropout-p", cell.dropout_p]
    command += ["--causal", "true" if cell.causal else "false", *flags]
    if cell.calls > 1:
        command += ["--calls", cell.calls]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return {row["pass"]: row for row in map(json.loads, done.stdout.splitlines())}


def measured_rows(binary, cell, passes):
    """FlashAttention-2, ours, cuDNN, in turn: a row for each pass, and the commit of ours."""
    cudnn_p = CUDNN_DROPOUT if cell.dropout_p else 0.0
    cudnn_cell = dataclasses.replace(cell, dropout_p=cudnn_p)
    fa2 = {direction: torch_ms("FLASH_ATTENTION", cell, direction) for direction in passes}
    ours = our_rows(binary, cell, passes)
    cudnn = {direction: torch_ms("CUDNN_ATTENTION", cudnn_cell, direction) for direction in passes}
    rows = []
    for direction in passes:
        row = {"pass": direction, **dataclasses.asdict(cell), "cudnn_dropout_p": cudnn_p}
        row["ours_ms"], row["ours_first_ms"] = ours[direction]["ms"], ours[direction]["first_ms"]
        for name, ms in (("ours", row["ours_ms"]), ("fa2", fa2[direction]), ("cudnn", cudnn[direction])):
            row[f"{name}_tflops"] = cell.tflops(direction, ms)
        if direction == "bwd" and cell.seqlen in DETERMINISTIC_LENGTHS and cell.dropout_p != CUDNN_DROPOUT:
            deterministic = our_rows(binary, cell, ("bwd",), "--deterministic")["bwd"]["ms"]
            row["ours_deterministic_tflops"] = cell.tflops("bwd", deterministic)
        rows.append(row)
    return rows, ours[passes[0]]["commit"]


def line(row):
    shown = lambda value: f"{value:.3g}" if isinstance(value, float) else value
    return " ".join(f"{key}={shown(value)}" for key, value in row.items())


def measure(args):
    import torch

    gpu = torch.cuda.get_device_name()
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "gpu": gpu}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    about["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0].strip()
    rows = []
    for cell, passes in plan(args.quick):
        new, commit = measured_rows(args.signflash, cell, passes)
        about["commit"] = args.commit or commit
        rows += new
        print(*map(line, new), sep="\n", flush=True)
        if not args.quick:
            save(args.json, about, rows)
    return about, rows


def save(path, about, rows):
    """What there is so far: a run that is stopped loses nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    partial.replace(path)


def complete(row):
    """Older results lack some columns."""
    return {"dtype": "bf16", "calls": 1, **row}


def number(x, digits=0):
    return "-" if x is None else f"{x:.{digits}f}"


def ratio(ours, theirs):
    return number(ours / theirs if ours and theirs else None, 2)


def better(row):
    """The rate of the faster of FlashAttention-2 and cuDNN."""
    return max((rate for rate in (row["fa2_tflops"], row["cudnn_tflops"]) if rate), default=None)


def fa3_tflops(row):
    """FlashAttention-3 is not run: cuDNN's rate of this run, times what it was of cuDNN's when both were."""
    known = FA3_AND_CUDNN[row["pass"]].get((row["head_dim"], row["seqlen"], row["causal"]))
    if not known or row["dtype"] != "bf16" or row["calls"] > 1 or not row["cudnn_tflops"]:
        return None
    fa3, cudnn = known
    return row["cudnn_tflops"] * fa3 / cudnn


def cudnn_title(p):
    return f"p = {p:g}: cuDNN" + (f" ({CUDNN_DROPOUT})" if p not in (0, CUDNN_DROPOUT) else "")


def peer_titles(p, with_fa3):
    titles = [f"p = {p:g}: ours", f"p = {p:g}: FA2", cudnn_title(p)]
    if p:
        return titles + [f"p = {p:g}: ours / better", f"p = {p:g}: ours / ours at p = 0"]
    return titles + ["p = 0: FA3, estimated"] * with_fa3


def peer_cells(row, undropped, with_fa3):
    cells = [number(row[f"{name}_tflops"]) for name in ("ours", "fa2", "cudnn")]
    if row["dropout_p"]:
        ours = row["ours_tflops"]
        return cells + [ratio(ours, better(row)), ratio(ours, undropped and undropped["ours_tflops"])]
    return cells + [number(fa3_tflops(row))] * with_fa3


def ordered_titles(p, with_fa3):
    return [f"p = {p:g}: any order", f"p = {p:g}: one order", f"p = {p:g}: ratio"]


def ordered_cells(row, undropped, with_fa3):
    ours, ordered = row["ours_tflops"], row["ours_deterministic_tflops"]
    return [number(ours), number(ordered), ratio(ordered, ours)]


def both_titles(p, with_fa3):
    return [f"p = {p:g}: ours, ms", f"p = {p:g}: FA2, ms", f"p = {p:g}: times as fast"]


def both_cells(row, undropped, with_fa3):
    return [number(row["ours_ms"], 2), number(row["fa2_ms"], 2), ratio(row["fa2_ms"], row["ours_ms"])]


def table(rows, dropouts, titles=peer_titles, cells=peer_cells):
    """A line for each problem, the given probabilities side by side."""
    with_fa3 = any(fa3_tflops(row) for row in rows)
    columns = [title for p in dropouts for title in titles(p, with_fa3)]
    lines = ["| " + " | ".join(["head_dim", "seqlen", "causal", *columns]) + " |"]
    lines.append("|" + " --- |" * 3 + " ---: |" * len(columns))
    key = lambda row: (-row["head_dim"], row["causal"], row["seqlen"])
    for (_, causal, seqlen), group in itertools.groupby(sorted(rows, key=key), key=key):
        at = {row["dropout_p"]: row for row in group}
        head_dim = next(iter(at.values()))["head_dim"]
        shown = [str(head_dim), str(seqlen), "yes" if causal else "no"]
        for p in dropouts:
            missing = ["-"] * len(titles(p, with_fa3))
            shown += cells(at[p], at.get(0.0), with_fa3) if p in at else missing
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def together(rows):
    """Milliseconds of forward and backward, of the long bf16 problems that have both."""
    found = {}
    for row in rows:
        if row["dtype"] == "bf16" and row["calls"] == 1:
            key = tuple(row[name] for name in ("head_dim", "seqlen", "causal", "dropout_p"))
            found.setdefault(key, {})[row["pass"]] = row
    both = []
    for passes in found.values():
        if len(passes) == 2 and all(row["fa2_tflops"] for row in passes.values()):
            cell = Cell(**{field.name: passes["fwd"][field.name] for field in dataclasses.fields(Cell)})
            ms = lambda name: sum(cell.tflops(d, 1) / passes[d][f"{name}_tflops"] for d in passes)
            both.append({**passes["bwd"], "ours_ms": ms("ours"), "fa2_ms": ms("fa2")})
    return both


def select(rows, direction="fwd", dtype="bf16", short=False, seqlen=None):
    wanted = (direction, dtype, short)
    found = [row for row in rows if (row["pass"], row["dtype"], row["calls"] > 1) == wanted]
    return [row for row in found if seqlen in (None, row["seqlen"])]


def heading(about):
    made_with = f"{about['gpu']}, driver {about['driver']}, PyTorch {about['torch']}"
    return f"""{made_with}. Signflash {about['commit'][:12]}. {about['date']}.
{TOKENS} tokens in all, heads x head_dim = {WIDTH}. TFLOP/s."""


PEERS_NOTE = f"""FA2 and cuDNN are PyTorch's; "better" is the faster of the two, cuDNN at
p = {CUDNN_DROPOUT} where ours is at {DROPOUT}. FA3 (FlashAttention-3) was not run: its estimate is this
run's cuDNN times the ratio of the two in an earlier run on an H200."""
FORWARD_NOTE = f"Forward, bf16. {PEERS_NOTE}"
BACKWARD_NOTE = "Backward, bf16. Columns as above."
EIGHTH_NOTE = f"Forward, bf16, at p = {CUDNN_DROPOUT}, which cuDNN takes as well."
BACKWARD_EIGHTH_NOTE = f"Backward, bf16, at p = {CUDNN_DROPOUT}."
ORDERED_NOTE = """Backward, bf16, ours: dq added up in any order, or in one order, which gives the same bits in
every run (`--deterministic`)."""
BOTH_NOTE = "Forward and backward together, bf16."
F16_NOTE = "Forward, f16."
SHORT_NOTE = f"""Forward, bf16, short problems: batch {SHORT_BATCH}, {SHORT_HEADS} heads; {SHORT_CALLS} calls
back to back are timed together."""


def sections(rows, seqlen=None):
    """Notes and tables of the rows that there are; of one length, those of README."""
    long, backward = select(rows, seqlen=seqlen), select(rows, "bwd", seqlen=seqlen)
    dropped = (0.0, DROPOUT)
    with_peers = lambda rows: table(rows, dropped)
    eighth = lambda rows: table(rows, (CUDNN_DROPOUT,))
    at_eighth = lambda rows: rows if any(row["dropout_p"] == CUDNN_DROPOUT for row in rows) else []
    ordered = [row for row in backward if row.get("ours_deterministic_tflops")]
    parts = [(FORWARD_NOTE, long, with_peers), (BACKWARD_NOTE, backward, with_peers)]
    if seqlen is None:
        parts.append((BOTH_NOTE, together(rows), lambda rows: table(rows, dropped, both_titles, both_cells)))
        parts.append((EIGHTH_NOTE, at_eighth(long), eighth))
        parts.append((BACKWARD_EIGHTH_NOTE, at_eighth(backward), eighth))
        parts.append((ORDERED_NOTE, ordered, lambda rows: table(rows, dropped, ordered_titles, ordered_cells)))
        parts.append((F16_NOTE, select(rows, dtype="f16"), with_peers))
        parts.append((SHORT_NOTE, select(rows, short=True), with_peers))
    return "\n\n".join(f"{note}\n\n{write(rows)}" for note, rows, write in parts if rows)


def report(about, rows):
    return f"""# Ours next to FlashAttention-2 and cuDNN on a GPU

{heading(about)}
Made by `python3 benchmarks/gpu.py --signflash target/release/signflash`, which says how.

{sections(rows)}
"""


def render(about, rows):
    (ROOT / "benchmarks" / "gpu.md").write_text(report(about, rows))
    all_rows = "All rows: [benchmarks/gpu.md](benchmarks/gpu.md)."
    fill_readme("gpu", f"{heading(about)}\n{all_rows}\n\n{sections(rows, README_LENGTH)}")
    chart.write(about, rows)


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--signflash", help="the binary")
    parser.add_argument("--commit", help="what it was built from, if it does not know")
    parser.add_argument("--quick", action="store_true", help="two lengths; writes nothing")
    parser.add_argument("--json", type=pathlib.Path, default=chart.JSON, help="where results go")
    parser.add_argument("--render", action="store_true", help="only write the pages, from the results there")
    args = parser.parse_args()
    if args.render:
        results = json.loads(args.json.read_text())
        render(results["about"], list(map(complete, results["rows"])))
        return
    if not args.signflash:
        parser.error("--signflash is needed to measure")
    about, rows = measure(args)
    print(heading(about), sections(rows), sep="\n\n")
    if not args.quick:
        render(about, rows)


if __name__ == "__main__":
    main()
