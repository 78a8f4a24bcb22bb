"""The README.md of an exported model: what it was trained on and how, how well it does, how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from oxe_curate import __version__
from oxe_curate.errors import CurateError
from oxe_curate.mixture.spec import read_mixture
from oxe_curate.report.page import share
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import RESOLVED
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.evaluation.scores import FACTORS, NAMES, UNITS
from oxe_curate.train.loop.saved import CHECKPOINT, Saved, read_json, steps
from oxe_curate.ui.svg import number

_SCALARS = {"l1": "mean error of the normalised actions"}
_HOME = "https://github.com/oxe-curate/oxe-curate"


def model_card(saved: Saved, name: str, merged: bool, published: Mapping[str, Any]) -> str:
    """The card, in Markdown with the metadata that the Hugging Face Hub reads.

    Args:
        saved: the run.
        name: of the exported folder.
        merged: whether whole weights were written.
        published: config.json beside the weights; empty for an adapter.
    """
    kind = "whole weights (adapter merged)" if merged and saved.config.adapter != "none" else "whole weights"
    if not merged:
        kind = "trained weights alone; they need the base" + (" (PEFT adapter)" if _lora(saved.config) else "")
    family = {"openvla": "OpenVLA", "roboflamingo": "RoboFlamingo"}[saved.config.model]
    parts = [
        _metadata(saved, merged),
        f"# {name}\n\nA vision-language-action model of the {family} family, fine-tuned with [oxe-curate]({_HOME}) "
        f"{__version__} from `{Path(saved.config.base).name}`. This folder holds {kind}.\n",
        "## What it was trained on\n\n" + _training_data(saved),
        "## How\n\n" + _settings(saved),
        "## How well it does\n\n" + _results(saved),
        "## How to use it\n\n" + _use(saved, name, merged, published),
        "## Licence\n\nThe licences of the base model and of the data sets were not recorded in training, and they "
        "decide what this model may be used for. Look them up and fill this in before publishing: "
        f"base `{Path(saved.config.base).name}`; data sets {', '.join(f'`{n}`' for n in saved.spec.statistics)}.\n",
    ]
    return "\n".join(parts)


def upstream_obstacles(saved: Saved, published: Mapping[str, Any]) -> list[str]:
    """Why OpenVLA's own inference code would not do what this model learned; empty where it does.

    That code takes one picture, decodes seven tokens one after another, and knows the last 256 tokens of the
    vocabulary with OpenVLA's bins.

    Args:
        saved: the run.
        published: config.json of the merged model.
    """
    spec, config = saved.spec, saved.config
    found = []
    if len(spec.cameras) > 1:
        found.append(f"it looks through {len(spec.cameras)} cameras")
    if spec.proprio:
        found.append("it takes the robot's state")
    if spec.chunk > 1:
        found.append(f"it predicts chunks of {spec.chunk} actions")
    if config.openvla.head != "tokens":
        found.append("its actions come from a continuous head")
    elif config.openvla.decoding != "autoregressive":
        found.append("its tokens are decoded in parallel")
    if spec.bins != "openvla":
        found.append("its bins are 256 true intervals")
    text = published.get("text_config", {})
    last = int(text.get("vocab_size", 0)) - int(published.get("pad_to_multiple_of", 0))
    if spec.tokens is not None and spec.tokens != tuple(range(last - 1, last - 257, -1)):
        found.append("its action tokens are not the last of the vocabulary")
    if text.get("model_type", "llama") != "llama" or "vision_transformers" in published:
        found.append("its language model or vision towers are not those that the code knows")
    return found


def _metadata(saved: Saved, merged: bool) -> str:
    data = {
        "license": "unknown",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "vision-language-action", saved.config.model, "oxe-curate"],
    }
    if not merged and _lora(saved.config):
        data["library_name"] = "peft"
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _training_data(saved: Saved) -> str:
    mixture = read_mixture(saved.folder / RESOLVED)
    manifest = _manifest(saved)
    rows = []
    for entry in mixture.datasets:
        name = entry.name
        counts = saved.spec.statistics.get(name, {})
        drawn, samples = "", ""
        if manifest:
            drawn = _plain_share(manifest["share"][name]["drawn"])
            samples = f"{manifest['rows']['train'].get(name, 0):,}"
        rows.append((f"`{name}`", f"{entry.weight:g}", drawn, samples,
                     _count(counts.get("num_trajectories")), _count(counts.get("num_transitions"))))  # fmt: skip
    header = ("data set", "weight", "share of samples", "samples", "episodes indexed", "steps indexed")
    keep = [i for i in range(len(header)) if any(row[i] for row in rows)]
    table = _table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])
    held = mixture.validation
    sources = [text.name for text in mixture.texts]
    told = f"\nBeside them image-text sources: {', '.join(f'`{s}`' for s in sources)}.\n" if sources else ""
    note = f"{_plain_share(held)} of the episodes were held out" if held else "No episodes were held out"
    return (
        f"The mixture `{mixture.name}`; weight: expected copies of each step.\n\n{table}{told}\n{note}. "
        f"`{RESOLVED}` is the mixture in full.\n"
    )


def _settings(saved: Saved) -> str:
    config, spec = saved.config, saved.spec
    if config.adapter == "none":
        method = f"weights themselves ({config.tuning})"
    else:
        base = {"lora": "", "qlora": ", language model in NF4", "int8": ", language model in int8"}[config.adapter]
        method = f"LoRA, rank {config.lora.rank}, alpha {config.lora.alpha:g}, on {config.lora.targets}{base}"
    rows = [("trained", method)]
    done = _progress(saved)
    if done:
        rows.append(("steps", f"{done['step']:,} of {done['global_batch']} samples ({done['consumed']:,} samples)"))
    elif saved.checkpoint or config.steps:
        rows.append(("steps", f"{saved.checkpoint or config.steps:,}"))
    schedule = config.schedule + (f" after {config.warmup} steps of warm-up" if config.warmup else "")
    rows += [
        ("learning rate", f"{config.learning_rate:g}, {schedule}"),
        ("precision", config.dtype),
        ("pictures", f"{', '.join(spec.cameras)}; {spec.image_size} px"
                     + ("; crops and colour changes in training" if config.augment else "")),
        ("observations, actions", f"window of {spec.window}, chunk of {spec.chunk}"),
        ("robot state", f"{spec.proprio} numbers" if spec.proprio else "not used"),
    ]  # fmt: skip
    if config.model == "openvla":
        rows.append(("head", f"{config.openvla.head}, {config.openvla.decoding}"))
    else:
        rows.append(("head", config.flamingo.head))
    rows.append(("seed", str(config.seed)))
    versions = saved.record.get("versions") or {}
    if versions:
        rows.append(("software", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return _table(("setting", "value"), rows)


def _results(saved: Saved) -> str:
    parts = []
    evaluation = saved.folder / "evaluation"
    evaluation = evaluation / f"{CHECKPOINT}{saved.checkpoint}" if saved.checkpoint else evaluation
    if (evaluation / "evaluation.json").is_file():
        found = read_json(evaluation / "evaluation.json")
        what = "held-out" if found["split"] == "validation" else "training"
        rows = []
        for name, part in found["datasets"].items():
            gripper, usual = (
                "–" if part.get(key) is None else _plain_share(part[key])
                for key in ("gripper_accuracy", "constant_gripper_accuracy")
            )
            rows.append((f"`{name}`", f"{part['steps']:,}", _plain_share(part["token_accuracy"]),
                         *(number(error) for error in part["l1"][:6]), gripper))  # fmt: skip
            rows.append(
                ("always the mean action", "", "", *(number(error) for error in part["constant_l1"][:6]), usual)
            )
        header = ("data set", "steps", "tokens right", *_axes()[:6], "gripper right")
        parts.append(
            f"On whole {what} episodes ({sum(found['episodes'].values())}), mean absolute error of each dimension, the "
            f"model seeing at each step what the robot saw in the data:\n\n{_table(header, rows)}"
        )
    last = _validation(saved)
    if last:
        scalars = ", ".join(
            f"{_SCALARS.get(key, key.replace('_', ' '))} {number(value)}"
            for key, value in last.items()
            if isinstance(value, float) and key != "step"
        )
        rows = [
            (f"`{name}`", f"{part['samples']:,}", *(number(v) for v in _real(part["l1"])))
            for name, part in last["datasets"].items()
        ]
        parts.append(
            f"Validation on {last['samples']:,} held-out samples after step {last['step']:,}: {scalars}.\n\n"
            + _table(("data set", "samples", *_axes()), rows)
        )
    return "\n".join(parts) if parts else "This folder came with no measurement on held-out data.\n"


def _use(saved: Saved, name: str, merged: bool, published: Mapping[str, Any]) -> str:
    keys = list(saved.spec.statistics)
    picture = "image" if len(saved.spec.cameras) == 1 else "{" + ", ".join(
        f'"{role}": {role}' for role in saved.spec.cameras) + "}"  # fmt: skip
    state = ", proprio" if saved.spec.proprio else ""
    base = "" if merged else ', base="path/to/the/base"'
    chunk = f"; policy.chunk(...): all {saved.spec.chunk}" if saved.spec.chunk > 1 else ""
    text = (
        'With `pip install "oxe-curate[train]"`:\n\n```python\nfrom oxe_curate.train import Policy\n\n'
        f'policy = Policy.load("{name}", unnorm_key="{keys[0]}"{base})\n'
        f'action = policy({picture}, "put the spoon on the towel"{state})  '
        f"# (7,): metres, radians, gripper (1 = open){chunk}\n```\n\n"
        f"`oxe-curate serve {name}{'' if merged else ' --base path/to/the/base'}` answers OpenVLA's `POST /act`. "
        f"Keys (`unnorm_key`): {', '.join(f'`{key}`' for key in keys)}.\n"
    )
    if saved.config.model != "openvla":
        return text
    if not merged:
        return text + "\nFor OpenVLA's own inference code, export with `--merge`.\n"
    obstacles = upstream_obstacles(saved, published)
    if obstacles:
        return f"{text}\nOpenVLA's own inference code cannot run this model: {'; '.join(obstacles)}.\n"
    crop = (
        " It was trained with random crops: cut the middle 90 % of the area out of each picture first, as OpenVLA's "
        "evaluation does with `center_crop`.\n"
        if saved.config.augment
        else "\n"
    )
    return (
        f"{text}\nWith OpenVLA's own code (the `modeling_prismatic.py` and its companions of the base lie beside the "
        f"weights if the base had them):{crop}\n```python\nfrom transformers import AutoModelForVision2Seq, "
        f'AutoProcessor\n\nprocessor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)\n'
        f'vla = AutoModelForVision2Seq.from_pretrained("{name}", torch_dtype=torch.bfloat16, trust_remote_code=True)'
        '.to("cuda:0")\nprompt = "In: What action should the robot take to put the spoon on the towel?\\nOut:"\n'
        'inputs = processor(prompt, image).to("cuda:0", dtype=torch.bfloat16)\n'
        f'action = vla.predict_action(**inputs, unnorm_key="{keys[0]}", do_sample=False)\n```\n'
    )


def _lora(config: TrainConfig) -> bool:
    return config.adapter != "none"


def _manifest(saved: Saved) -> dict[str, Any] | None:
    """Of the mixture, if it is still where it lay and still the same."""
    try:
        mixture = MixtureFolder.open(saved.config.data)
    except CurateError:
        return None
    return mixture.manifest if mixture.hashes == saved.spec.hashes else None


def _progress(saved: Saved) -> dict[str, Any] | None:
    """Steps and samples of the checkpoint, or of the run's last."""
    found = [saved.checkpoint] if saved.checkpoint else steps(saved.folder)[-1:]
    path = saved.folder / f"{CHECKPOINT}{found[0]}" / "progress.json" if found else saved.folder / "none"
    data = read_json(path) if path.is_file() else {}
    return data if {"step", "consumed", "global_batch"} <= set(data) else None


def _validation(saved: Saved) -> dict[str, Any] | None:
    """The last validation up to the checkpoint."""
    path = saved.folder / "validation.json"
    if not path.is_file():
        return None
    past: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    past = [entry for entry in past if saved.checkpoint is None or entry["step"] <= saved.checkpoint]
    return past[-1] if past else None


def _real(l1: Sequence[float]) -> Iterable[float]:
    return (value * float(factor) for value, factor in zip(l1, FACTORS, strict=True))


def _axes() -> list[str]:
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(NAMES, UNITS, strict=True)]


def _count(value: Any) -> str:
    return "" if value is None else f"{int(value):,}"


def _plain_share(value: float) -> str:
    return share(value, 1).replace("&lt;", "<")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
