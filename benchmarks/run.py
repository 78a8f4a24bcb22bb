"""Time filter, statistics and tokenize against other RLDS readers; write benchmarks/results/NAME.{md,json}.

    python -m benchmarks.run                                     # needs only this project
    python -m benchmarks.run --baseline-python TF/bin/python     # also tf.data, TFDS
    python -m benchmarks.run --baseline-python TF/bin/python --openvla CHECKOUT --dlimp CHECKOUT

The data (1.6 GB of each image size, see make_shards.py) is made first if it is missing. The contenders then take
turns, round after round, each in its own process; the tables show medians. Nothing else should run at the same time.
See README.md for the setup of the peers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import make_shards, measure, report
from benchmarks.contenders import Bench, Contender, aims, contenders
from benchmarks.report import Row

HERE = Path(__file__).parent
ALWAYS = ("raw read", "filter", "statistics")  # the reference of the ratios
TF_PACKAGES = ("tensorflow-cpu", "tensorflow", "tensorflow-datasets", "numpy", "protobuf")


def measure_all(bench: Bench, found: Sequence[Contender], rounds: int, cold_rounds: int) -> None:
    """Let the contenders take turns, first warm, then cold; fills `bench.runs`."""
    bench.work.mkdir(parents=True, exist_ok=True)
    log = bench.work / "log.txt"
    for kind, count in (("warm", rounds), ("cold", cold_rounds)):
        for number in range(count):
            for contender in found:
                if contender.slow and (kind == "cold" or number > 1):
                    continue
                if sys.stderr.isatty():
                    print(
                        f"\r{bench.source.name}: {kind} {number + 1}/{count} {contender.name:40}",
                        end="",
                        file=sys.stderr,
                    )
                done = measure.run(contender.command(bench), bench.shards, cold=kind == "cold", log=log)
                bench.runs.setdefault(contender.name, {"warm": [], "cold": []})[kind].append(done)
    if sys.stderr.isatty():
        print("\r" + " " * 90, end="\r", file=sys.stderr)


def rows(bench: Bench, found: Sequence[Contender]) -> list[Row]:
    """The measurements as rows of the table."""
    table = []
    for contender in found:
        runs = bench.runs[contender.name]
        share = min(1.0, runs["warm"][0].result["steps"] / bench.steps) if contender.partial else 1.0
        table.append(Row(contender.name, contender.note, share, runs["warm"], runs["cold"]))
    return table


def agreement(bench: Bench) -> str:
    """The difference between our statistics and OpenVLA's, as a sentence; "" if either is missing."""
    ours, theirs = (bench.runs.get(name) for name in ("statistics", "OpenVLA statistics"))
    if not ours or not theirs:
        return ""
    a, b = ours["warm"][0].result, theirs["warm"][0].result
    keys = ("mean", "std", "min", "max", "q01", "q99")
    worst = max(abs(x - y) for key in keys for x, y in zip(a["action"][key], b[key], strict=True))
    return f"Largest difference between our statistics and OpenVLA's, over {', '.join(keys)}: {worst:.1e}.\n"


def one_size(args: argparse.Namespace, size: int) -> tuple[str, dict[str, object]]:
    """Measure on the data set of one image size; return its section of the report, and the raw numbers."""
    source = make_shards.find_base(args.shared, args.data / "base")
    kind = "varied from real Bridge episodes" if args.shared in source.parents else "varied from demo episodes"
    name = f"{'bridge' if args.shared in source.parents else 'drawn'}-{size}px-{args.gb:g}gb"
    whole = make_shards.make_dataset(args.data / name, source, gb=args.gb, shards=args.shards, size=size)
    quarter = max(1, args.shards // 4)
    part = make_shards.link_part(whole, args.data / f"{name}-first-{quarter}", source, quarter)
    bench, small = (Bench(folder, args.data / "work" / folder.name, args) for folder in (whole, part))
    found = [c for c in contenders(args, size) if c.name in ALWAYS or re.search(args.only, c.name)]
    measure_all(bench, found, args.rounds, args.cold_rounds)
    ours = [c for c in found if c.name.startswith(("filter", "tokenize")) and not c.slow]
    measure_all(small, ours, args.rounds, 0)

    for measured in (bench, small):
        measured.clean()

    table = rows(bench, found)
    title = f"{size} px: {bench.num_bytes / 1e9:.2f} GB, {len(bench.shards)} shards, {bench.steps:,} steps, {kind}"
    lines = report.cells(table, bench.num_bytes, bench.steps)
    goals = [aim.cells() for aim in aims(table, size)]
    few = {row.name: row for row in rows(small, ours)}
    growth = [[row.name, *report.growth(few[row.name], row)] for row in table if row.name in few]
    header = ["contender", *report.growth_header(small.num_bytes, bench.num_bytes)]
    sections = [(title, report.HEADER, lines), ("Aims", report.AIMS, goals), ("Two sizes", header, growth)]
    for heading, header, body in sections:
        report.show(heading, header, body)
    text = "\n\n".join(f"### {heading}\n\n{report.markdown(header, body)}" for heading, header, body in sections)
    raw = {"bytes": bench.num_bytes, "steps": bench.steps, "whole": asdict_runs(bench), "part": asdict_runs(small)}
    return f"{text}\n\n{agreement(bench)}", raw


def asdict_runs(bench: Bench) -> dict[str, object]:
    return {
        name: {kind: [dataclasses.asdict(m) for m in runs] for kind, runs in kinds.items()}
        for name, kinds in bench.runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="latest", help="name of the files in benchmarks/results (%(default)s)")
    parser.add_argument("--gb", type=float, default=1.6, help="size of the data (%(default)s)")
    parser.add_argument("--shards", type=int, default=16, help="number of shards (%(default)s)")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[256, 64], help="image sizes, one data set each (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="warm rounds (%(default)s)")
    parser.add_argument("--cold-rounds", type=int, default=3, help="cold rounds (%(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="steps after which decoding peers stop (%(default)s)")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder for data and output (%(default)s)")
    parser.add_argument("--shared", type=Path, default=make_shards.shared_folder(), help="folder with data/rlds")
    parser.add_argument("--baseline-python", help="Python interpreter with TensorFlow and tensorflow-datasets")
    parser.add_argument("--openvla", type=Path, help="checkout of github.com/openvla/openvla")
    parser.add_argument("--dlimp", type=Path, help="checkout of github.com/moojink/dlimp_openvla")
    parser.add_argument("--only", default="", help="run the contenders whose names match this regular expression")
    args = parser.parse_args()
    if args.openvla and not (args.dlimp and args.baseline_python):
        parser.error("--openvla needs --dlimp and --baseline-python")
    args.data.mkdir(parents=True, exist_ok=True)
    machine = report.machine(args.data)
    if args.baseline_python:
        machine |= {f"peers' {k}": v for k, v in report.versions(args.baseline_python, TF_PACKAGES).items()}
    sections, raw = [], {}
    for size in args.image_size:
        text, raw[str(size)] = one_size(args, size)
        sections.append(text)
    command = shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]])
    head = [
        f"# Benchmark: {args.name}",
        f"`{command}`",
        "\n".join(f"- {key}: {value}" for key, value in machine.items()),
        report.LEGEND.format(rounds=args.rounds, cold=args.cold_rounds),
        "\n".join(f"- {c.name}: {c.note}" for c in contenders(args, max(args.image_size))),
    ]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{args.name}.md").write_text("\n\n".join([*head, *sections]).rstrip() + "\n")
    (results / f"{args.name}.json").write_text(
        json.dumps({"command": command, "machine": machine, "sets": raw}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
