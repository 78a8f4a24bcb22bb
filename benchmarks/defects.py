"""Plant defects into clean episodes, run filter, and table which are found: benchmarks/results/defects.{md,json}.

    python -m benchmarks.defects --folder FOLDER
    python -m benchmarks.defects --folder FOLDER --sources bridge,demo --kinds 'action|gripper' --look 8 --keep

Each set has one kind of defect, in about 15 % of the episodes of one source; all other records keep their bytes. A
defect counts as found by what filter says of the episode that it did not say before the defect was planted.
`defects_sources.py` says where the clean episodes come from, `defects_metaworld.py` how to make those of Meta-World.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import defects_actions, defects_images, defects_states, defects_timing, defects_words
from benchmarks.defects_episode import write_episodes
from benchmarks.defects_judge import UNREADABLE, Judgement, Position, configurations, judge
from benchmarks.defects_kinds import KINDS, Kind, Planted, plant
from benchmarks.defects_sources import Clean, door_frames, open_source, sources
from benchmarks.defects_table import Trial, write_report
from benchmarks.make_shards import shared_folder

HERE = Path(__file__).parent
MODULES = (defects_actions, defects_states, defects_timing, defects_images, defects_words)
"""Importing them registers their kinds."""


def count(
    trial: Trial,
    name: str,
    planted: Planted,
    judgements: Mapping[Position, Judgement],
    before: Mapping[Position, Judgement],
) -> None:
    """Add to a trial what one configuration says of a planted set, and said of the source before."""
    by, alarms_by = Counter[str](), Counter[str]()
    marked = dropped = alarms = losses = clean = 0
    trial.missed = []
    for position in _positions(planted):
        said = judgements.get(position, Judgement(UNREADABLE, frozenset()))
        if position in planted.spoiled:
            new = said.new_since(before["train", planted.spoiled[position]])
            marked += bool(new.found_by)
            dropped += new.dropped is not None
            by.update(new.found_by)
            if not new.found_by:
                trial.missed.append("/".join(map(str, position)))
        elif position not in planted.originals:
            clean += 1
            alarms += bool(said.found_by)
            losses += said.dropped is not None
            alarms_by.update(said.found_by)
    trial.planted, trial.clean = len(planted.spoiled), clean
    trial.marked[name], trial.dropped[name], trial.by[name] = marked, dropped, dict(by.most_common())
    trial.alarms[name], trial.losses[name], trial.alarms_by[name] = alarms, losses, dict(alarms_by.most_common())


def _positions(planted: Planted) -> Iterator[Position]:
    for split, episodes in planted.splits.items():
        for number in range(len(episodes)):
            yield split, number


def measure_source(clean: Clean, kinds: Sequence[Kind], args: argparse.Namespace) -> Iterator[Trial]:
    """The clean episodes first, as a trial of the kind "", then every kind in turn."""
    source, work = clean.source, args.folder / "planted" / clean.source.name
    foreign = door_frames(args.data) if any(kind.name == "image_foreign" for kind in kinds) else ()
    settings = configurations(args.criterion)
    untouched = Planted({"train": [episode.record for episode in clean.episodes]}, {})
    before: dict[str, dict[Position, Judgement]] = {}
    trial = Trial(source.name, "")
    for name, criteria in settings.items():
        index = args.folder / "index" / source.name / "clean"
        before[name] = judge(clean.folder.parents[1], index, criteria, source.cards, args.look, fresh=name == "default")
        count(trial, name, untouched, before[name], {})
    yield trial
    for kind in kinds:
        if source.only and not re.search(source.only, kind.name):
            continue
        trial = Trial(source.name, kind.name)
        planted = plant(clean, kind, foreign, args.seed)
        trial.skipped = planted.reason
        if not planted.reason:
            root, index = work / kind.name, args.folder / "index" / source.name / kind.name
            write_episodes(clean.folder, root / source.dataset / source.version, planted.splits)
            (root / "planted.json").write_text(json.dumps([f"{s}/{n}" for s, n in sorted(planted.spoiled)]))
            for name, criteria in settings.items():
                judgements = judge(root, index, criteria, source.cards, args.look, fresh=name == "default")
                count(trial, name, planted, judgements, before[name])
            if not args.keep:
                shutil.rmtree(root)
                shutil.rmtree(index)
        yield trial


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the planted data sets and their indexes")
    parser.add_argument("--data", type=Path, help="of the clean episodes, made once and shared (FOLDER/data)")
    parser.add_argument("--sources", default="", help="names or beginnings of names, separated by commas (all)")
    parser.add_argument("--kinds", default="", help="regular expression of the kinds to plant (all)")
    parser.add_argument("--look", type=int, default=0, metavar="N", help="frames per episode to look at (%(default)s)")
    parser.add_argument(
        "--criterion",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change both presets, such as limits.spike=8",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the planter (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep FOLDER/planted/SOURCE/KIND and FOLDER/index")
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/rlds (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (benchmarks/results if everything is planted)")
    parser.add_argument("--name", default="defects", help="of the report (%(default)s)")
    args = parser.parse_args(given)
    logging.getLogger().setLevel(logging.ERROR)
    args.data = args.data or args.folder / "data"
    for folder in (args.folder, args.data):
        folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for name, kind in KINDS.items() if re.search(args.kinds, name)]
    chosen = [s for s in sources(args.shared) if any(s.name.startswith(name) for name in args.sources.split(","))]
    if not kinds or not chosen:
        known = ", ".join(s.name for s in sources(args.shared))
        parser.error(f"nothing to plant; the sources are {known}, the kinds {', '.join(KINDS)}")
    start, trials, missing = time.monotonic(), [], []
    for source in chosen:
        clean = open_source(source, args.data, args.folder)
        if clean is None:
            missing.append(source.name)
            continue
        for trial in measure_source(clean, kinds, args):
            trials.append(trial)
            print(trial.line(), flush=True)
    seconds = time.monotonic() - start
    everything = not (args.kinds or args.sources)
    out = args.out or (HERE / "results" if everything else args.folder)
    facts: dict[str, Any] = {"look": args.look, "seed": args.seed, "seconds": round(seconds, 1), "missing": missing}
    write_report(out, args.name, trials, {kind.name: kind.text for kind in kinds}, facts)


if __name__ == "__main__":
    main()
