#!/usr/bin/env python3
"""What the sign bit saves: one `probs` tensor against probabilities and a dropout mask, in bytes of real files.

    pip install -r benchmarks/requirements.txt
    cargo build --release
    python3 benchmarks/bytes.py

For each length and dtype `signflash attend --probs` runs one head with dropout 0.1. Its probs are written alone, then
as probabilities with a dropout mask of one byte an entry, then of one bit; both come from `signflash dropout-mask`, and
are checked to say the same as the sign bits. The last lines say which tensors of seqlen x seqlen PyTorch keeps on the
CPU between forward and backward of the same problem, as its autograd counts them. Prints Markdown.
"""

import argparse
import pathlib
import subprocess
import tempfile

import numpy
import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
HEAD_DIM, P, SEED = 64, 0.1, 42
MIB = 1024.0 * 1024.0


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def sizes(signflash, folder, dtype, n):
    """Bytes of the three files."""
    torch.manual_seed(0)
    save_file({name: torch.randn(1, 1, n, HEAD_DIM).to(DTYPES[dtype]) for name in "qkv"}, folder / "in.safetensors")
    settings = ["--dropout-p", P, "--seed", SEED]
    run(signflash, "attend", folder / "in.safetensors", "-o", folder / "out.safetensors", "--probs", "-q", *settings)
    probs = load_file(folder / "out.safetensors")["probs"]
    keep = {}
    for suffix in ("npy", "bits"):
        keep_file = folder / f"keep.{suffix}"
        run(signflash, "dropout-mask", "--seqlen-q", n, "--seqlen-k", n, "-p", P, "--seed", SEED, "-q", "-o", keep_file)
    keep["u8"] = torch.from_numpy(numpy.load(folder / "keep.npy"))
    keep["bits"] = torch.from_numpy(numpy.fromfile(folder / "keep.bits", numpy.uint8))
    unpacked = numpy.unpackbits(keep["bits"].numpy(), bitorder="little", count=n * n).reshape(1, 1, n, n)
    dropped = torch.signbit(probs)
    same = torch.equal(dropped, ~keep["u8"]) and numpy.array_equal(unpacked == 0, dropped.numpy())
    assert same, "the dropout masks differ"
    files = [{"probs": probs}]
    files += [{"probabilities": probs.abs(), "keep": kept} for kept in keep.values()]
    result = []
    for file in files:
        save_file(file, folder / "file.safetensors")
        result.append((folder / "file.safetensors").stat().st_size)
    return result


def kept_by_torch(dtype, n):
    """(dtype, how many) of the tensors with n x n entries that autograd keeps."""
    q, k, v = (torch.randn(1, 1, n, HEAD_DIM, dtype=DTYPES[dtype], requires_grad=True) for _ in range(3))
    kept = {}

    def keep(x):
        if x.numel() == n * n:
            kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=P).sum()
    return sum(x.numel() * x.element_size() for x in kept.values()), len(kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signflash", type=pathlib.Path, default=ROOT / "target/release/signflash")
    parser.add_argument("--seqlen", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    args = parser.parse_args()
    print("| dtype | seqlen | probs, MiB | with a u8 mask, MiB | with a 1-bit mask, MiB | saved of u8 | saved of 1-bit |")
    print("|---|" + "---:|" * 6)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            for n in args.seqlen:
                probs, u8, bits = sizes(args.signflash, pathlib.Path(folder), dtype, n)
                line = [dtype, str(n), *(f"{size / MIB:.2f}" for size in (probs, u8, bits))]
                line += [f"{1 - probs / other:.1%}" for other in (u8, bits)]
                print("| " + " | ".join(line) + " |", flush=True)
    n = 1024
    for dtype in DTYPES:
        total, count = kept_by_torch(dtype, n)
        kept = f"keeps {count} tensors of {n} x {n}, {total / MIB:.2f} MiB"
        print(f"\nPyTorch {torch.__version__}, CPU, {dtype}, seqlen {n}: {kept}")


if __name__ == "__main__":
    main()
