"""Runs cases of signflash.distributed on gloo processes, and prints a line of JSON for each: {"ranks", "name", "error"}.

    python3 distributed_run.py RANKS[,RANKS...] CASES [FAMILY] [mapped]

``mapped``: ranks copy from each other's memory, as GPUs of one host do, here out of files.

The processes are forked from this one, which has imported everything and computed nothing: they start at once.
"""

import datetime
import json
import os
import sys
import tempfile
import traceback

import distributed_cases as cases
import distributed_families as families
import distributed_mapped
import torch
import torch.distributed as dist


def run(rank, ranks, count, family, path):
    torch.set_num_threads(1)
    store = dist.FileStore(path, ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=60))
    for name, check in families.named(family, ranks, count):
        error = None
        try:
            check(rank, ranks)
        except Exception:  # a failure of one case is told, and the next one runs
            error = traceback.format_exc()
            print(f"{name}, rank {rank} of {ranks}: {error}", file=sys.stderr, flush=True)  # others may now wait for it
        every = [None] * ranks
        dist.all_gather_object(every, error)
        if rank == 0:
            told = [f"rank {r}: {e}" for r, e in enumerate(every) if e]
            print(json.dumps(dict(ranks=ranks, name=name, error="\n".join(told))), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main():
    counts, count = [int(x) for x in sys.argv[1].split(",")], int(sys.argv[2])
    family = sys.argv[3] if len(sys.argv) > 3 else "all"
    failed, mapped = False, "mapped" in sys.argv[4:]
    for ranks in counts:
        path = os.path.join(tempfile.mkdtemp(), "store")
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    if mapped:
                        distributed_mapped.install(os.path.dirname(path))
                    run(rank, ranks, count, family, path)
                    assert not mapped or distributed_mapped.was_used(), "gloo sent something"
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            children.append(child)
        failed |= any([os.waitpid(child, 0)[1] != 0 for child in children])
    sys.exit(failed)


assert cases is not None
if __name__ == "__main__":
    main()
