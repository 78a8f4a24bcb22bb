"""Time OpenVLA's own RLDS loader on the work of filter and tokenize; prints one line of JSON.

    python benchmarks/openvla_loader.py statistics FOLDER --openvla CHECKOUT --dlimp CHECKOUT

FOLDER contains bridge_dataset/1.0.0. The checkouts are github.com/openvla/openvla (c8f03f4 was used) and
github.com/moojink/dlimp_openvla (040105d); neither is part of this project. Only prismatic.vla.datasets.rlds and
prismatic.vla.action_tokenizer are imported: the __init__ of their parents would load torch, timm and transformers,
which the data path does not use, so empty packages replace them. Required from PyPI: tensorflow-cpu,
tensorflow-datasets, rich, tqdm, and tensorflow-graphics without its dependencies (--no-deps).
The settings are those of RLDSDataset in prismatic/vla/datasets/datasets.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

DATASET = "bridge_dataset"
VOCABULARY = 32_000  # Llama-2


class Identity:
    """Replaces the Llama-2 tokenizer: `decode` returns the ids instead of text."""

    vocab_size = VOCABULARY

    def decode(self, ids: list[int]) -> list[int]:
        return ids


def import_rlds(openvla: Path, dlimp: Path) -> tuple[Any, Any, Any]:
    """Import the loader's modules `dataset`, `oxe` and the ActionTokenizer class without torch."""
    sys.path.insert(0, str(dlimp))
    for name in ("prismatic", "prismatic.vla", "prismatic.vla.datasets"):
        package = types.ModuleType(name)
        package.__path__ = [str(openvla.joinpath(*name.split(".")))]
        sys.modules[name] = package
    transformers = types.ModuleType("transformers")
    transformers.PreTrainedTokenizerBase = object  # type: ignore[attr-defined]  # used in an annotation only
    sys.modules["transformers"] = transformers
    from prismatic.vla.action_tokenizer import ActionTokenizer  # type: ignore[import-not-found]
    from prismatic.vla.datasets.rlds import dataset, oxe  # type: ignore[import-not-found]

    return dataset, oxe, ActionTokenizer


def used() -> float:
    """Seconds of processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def forget_statistics(folder: Path) -> None:
    """Remove the statistics that the loader caches next to the shards, so that each run computes them."""
    for path in (folder / DATASET / "1.0.0").glob("dataset_statistics_*.json"):
        path.unlink()


def run(args: argparse.Namespace) -> dict[str, Any]:
    dataset, oxe, tokenizer_class = import_rlds(args.openvla, args.dlimp)
    from prismatic.vla.datasets.rlds.utils.data_utils import NormalizationType  # type: ignore[import-not-found]

    (kwargs,), _ = oxe.get_oxe_dataset_kwargs_and_weights(
        args.folder,
        [(DATASET, 1.0)],
        load_camera_views=("primary",),
        load_depth=False,
        load_proprio=False,
        load_language=True,
        action_proprio_normalization_type=NormalizationType.BOUNDS_Q99,
    )
    windows = {
        "window_size": 1,
        "future_action_window_size": 0,
        "skip_unlabeled": True,
        "goal_relabeling_strategy": "uniform",
    }
    forget_statistics(args.folder)
    start, before = time.perf_counter(), used()
    trajectories, statistics = dataset.make_dataset_from_rlds(**kwargs, train=True)
    spent = {"seconds": time.perf_counter() - start, "cpu": used() - before}
    result: dict[str, Any] = {**spent, "steps": int(statistics["num_transitions"])}
    if args.contender == "statistics":
        forget_statistics(args.folder)
        action = statistics["action"]
        return result | {key: action[key].tolist() for key in ("mean", "std", "min", "max", "q01", "q99")}

    if args.contender == "tokens":  # statistics, normalised actions and tokens of one epoch; no image is decoded
        tokenizer = tokenizer_class(Identity())
        frames = dataset.apply_trajectory_transforms(trajectories, train=True, **windows).flatten()
        steps, total = 0, 0
        for frame in frames.as_numpy_iterator():
            total += sum(tokenizer(frame["action"][0]))
            steps += 1
        forget_statistics(args.folder)
        spent = {"seconds": time.perf_counter() - start, "cpu": used() - before}
        return {**spent, "steps": steps, "sum_of_ids": int(total)}

    # The stream that the training loop reads: shuffled, decoded, resized to 224 px with Lanczos.
    stream, _, _ = dataset.make_interleaved_dataset(
        [kwargs],
        [1.0],
        train=True,
        shuffle_buffer_size=args.shuffle_buffer,
        traj_transform_kwargs=windows,
        frame_transform_kwargs={"resize_size": (224, 224), "num_parallel_calls": 16},
        balance_weights=True,
        traj_transform_threads=1,
        traj_read_threads=1,
    )
    forget_statistics(args.folder)
    frames = stream.as_numpy_iterator()
    for _ in range(64):
        next(frames)
    filled, before = time.perf_counter(), used()
    for _ in range(args.limit):
        next(frames)
    spent = {"seconds": time.perf_counter() - filled, "cpu": used() - before}
    return {**spent, "steps": args.limit, "partial": True, "until_first": filled - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["statistics", "tokens", "samples"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--openvla", type=Path, required=True, help="checkout of openvla/openvla")
    parser.add_argument("--dlimp", type=Path, required=True, help="checkout of moojink/dlimp_openvla")
    parser.add_argument("--limit", type=int, default=2000, help="samples: how many to time (%(default)s)")
    parser.add_argument(
        "--shuffle-buffer", type=int, default=5000, help="samples: OpenVLA's own is 256,000 (%(default)s)"
    )
    sys.stdout.write(json.dumps(run(parser.parse_args())) + "\n")


if __name__ == "__main__":
    main()
