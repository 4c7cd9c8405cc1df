"""Which model types of Transformers train with attn_implementation="signflash".

    python tests/python/coverage_models list
    python tests/python/coverage_models run RESULTS.jsonl [--jobs N] [--timeout SECONDS] [PACKAGE:CONFIGURATION...]
    python tests/python/coverage_models summary RESULTS.jsonl
    python tests/python/coverage_models page RESULTS.jsonl      # writes the tables of docs/transformers.md

`run` goes on where RESULTS.jsonl ends. Everything is made at random: nothing is downloaded. SIGNFLASH_RUN says what the page
is to say about the run: a commit, a machine.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def configurations():
    """The keys of configurations with a dropout of their own, then of those with one inside them."""
    from configurations import all_classes, dropouts

    own, inner = [], []
    for key, kind in all_classes().items():
        try:
            names = dropouts(kind())
        except Exception:
            continue  # has no default configuration
        if names:
            (own if any("." not in name for name in names) else inner).append(key)
    return own + inner


def work(keys):
    """Examines these; one line before and one behind each."""
    import torch
    import transformers
    from configurations import all_classes
    from examine import WATCH, examine, short

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    WATCH.install()
    versions = f"Transformers {transformers.__version__}, PyTorch {torch.__version__}"
    if "SIGNFLASH_RUN" in os.environ:
        versions = f"{os.environ['SIGNFLASH_RUN']}, {versions}"
    kinds = all_classes(dict.fromkeys(key.split(":")[0] for key in keys))
    for key in keys:
        print("START", key, flush=True)
        try:
            result = examine(key, kinds[key])
        except Exception as error:
            result = dict(key=key, verdict="not run", why=f"examining it: {short(error)}")
        print("RESULT", json.dumps(dict(result, versions=versions)), flush=True)


class Run:
    """Keys, worked off by some processes at a time; a process that takes too long or dies costs one key."""

    def __init__(self, out, keys, timeout):
        self.out, self.timeout, self.lock = out, timeout, threading.Lock()
        done = {json.loads(line)["key"] for line in open(out)} if os.path.exists(out) else set()
        self.todo = [key for key in keys if key not in done]
        self.total, self.began = len(self.todo), time.time()

    def take(self):
        with self.lock:
            taken, self.todo = self.todo[:16], self.todo[16:]
            return taken

    def note(self, result):
        with self.lock, open(self.out, "a") as file:
            file.write(json.dumps(result) + "\n")

    def thread(self):
        while keys := self.take():
            while keys:
                keys = self.process(keys)
            left = len(self.todo)
            print(f"{self.total - left} of {self.total} in {time.time() - self.began:.0f} s", flush=True)

    def process(self, keys):
        """Works off keys in a process of its own; returns those that are left when it ends."""
        command = [sys.executable, str(Path(__file__).parent), "work", *keys]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        clock = None
        for line in process.stdout:
            if clock is not None:
                clock.cancel()
            if line.startswith("RESULT "):
                result = json.loads(line[7:])
                self.note(result)
                keys = [key for key in keys if key != result["key"]]
            clock = threading.Timer(self.timeout, process.kill)
            clock.start()
        if clock is not None:
            clock.cancel()
        if process.wait() != 0 and keys:
            self.note(dict(key=keys[0], verdict="not run", why="took too long or died"))
            keys = keys[1:]
        return keys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["list", "run", "work", "summary", "page"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=180.0)
    given = parser.parse_intermixed_args()
    if given.mode == "list":
        print("\n".join(configurations()))
    elif given.mode == "work":
        work(given.names)
    elif given.mode == "run":
        run = Run(given.names[0], given.names[1:] or configurations(), given.timeout)
        threads = [threading.Thread(target=run.thread) for _ in range(given.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        import page

        page.write(given.names[0]) if given.mode == "page" else page.summary(given.names[0])


if __name__ == "__main__":
    main()
