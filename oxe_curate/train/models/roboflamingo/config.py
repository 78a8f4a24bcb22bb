"""Configuration of a RoboFlamingo folder: vision tower, decoder, cross-attention and head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.inputs import load_json
from oxe_curate.train.models.roboflamingo import mosaic as flamingo_mosaic
from oxe_curate.train.models.roboflamingo.heads import GPTHead, Head, LSTMHead, MLPHead
from oxe_curate.train.models.roboflamingo.vit import ClipShape

CONFIG, WEIGHTS, VISION, LANGUAGE = "config.json", "flamingo.safetensors", "vision", "language"
MODEL_TYPE = "roboflamingo"
IMAGE, END = "<image>", "<|endofchunk|>"

_DECODERS = {"mpt": "mpt", "llama": "llama", "gpt_neox": "gpt_neox", "redpajama": "gpt_neox", "opt": "opt"}


@dataclass(frozen=True)
class HeadSpec:
    """Kind and sizes of a policy head; None: default of the released code.

    Attributes:
        kind: "mlp", "gpt" or "lstm". window, chunk: see `Head`.
        history: see `MLPHead`.
        hidden, layers, heads: of the recurrent network or the transformer.
    """

    kind: str = "lstm"
    window: int = 12
    chunk: int = 1
    history: bool = False
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None

    def build(self, features: int) -> Head:
        """Make the head for features of the given width."""
        sizes = {"hidden": self.hidden, "layers": self.layers, "heads": self.heads}
        given: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
        if self.kind == "mlp":
            return MLPHead(features, self.window, self.chunk, **{k: v for k, v in given.items() if k == "hidden"})
        if self.kind == "lstm":
            given.pop("heads", None)
            return LSTMHead(features, self.window, self.chunk, **given)
        if self.kind == "gpt":
            return GPTHead(features, self.window, self.chunk, **given)
        raise ConfigError(f"head: unknown kind {self.kind!r}. {did_you_mean(self.kind, ('mlp', 'gpt', 'lstm'))}")


@dataclass(frozen=True)
class FlamingoSpec:
    """Architecture in a folder's configuration.

    Attributes:
        vision: shape of the tower. every: interval of layers with cross-attention.
        language: configuration of the decoder, transformers' keys with "model_type"; None: that of language/.
        media_token: id of the image token; None: from the tokenizer.
        head: None if not configured.
        weights: file name; None: search the folder.
        early: the policy uses the input of the last layer; see mosaic.py.
    """

    vision: ClipShape
    every: int
    language: Mapping[str, Any] | None
    media_token: int | None
    head: HeadSpec | None
    weights: str | None
    early: bool = False

    @classmethod
    def read(cls, folder: Path) -> FlamingoSpec:
        """Read a folder's configuration.

        Keys: "cross_attn_every_n_layers"; "vision" (ClipShape's fields; default: vision/config.json); the decoder's
        configuration under "language" (default: language/config.json) or its kind ("mpt", "llama", "gpt_neox",
        "opt"); "media_token_id"; "window"; "head" (HeadSpec's fields); "weights" (file name); "features" ("last-input"
        for RoboFlamingo on MPT-1B, where it is the default).

        Raises:
            ConfigError: no configuration, several of them, or an invalid one.
        """
        where = _config_file(folder)
        try:
            data = load_json(where, constants=True)
            if data.get("model_type", MODEL_TYPE) != MODEL_TYPE:
                raise ConfigError(f"{where}: model_type: expected {MODEL_TYPE!r}, got {data['model_type']!r}")
            if data.get("fusion", "post") != "post":
                raise ConfigError(f'{where}: fusion: expected "post", got {data["fusion"]!r}')
            return cls(
                vision=_vision_shape(data, folder),
                every=int(data.get("cross_attn_every_n_layers", 1)),
                language=_language_config(data),
                media_token=data.get("media_token_id"),
                head=_head_spec(data),
                weights=data.get("weights"),
                early=flamingo_mosaic.is_early(data, folder / LANGUAGE),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: not a RoboFlamingo configuration: {error!r}") from None


def _config_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: folder not found; expected config.json and weights of RoboFlamingo")
    if (folder / CONFIG).is_file():
        return folder / CONFIG
    found = sorted(folder.glob("*config.json"))
    if len(found) != 1:
        raise ConfigError(f"{folder}: expected config.json, found {len(found)} files named *config.json")
    return found[0]


def _vision_shape(data: Mapping[str, Any], folder: Path) -> ClipShape:
    given = data.get("vision", data.get("vis"))
    if isinstance(given, Mapping):
        width = int(given["width"])
        return ClipShape(
            width=width,
            layers=int(given["layers"]),
            heads=int(given.get("heads", width // 64)),
            patch=int(given.get("patch", 14)),
            image_size=int(given.get("image_size", data.get("image_size", 224))),
            mlp_width=int(given.get("mlp_width", 4 * width)),
            act=given.get("act", "quick_gelu"),
        )
    file = folder / VISION / CONFIG
    if not file.is_file():
        raise ConfigError(f"{file}: file not found; put a CLIP model in transformers' layout into {VISION}/")
    return ClipShape.from_transformers(load_json(file, constants=True))


def _language_config(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = data.get("language")
    if isinstance(given, Mapping):
        return given
    for key, kind in _DECODERS.items():
        if isinstance(data.get(key), Mapping):
            return {"model_type": kind, **data[key]}
    return None


def _head_spec(data: Mapping[str, Any]) -> HeadSpec | None:
    window = int(data.get("window", 12))
    given = data.get("head")
    if isinstance(given, Mapping):
        return HeadSpec(**{"window": window, **given})
    heads = re.search(r"(\d+)\s*heads?\b", given) if isinstance(given, str) else None  # free text
    return HeadSpec(window=window, heads=int(heads[1]) if heads else None)
