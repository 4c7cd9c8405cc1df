"""What the benchmarks of one GPU have in common: calls that take turns, of which machine a run is, and its page.

A call is queued up behind other work, so that kernels are timed and not the host.
"""

import argparse
import datetime
import json
import random
import statistics

# Cycles: longer than the host needs for a call, whatever else it does; a tenth of them was not long enough on every host.
HOLD_CYCLES = 3_000_000
WARM_UP = 3
# Of two results that are each rounded to bf16.
FARTHEST = 1e-2


def take_turns(calls, rounds):
    """Median milliseconds of each, in another order each round."""
    import torch

    order, times = random.Random(1), {name: [] for name in calls}
    for round_ in range(WARM_UP + rounds):
        for name in order.sample(list(calls), len(calls)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HOLD_CYCLES)
            start.record()
            calls[name]()
            end.record()
            end.synchronize()
            if round_ >= WARM_UP:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def timed(runs, rounds):
    """Of each pass the times of runs, which are (out, forward, backward)."""
    passes = (("forward", 1), ("backward", 2))
    return {pass_: take_turns({name: run[at] for name, run in runs.items()}, rounds) for pass_, at in passes}


def distance(got, expected):
    """How far one is from the other, relative to its size: a time of a wrong result means nothing."""
    import torch

    got, expected = got.float(), expected.float()
    return (torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)).item()


def about(commit):
    """The machine and the versions of a run."""
    import signflash
    import torch

    return {
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "signflash": commit or signflash.__version__,
    }


def parser(doc):
    """Of the arguments that all have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows; writes nothing")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of a row")
    parser.add_argument("--commit", help="what the package was built from")
    parser.add_argument("--render", action="store_true", help="only write the page, from the results there")
    return parser


def publish(args, measure, page, files, writes):
    """Measures, or reads what was measured, and prints the page, which is written if it is the whole one."""
    of_run, of_page = files
    if args.render:
        found = json.loads(of_run.read_text())
        whose, rows = found["about"], found["rows"]
    else:
        whose, rows = measure(args)
    text = page(whose, rows)
    print(text)
    if writes:
        of_page.write_text(text)


def keep(path, whose, rows):
    """Writes what was measured so far."""
    path.write_text(json.dumps({"about": whose, "rows": rows}, indent=1) + "\n")
