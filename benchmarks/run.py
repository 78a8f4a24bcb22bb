"""Run the benchmarks, group by group, and renew the page of results, benchmarks/results/README.md.

    python -m benchmarks.run                            # every group of `make bench`
    python -m benchmarks.run --only scan                # the groups whose names match this regular expression
    python -m benchmarks.run --peers TF/bin/python      # also tf.data and TFDS
    python -m benchmarks.run --page                     # only renew the page

Each group runs in a process of its own and replaces its rows as it measures them; rows that are not measured stay. A
group that fails or runs out of time does not stop the others, but the exit code is 1. Nothing else should run on the
machine. `make bench` calls this; see README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import groups, make_shards, page, recorded, report
from benchmarks.settings import Settings
from benchmarks.store import STORE, Store

HERE = Path(__file__).parent
BUSY = 0.25  # load per core above which timings are not to be trusted
PEER_PACKAGES = ("tensorflow-cpu", "tensorflow-datasets")


def is_busy(load: float, cores: int) -> bool:
    """Whether other work on the machine would disturb timings."""
    return load > BUSY * cores


def facts(settings: Settings) -> dict[str, str]:
    """Date, commit, machine and versions of a run."""
    peers = report.versions(str(settings.peers), PEER_PACKAGES) if settings.peers else {}
    return report.machine(settings.data) | peers


def measure_group(name: str, settings: Settings, store_path: Path) -> None:
    """In a process of its own: measure a group and store each row as soon as it is there."""
    about, found = facts(settings), []
    for row in groups.GROUPS[name].measure(settings):
        found.append(groups.with_command(row, name))
        store = Store.read(store_path)
        store.update(name, found, about, complete=False)
        store.write(store_path)
        print(f"  {page.line(found[-1])}", flush=True)
    if found and not settings.skipped:  # rows that the group no longer has go
        store = Store.read(store_path)
        store.update(name, found, about, complete=True)
        store.write(store_path)


def run_group(name: str, arguments: Sequence[str], minutes: float) -> str:
    """Run a group as a child; return what went wrong, or ""."""
    command = [sys.executable, "-m", "benchmarks.run", *arguments, "--group", name]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        code = child.wait(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return f"not done after {minutes:g} minutes"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return f"exit code {code}" if code else ""


def run(chosen: Sequence[str], arguments: Sequence[str], store_path: Path) -> int:
    """Run the groups in turn; the number of those that failed."""
    failed, begun = [], time.monotonic()
    for name in chosen:
        group = groups.GROUPS[name]
        load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
        print(f"{name}: {group.about} (about {group.minutes:g} min)", flush=True)
        if is_busy(load, cores) and name == chosen[0]:  # later, the load is that of the groups before
            print(f"  WARNING: the load is {load:.1f}: other work disturbs timings", flush=True)
        start = time.monotonic()
        wrong = run_group(name, arguments, 2 * group.minutes + 3)
        if wrong:
            failed.append(name)
        print(f"{name}: {wrong or 'done'}, {(time.monotonic() - start) / 60:.1f} min\n", flush=True)
        renew(store_path)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} groups done, {(time.monotonic() - begun) / 60:.1f} min")
    if failed:
        print(f"failed: {', '.join(failed)}; again: make bench ONLY='{'|'.join(failed)}'")
    return len(failed)


def renew(store_path: Path) -> None:
    """Write the page from the store and the recorded files."""
    store = recorded.with_recorded(Store.read(store_path), store_path.parent)
    store_path.parent.mkdir(parents=True, exist_ok=True)
    page.write(store, store_path.parent, page.DETAILS)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", default="", metavar="REGEX", help="groups to run, by name (all)")
    made.add_argument("--list", action="store_true", help="print the groups")
    made.add_argument("--page", action="store_true", help="only renew the page")
    made.add_argument(
        "--quick",
        action="store_true",
        help="less data and two rounds, with a page in DATA/quick: to see that all works",
    )
    made.add_argument("--rounds", type=int, help="at most, of each contender (5)")
    made.add_argument("--budget", type=float, default=20, help="seconds that a contender may take (%(default)s)")
    made.add_argument("--data", type=Path, default=HERE / "data", help="folder for data and output (%(default)s)")
    made.add_argument("--shared", type=Path, default=make_shards.shared_folder(), help="folder with data/rlds")
    made.add_argument("--peers", type=Path, help="Python interpreter made by make bench-peers")
    made.add_argument("--openvla", type=Path, help="checkout of github.com/openvla/openvla")
    made.add_argument("--dlimp", type=Path, help="checkout of github.com/moojink/dlimp_openvla")
    made.add_argument("--store", type=Path, help="file of the rows; the page is next to it (benchmarks/results)")
    made.add_argument("--group", choices=list(groups.GROUPS), help=argparse.SUPPRESS)
    return made


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of a run. Raises SystemExit if a path that was given does not exist."""
    for option in ("peers", "openvla", "dlimp"):
        path = getattr(args, option)
        if path and not path.exists():
            raise SystemExit(f"--{option}: {path} does not exist")
    args.data.mkdir(parents=True, exist_ok=True)
    return Settings(
        data=args.data.absolute(), shared=args.shared.absolute(), peers=args.peers and args.peers.absolute(),
        openvla=args.openvla, dlimp=args.dlimp, rounds=args.rounds or (2 if args.quick else 5),
        budget=args.budget / 4 if args.quick else args.budget, gb=0.4 if args.quick else 1.6, quick=args.quick,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    if args.list:
        print("\n".join(f"{name:12} {group.about}" for name, group in groups.GROUPS.items()))
        return 0
    args.store = args.store or (args.data / "quick" / STORE.name if args.quick else STORE)
    if args.page:
        renew(args.store)
        return 0
    settings = settings_of(args)
    if args.group:
        measure_group(args.group, settings, args.store)
        return 0
    chosen = [name for name in groups.GROUPS if re.search(args.only, name)]
    if not chosen:
        raise SystemExit(f"--only {args.only}: no group matches; the groups are {', '.join(groups.GROUPS)}")
    return 1 if run(chosen, given, args.store) else 0


if __name__ == "__main__":
    sys.exit(main())
