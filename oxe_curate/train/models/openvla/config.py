"""Architecture in a published OpenVLA `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.inputs import load_json
from oxe_curate.train.models.openvla.vit import PUBLISHED, VitConfig

CONFIG = "config.json"


@dataclass(frozen=True)
class Architecture:
    """Shapes of the network.

    Attributes:
        config: content of config.json, which `write` writes. In addition to OpenVLA's keys it may contain
            `vision_transformers` (timm's arguments of each tower, for other than the published sizes), `proprio_dim`
            (width of the proprio state) and `action_head` ("l1").
        vits, image_sizes: of each tower.
    """

    config: dict[str, Any] = field(repr=False)
    vits: tuple[VitConfig, ...]
    image_sizes: tuple[int, ...]

    @classmethod
    def of(cls, config: dict[str, Any], where: str = CONFIG) -> Architecture:
        """Interpret a parsed config.json. Raises ConfigError if it is not OpenVLA's."""
        if not isinstance(config, dict) or "timm_model_ids" not in config or "text_config" not in config:
            kind = config.get("model_type") if isinstance(config, dict) else None
            raise ConfigError(
                f"{where}: not the configuration of an OpenVLA checkpoint (timm_model_ids or text_config is missing"
                + (f"; model_type is {kind!r}" if kind else "")
                + "); expected the folder of openvla-7b or of a model derived from it"
            )
        if any(config.get("timm_override_act_layers") or []):
            raise ConfigError(f"{where}: timm_override_act_layers is not supported")
        if not isinstance(config["text_config"], dict) or "model_type" not in config["text_config"]:
            raise ConfigError(f"{where}: text_config: model_type is missing")
        identifiers = list(config["timm_model_ids"])
        sizes = tuple(int(size) for size in config.get("image_sizes", ()))
        if not 1 <= len(identifiers) == len(sizes) <= 2 or len(set(sizes)) > 1:
            raise ConfigError(
                f"{where}: timm_model_ids and image_sizes: expected one or two towers with the same image size"
            )
        given = config.get("vision_transformers")
        if given is None:
            vits = [_published(identifier, where) for identifier in identifiers]
        else:
            listed = given.values() if isinstance(given, dict) else given
            vits = [VitConfig.of(dict(settings)) for settings in listed]
        if len(vits) != len(identifiers):
            raise ConfigError(
                f"{where}: vision_transformers: expected {len(sizes)} towers as in timm_model_ids, got {len(vits)}"
            )
        return cls(config, tuple(vits), sizes)

    @classmethod
    def read(cls, folder: str | Path) -> Architecture:
        """Read a folder's config.json (or its only `*config.json`).

        A `*_vit.json` in the same folder (tower -> timm's arguments, in order) describes towers of other sizes.

        Raises:
            ConfigError: missing file, invalid JSON, or not an OpenVLA checkpoint.
        """
        folder = Path(folder)
        path = folder / CONFIG
        if not path.is_file():
            found = [p for p in sorted(folder.glob("*config.json")) if "preprocessor" not in p.name]
            found = [p for p in found if not p.name.startswith(("tokenizer", "generation", "adapter"))]
            if len(found) != 1:
                hint = f"{CONFIG} not found" if folder.is_dir() else "folder not found"
                raise ConfigError(f"{folder}: {hint}; expected a checkpoint with {CONFIG} and safetensors files")
            path = found[0]
        config = _json(path)
        towers = sorted(folder.glob("*vit.json"))
        if isinstance(config, dict) and "vision_transformers" not in config and len(towers) == 1:
            described = _json(towers[0])
            config["vision_transformers"] = [v for v in described.values() if isinstance(v, dict)]
        return cls.of(config, str(path))

    def with_parts(self, proprio: int | None = None, action_head: bool | None = None) -> Architecture:
        """A copy with or without the parts that published checkpoints do not have; None keeps a part as it is."""
        config = dict(self.config)
        for key, given, value in (("proprio_dim", proprio, proprio), ("action_head", action_head, "l1")):
            if given is not None:
                config.pop(key, None)
                config |= {key: value} if given else {}
        return replace(self, config=config)

    def write(self, folder: Path, **changed: Any) -> None:
        """Write config.json with some keys changed."""
        (folder / CONFIG).write_text(json.dumps({**self.config, **changed}, indent=2) + "\n")

    @property
    def proprio(self) -> int:
        """Width of the proprio state, 0 for none."""
        return int(self.config.get("proprio_dim", 0))

    @property
    def action_head(self) -> bool:
        """Whether the checkpoint has a head for continuous actions."""
        return self.config.get("action_head") == "l1"

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.image_sizes[0]

    @property
    def text(self) -> Any:
        """Configuration of the language model as transformers' class."""
        from transformers import AutoConfig

        settings = dict(self.config["text_config"])
        kind = settings.pop("model_type")
        try:
            return AutoConfig.for_model(kind, **settings)
        except ValueError as error:
            raise ConfigError(f"text_config: {error}") from None

    @property
    def width(self) -> int:
        """Hidden size of the language model."""
        return int(self.text.hidden_size)

    def build_language_model(self) -> nn.Module:
        """The language model with its head and random weights, with SDPA attention."""
        import torch
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_config(self.text, attn_implementation="sdpa", dtype=torch.float32)
        return model


def published_config(
    text: dict[str, Any], image_size: int, padding: int, llm: str = "meta-llama/Llama-2-7b-hf"
) -> dict[str, Any]:
    """Content of the released 7B's config.json, without statistics.

    Args:
        text: configuration of the language model, with model_type and vocab_size.
        image_size: in pixels.
        padding: embedding rows beyond the tokenizer's tokens; OpenVLA counts action tokens from there.
        llm: name of the language model.
    """
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "hf_llm_id": llm,
        "image_resize_strategy": "resize-naive",
        "image_sizes": [image_size, image_size],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "norm_stats": {},
        "output_projector_states": False,
        "pad_to_multiple_of": padding,
        "pad_token_id": text.get("pad_token_id"),
        "text_config": text,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def _published(identifier: str, where: str) -> VitConfig:
    if identifier not in PUBLISHED:
        raise ConfigError(
            f"{where}: timm_model_ids: unknown model {identifier!r}. {did_you_mean(identifier, PUBLISHED)} "
            "Describe towers of other sizes under the key vision_transformers."
        )
    return PUBLISHED[identifier]


def _json(path: Path) -> Any:
    return load_json(path, constants=True)
