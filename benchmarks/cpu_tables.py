"""The tables of cpu.py: benchmarks/cpu.md, and README's."""

BATCH, HEADS = 1, 8
DROPOUT = (0.0, 0.1)
SLOW_SECONDS = 1.5
SLOW_ROUNDS = 2

COLUMNS = [
    "pass", "dtype", "head_dim", "seqlen", "causal", "p", "ours ms", "torch ms", "torch / ours", "ours % of peak",
    "torch % of peak", "our dropout costs", "ours extra MiB", "torch extra MiB",
]  # fmt: skip


def milliseconds(ms):
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def ratio(x):
    return f"{x:.2f}" if x < 10 else f"{x:.1f}"


def mebibytes(mib):
    return "-" if mib is None else f"{mib:.1f}" if mib < 10 else f"{mib:.0f}"


def cells(row):
    overhead = f"{100 * row['dropout_overhead']:+.1f} %" if row["dropout_p"] else ""
    return [
        row["pass"], row["dtype"], str(row["head_dim"]), str(row["seqlen"]), "yes" if row["causal"] else "no",
        f"{row['dropout_p']:g}", milliseconds(row["ms"]), milliseconds(row["torch_ms"]), ratio(row["ratio"]),
        f"{row['percent_of_peak']:.0f}", f"{row['torch_percent_of_peak']:.0f}", overhead,
        mebibytes(row["extra_mib"]), mebibytes(row["torch_extra_mib"]),
    ]  # fmt: skip


def markdown(columns, rows, text_columns):
    rule = ["---" if n < text_columns else "---:" for n in range(len(columns))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *rows])


def heading(about):
    peaks = ", ".join(f"{dtype} {gflops:.0f}" for dtype, gflops in about["peak_gflops"].items())
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['isa']}. "
        f"Multiply-adds in registers, GFLOP/s: {peaks}. PyTorch {about['torch']}. "
        f"Signflash {about['commit']}. {about['date']}."
    )


def report(about, rows):
    disturbed = f"{about['repeated_rounds']} rounds were repeated because the machine was disturbed"
    if about["disturbed_rounds"]:
        disturbed += f"; {about['disturbed_rounds']} were kept although it was"
    return f"""# CPU: signflash next to PyTorch

{heading(about)}

Made by `{about['command']}`: batch {BATCH}, heads {HEADS}. Times are medians of rounds in which ours
(`signflash bench`) and PyTorch's (`scaled_dot_product_attention`) take turns: {about['rounds']} rounds,
{SLOW_ROUNDS} where a call takes PyTorch longer than {SLOW_SECONDS} s. {disturbed[0].upper() + disturbed[1:]}.

`% of peak` counts 4 * batch * heads * seqlen^2 * head_dim operations for the forward, half of them if causal, 2.5 times
for the backward, against the multiply-add rate above of the dtype (f16 is computed in f32). `our dropout costs` is the
time at p = {DROPOUT[1]:g} against p = 0. Extra memory is what a call takes beyond operands and results: ours as its
allocator counts it, PyTorch's as the growth of its process's peak resident memory, with what its forward keeps for the
backward. On the CPU PyTorch has no fused kernel with dropout: it stores the score matrix.

{markdown(COLUMNS, [cells(row) for row in rows], 6)}
"""


def selection(about, rows):
    """The few rows that README shows: the longest sequence, without causality, both dropouts on one line."""
    seqlen = max(row["seqlen"] for row in rows)
    chosen = {
        tuple(row[name] for name in ("pass", "dtype", "head_dim", "dropout_p")): row
        for row in rows
        if row["seqlen"] == seqlen and not row["causal"]
    }
    lines = []
    for pass_, dtype, head_dim in dict.fromkeys(key[:3] for key in chosen):
        line = [pass_, dtype, str(head_dim)]
        for p in DROPOUT:
            row = chosen[pass_, dtype, head_dim, p]
            line += [milliseconds(row["ms"]), milliseconds(row["torch_ms"]), ratio(row["ratio"])]
        lines.append(line + [mebibytes(row["extra_mib"]), mebibytes(row["torch_extra_mib"])])
    columns = ["pass", "dtype", "head_dim"]
    columns += [f"p = {p:g}: {name}" for p in DROPOUT for name in ("ours ms", "torch ms", "ratio")]
    columns += ["ours extra MiB", "torch extra MiB"]
    return f"""{heading(about)}
Batch {BATCH}, {HEADS} heads, sequences of {seqlen}, not causal. Ratio is PyTorch's time over ours; extra memory, beyond
operands and results, is that at p = {DROPOUT[1]:g}. All rows:
[benchmarks/cpu.md](benchmarks/cpu.md).

{markdown(columns, lines, 3)}"""
