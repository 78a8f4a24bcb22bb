"""Load RoboFlamingo from a base folder:

    config.json            {"model_type": "roboflamingo", "cross_attn_every_n_layers": 1, ...}; see `FlamingoSpec.read`
    vision/                a transformers CLIP model's config.json and safetensors (openai/clip-vit-large-patch14)
    language/              a transformers causal language model and its tokenizer; MPT-1B's first form too
    flamingo.safetensors   or another file given by "weights" in config.json: an OpenFlamingo or RoboFlamingo
                           checkpoint (.pt or .safetensors), or all weights (then vision/ and language/ need none)

`load_model` also accepts a folder with one configuration and one safetensors file of all weights, under any names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oxe_curate.errors import ConfigError
from oxe_curate.storage import stderr_is_terminal
from oxe_curate.train.models.roboflamingo import mosaic as flamingo_mosaic
from oxe_curate.train.models.roboflamingo.config import END, IMAGE, LANGUAGE, VISION, WEIGHTS, FlamingoSpec, HeadSpec
from oxe_curate.train.models.roboflamingo.names import TOWER, from_published, read_weights
from oxe_curate.train.models.roboflamingo.net import Flamingo, layers_path
from oxe_curate.train.models.roboflamingo.vit import ClipTower, from_transformers
from oxe_curate.train.models.weights import Checkpoint, skeleton

_HEAD = ("lm_head.", "frame_embs")
EMBEDDINGS = (".wte.weight", ".embed_tokens.weight", ".embed_in.weight")
"""Suffixes of the names of input embeddings."""


def load_model(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Flamingo:
    """Load a network with its policy head.

    Args:
        folder: a base folder whose weights include a head, or a folder with one configuration (*config.json) and one
            safetensors file of all weights.
        device: of the weights.
        dtype: of the weights.

    Raises:
        ConfigError: missing files, or weights that do not match the configuration.
        CorruptError: a damaged file.
    """
    folder = Path(folder)
    net = build_flamingo(folder, FlamingoSpec.read(folder), None, dtype, trained_head=True)
    net.to(device)
    return net


def build_flamingo(
    folder: Path,
    spec: FlamingoSpec,
    head: HeadSpec | None,
    dtype: torch.dtype,
    trained_head: bool = False,
    exact: Callable[[str], bool] = lambda name: False,
) -> Flamingo:
    """Build the network of a folder on the CPU and load all its weights.

    Args:
        folder: a base folder.
        spec: its configuration.
        head: the head to build; loaded if the weights contain a matching one, random otherwise. None: that of the
            weights.
        dtype: of the weights.
        trained_head: raise if the weights have no matching head.
        exact: name of a weight -> whether to keep it in float32, for training.

    Raises:
        ConfigError: see `load_model`.
    """
    file = _weights_file(folder, spec)
    found = read_weights(file) if file is not None else {}
    if spec.language is None and (mosaic := flamingo_mosaic.read_mosaic_config(folder / LANGUAGE)) is not None:
        spec = replace(spec, language=mosaic)
        found = flamingo_mosaic.read_language(folder / LANGUAGE) | {
            n.removeprefix("module."): v for n, v in found.items()
        }
    language = _language(folder, spec, found, dtype)
    state = from_published(found, layers_path(language))
    chosen = head or _head_of_weights(state, spec.head) or spec.head or HeadSpec()
    net = Flamingo(
        ClipTower(spec.vision),
        language,
        chosen.build(language.config.hidden_size),
        spec.every,
        _media_token(folder, spec),
        chosen.window,
        *_resampler(state),
        history=chosen.history and chosen.kind == "mlp",
        early=spec.early,
    )
    own = {name: value for name, value in net.state_dict().items() if name.startswith(_HEAD)}
    stored = {name: value for name, value in state.items() if name.startswith(_HEAD)}
    fits = set(own) == set(stored) and all(own[name].shape == value.shape for name, value in stored.items())
    if trained_head and not fits:
        what = f"the policy head is not a matching {chosen.kind} head" if stored else "no policy head (lm_head.*)"
        raise ConfigError(f"{file or folder}: {what}. Train one on this base first.")
    if not fits:
        state = {name: value for name, value in state.items() if name not in stored}
    if not any(name.startswith(TOWER) for name in state):
        tower = dict(Checkpoint.open(folder / VISION).read())
        state |= {TOWER + name: value for name, value in from_transformers(tower).items()}

    def allowed(name: str) -> bool:
        """Whether a weight may be missing in the file."""
        if name.startswith(_HEAD):
            return not fits
        return spec.language is None and _of_decoder(name)  # loaded by from_pretrained

    _fill(net, state, str(file or folder), allowed)
    for name, parameter in net.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if exact(name) else dtype)
    return net  # buffers (rotary frequencies) keep their precision


def _head_of_weights(state: Mapping[str, Tensor], configured: HeadSpec | None) -> HeadSpec | None:
    """The head in the weights, or None; `configured` adds values that weights do not contain (window, GPT's heads)."""
    configured = configured or HeadSpec()
    if "lm_head.gripper.mlp.6.weight" not in state:
        return None
    hidden = state["lm_head.gripper.mlp.0.weight"].shape[1]
    chunk = state["lm_head.gripper.mlp.6.weight"].shape[0]
    base = replace(configured, chunk=chunk, hidden=hidden, layers=None, heads=None)
    if "lm_head.rnn.weight_hh_l0" in state:
        return replace(base, kind="lstm", history=False, layers=_count(state, r"lm_head\.rnn\.weight_hh_l(\d+)"))
    if "lm_head.gpt.wpe.weight" in state:
        window = state["lm_head.gpt.wpe.weight"].shape[0]
        layers = _count(state, r"lm_head\.gpt\.h\.(\d+)\.ln_1\.weight")
        return replace(base, kind="gpt", history=False, window=window, layers=layers, heads=configured.heads)
    return replace(base, kind="mlp", history="frame_embs" in state)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.fullmatch(pattern, name)))


def _resampler(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Depth and latents of the resampler in the weights (default: OpenFlamingo's)."""
    if "perceiver.latents" not in state:
        return 6, 64
    return _count(state, r"perceiver\.layers\.(\d+)\.0\.to_q\.weight"), state["perceiver.latents"].shape[0]


def _fill(net: Flamingo, state: dict[str, Tensor], where: str, allowed: Callable[[str], bool]) -> None:
    """Load weights strictly. Raises ConfigError for missing or unknown names and wrong shapes."""
    own = net.state_dict(keep_vars=True)
    tied = {id(own[name]) for name in state if name in own}
    wrong = {
        "are missing": [n for n in own if n not in state and id(own[n]) not in tied and not allowed(n)],
        "are not part of the model": [n for n in state if n not in own],
        "have a wrong shape": [n for n in state if n in own and state[n].shape != own[n].shape],
    }
    problems = [f"{len(names)} {what}, first {min(names)}" for what, names in wrong.items() if names]
    if problems:
        raise ConfigError(f"{where}: weights do not match the configuration: {'; '.join(problems)}")
    net.load_state_dict(state, strict=False, assign=True)
    net.lang_encoder.tie_weights()


def _of_decoder(name: str) -> bool:
    return name.startswith("lang_encoder.") and ".gated_cross_attn_layer." not in name


def _weights_file(folder: Path, spec: FlamingoSpec) -> Path | None:
    if spec.weights is not None:
        return folder / spec.weights
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    found = sorted(path for kind in ("*.safetensors", "*.pt") for path in folder.glob(kind))
    if len(found) > 1:
        raise ConfigError(
            f'{folder}: several files of weights; choose one in config.json: "weights": "{found[0].name}"'
        )
    return found[0] if found else None


def _media_token(folder: Path, spec: FlamingoSpec) -> int:
    if spec.media_token is not None:
        return int(spec.media_token)
    return int(tokenizer(folder).convert_tokens_to_ids(IMAGE))


def tokenizer(folder: Path) -> Any:
    """The decoder's tokenizer with Flamingo's two tokens, which are added in OpenFlamingo's order if missing.

    Raises:
        ConfigError: no tokenizer in language/.
    """
    from transformers import AutoConfig, AutoTokenizer

    # transformers reads the configuration of the model, but does not know the first MPT
    first_mpt = flamingo_mosaic.read_mosaic_config(folder / LANGUAGE) is not None
    settings = {"config": AutoConfig.for_model("mpt")} if first_mpt else {}
    try:
        found = AutoTokenizer.from_pretrained(folder / LANGUAGE, **settings)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{folder / LANGUAGE}: cannot read a tokenizer: {first}") from None
    found.add_special_tokens({"additional_special_tokens": [END, IMAGE]})
    if found.pad_token is None:
        found.add_special_tokens({"pad_token": "<PAD>"})
    found.padding_side = "right"
    return found


def _language(folder: Path, spec: FlamingoSpec, found: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The decoder: from its configuration if the weights contain it, otherwise from language/ with its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    if not stderr_is_terminal():
        logging.disable_progress_bar()  # it would clutter files and pipes
    rows = next((value.shape[0] for name, value in found.items() if name.endswith(EMBEDDINGS)), None)
    try:
        if spec.language is not None:
            settings = dict(spec.language)
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            config.vocab_size = rows or config.vocab_size
            language = skeleton(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype))
            flamingo_mosaic.add_norms(language)
            language.tie_weights()
            return language
        language = AutoModelForCausalLM.from_pretrained(folder / LANGUAGE, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        where = folder / LANGUAGE if spec.language is None else folder
        raise ConfigError(f"{where}: cannot build the decoder: {first}") from None
    held = language.get_input_embeddings().num_embeddings
    rows = rows or max(held, 0 if spec.media_token is not None else len(tokenizer(folder)))
    if rows != held:
        language.resize_token_embeddings(rows, mean_resizing=False)
    return language
