"""The README.md of an exported model: training data, settings, results and usage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from oxe_curate import __version__
from oxe_curate.errors import CurateError
from oxe_curate.mixture.spec import Mixture, read_mixture
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.manifest import RESOLVED
from oxe_curate.train.evaluation.scores import FACTORS, NAMES, UNITS, percent
from oxe_curate.train.loop.saved import Saved
from oxe_curate.train.run_folder import read_json
from oxe_curate.ui.svg import number

_SCALARS = {"l1": "mean error of the normalized actions"}
_FAMILIES = {"openvla": "OpenVLA", "roboflamingo": "RoboFlamingo"}


def model_card(saved: Saved, name: str, merged: bool, published: Mapping[str, Any]) -> str:
    """Render the card: Markdown with the metadata of the Hugging Face Hub.

    Args:
        saved: the run.
        name: of the exported folder.
        merged: whether merged weights were written.
        published: config.json of the merged model; empty for an adapter.
    """
    spec, config = saved.spec, saved.config
    mixture, keys = read_mixture(saved.folder / RESOLVED), list(spec.statistics)
    path = saved.layout.evaluation(saved.checkpoint) / "evaluation.json"
    evaluation = read_json(path) if path.is_file() else None
    validations = saved.layout.validations(until=saved.checkpoint)
    validation = validations[-1] if validations else None
    content = "merged weights (base and adapter)" if config.adapter != "none" else "all weights"
    if not merged:
        kind = "a PEFT adapter" if config.adapter != "none" else "the trained weights"
        content = f"{kind}; the base model is needed in addition"
    environment = jinja2.Environment(  # Markdown: nothing to escape
        loader=jinja2.PackageLoader("oxe_curate.train.export", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["percent"] = percent
    image = spec.cameras[0] if len(spec.cameras) == 1 else ", ".join(f'"{role}": {role}' for role in spec.cameras)
    return environment.get_template("model_card.md").render(
        metadata=_metadata(saved, merged),
        name=name,
        family=_FAMILIES[config.model],
        version=__version__,
        base=Path(config.base).name,
        content=content,
        mixture=mixture,
        data_table=_data_table(saved, mixture),
        settings_table=_settings_table(saved),
        evaluation=evaluation,
        evaluation_table=_evaluation_table(evaluation) if evaluation else "",
        validation=validation,
        validation_table=_validation_table(validation) if validation else "",
        scalars=_scalars(validation or {}),
        spec=spec,
        image="image" if len(spec.cameras) == 1 else f"{{{image}}}",
        keys=keys,
        listed=", ".join(f"`{key}`" for key in keys),
        merged=merged,
        obstacles=upstream_obstacles(saved, published) if config.model == "openvla" and merged else [],
        augment=config.augment,
    )


def upstream_obstacles(saved: Saved, published: Mapping[str, Any]) -> list[str]:
    """Reasons why OpenVLA's own inference code cannot run a model; empty if it can.

    That code takes one image, decodes seven tokens one after another, and expects OpenVLA's bins in the last 256 tokens
    of the vocabulary.

    Args:
        saved: the run.
        published: config.json of the merged model.
    """
    spec, config = saved.spec, saved.config
    found = []
    if len(spec.cameras) > 1:
        found.append(f"it uses {len(spec.cameras)} cameras")
    if spec.proprio:
        found.append("it uses the robot state")
    if spec.chunk > 1:
        found.append(f"it predicts chunks of {spec.chunk} actions")
    if config.openvla.head != "tokens":
        found.append("it has a continuous action head")
    elif config.openvla.decoding != "autoregressive":
        found.append("its tokens are decoded in parallel")
    if spec.bins != "openvla":
        found.append("it has uniform bins")
    text = published.get("text_config", {})
    last = int(text.get("vocab_size", 0)) - int(published.get("pad_to_multiple_of", 0))
    if spec.tokens is not None and spec.tokens != tuple(range(last - 1, last - 257, -1)):
        found.append("its action tokens are not the last of the vocabulary")
    if text.get("model_type", "llama") != "llama" or "vision_transformers" in published:
        found.append("it has another language model or other vision towers")
    return found


def _metadata(saved: Saved, merged: bool) -> str:
    data = {
        "license": "unknown",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "vision-language-action", saved.config.model, "oxe-curate"],
    }
    if not merged and saved.config.adapter != "none":
        data["library_name"] = "peft"
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _data_table(saved: Saved, mixture: Mixture) -> str:
    """Weights, and what the manifest adds if the mixture is still available; empty columns are left out."""
    manifest = _manifest(saved)
    rows = []
    for entry in mixture.datasets:
        name, counts = entry.name, saved.spec.statistics.get(entry.name, {})
        drawn = percent(manifest["share"][name]["drawn"]) if manifest else ""
        samples = f"{manifest['rows']['train'].get(name, 0):,}" if manifest else ""
        indexed = (f"{int(counts[key]):,}" if key in counts else "" for key in ("num_trajectories", "num_transitions"))
        rows.append((f"`{name}`", f"{entry.weight:g}", drawn, samples, *indexed))
    header = ("data set", "weight", "share of samples", "samples", "episodes indexed", "steps indexed")
    keep = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return _table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])


def _settings_table(saved: Saved) -> str:
    config, spec = saved.config, saved.spec
    if config.adapter == "none":
        method = f"the weights ({config.tuning})"
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
    augmented = "; crops and color changes in training" if config.augment else ""
    openvla = f"{config.openvla.head}, {config.openvla.decoding}"
    rows += [
        ("learning rate", f"{config.learning_rate:g}, {schedule}"),
        ("precision", config.dtype),
        ("images", f"{', '.join(spec.cameras)}; {spec.image_size} px, {spec.resize}{augmented}"),
        ("observations, actions", f"window of {spec.window}, chunk of {spec.chunk}"),
        ("robot state", f"{spec.proprio} numbers" if spec.proprio else "not used"),
        ("head", openvla if config.model == "openvla" else config.flamingo.head),
        ("seed", str(config.seed)),
    ]
    versions = saved.record.get("versions") or {}
    if versions:
        rows.append(("software", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return _table(("setting", "value"), rows)


def _evaluation_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, part in found["datasets"].items():
        accuracy, tokens = percent(part["gripper_accuracy"]), percent(part["token_accuracy"])
        rows.append((f"`{name}`", f"{part['steps']:,}", tokens, *map(number, part["l1"][:6]), accuracy))
        usual = percent(part["constant_gripper_accuracy"])
        rows.append(("always the mean action", "", "", *map(number, part["constant_l1"][:6]), usual))
    return _table(("data set", "steps", "token accuracy", *_axes()[:6], "gripper accuracy"), rows)


def _validation_table(last: Mapping[str, Any]) -> str:
    rows = []
    for name, part in last["datasets"].items():
        errors = (number(value * float(factor)) for value, factor in zip(part["l1"], FACTORS, strict=True))
        rows.append((f"`{name}`", f"{part['samples']:,}", *errors))
    return _table(("data set", "samples", *_axes()), rows)


def _scalars(last: Mapping[str, Any]) -> list[str]:
    return [
        f"{_SCALARS.get(key, key.replace('_', ' '))} {number(value)}"
        for key, value in last.items()
        if isinstance(value, float) and key != "step"
    ]


def _manifest(saved: Saved) -> dict[str, Any] | None:
    """The mixture's manifest, if the mixture is still in its place and unchanged."""
    try:
        mixture = MixtureFolder.open(saved.config.data)
    except CurateError:
        return None
    return mixture.manifest if mixture.hashes == saved.spec.hashes else None


def _progress(saved: Saved) -> dict[str, Any] | None:
    """Steps and samples of the checkpoint, or of the last one."""
    steps = [saved.checkpoint] if saved.checkpoint else saved.layout.steps()[-1:]
    path = saved.layout.checkpoint(steps[0]).progress if steps else None
    data = read_json(path) if path is not None and path.is_file() else {}
    return data if {"step", "consumed", "global_batch"} <= set(data) else None


def _axes() -> list[str]:
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(NAMES, UNITS, strict=True)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
