"""RoboFlamingo from a folder: what a base holds, and the network built from it.

A base folder:

    config.json            {"model_type": "roboflamingo", "cross_attn_every_n_layers": 1, ...}; see `FlamingoSpec.read`
    vision/                a Hugging Face CLIP model's config.json and safetensors (openai/clip-vit-large-patch14)
    language/              a Hugging Face causal language model and its tokenizer; MPT-1B's first form too
    flamingo.safetensors   or another file that config.json's "weights" names: an OpenFlamingo or RoboFlamingo
                           checkpoint (.pt or .safetensors), or the whole network (then vision/ and language/ need no
                           weights)

`load_model` also takes a folder with one configuration and one safetensors file of the whole network, under any name.
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
"""How names of input embeddings end."""


def load_model(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Flamingo:
    """Load a whole network, head included.

    Args:
        folder: a base folder whose weights include a head, or a folder with one configuration (*config.json) and one
            safetensors file of all weights.
        device: where it goes.
        dtype: of all weights.

    Raises:
        ConfigError: something is missing, weights and configuration do not fit.
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
    """The network of a folder, on the CPU: configuration, then every weight the folder has.

    Args:
        folder: a base folder.
        spec: its configuration.
        head: the head wanted; one in the weights that fits is loaded into it, else it starts anew. None takes the
            weights' own.
        dtype: of all weights but the exact ones.
        trained_head: refuse weights whose head does not fit, or that have none.
        exact: name of a weight -> whether it is float32, as what is trained further must be.

    Raises:
        ConfigError: as of `load_model`.
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
    wanted = head or _head_of_weights(state, spec.head) or spec.head or HeadSpec()
    net = Flamingo(
        ClipTower(spec.vision),
        language,
        wanted.build(language.config.hidden_size),
        spec.every,
        _media_token(folder, spec),
        wanted.window,
        *_resampler(state),
        history=wanted.history and wanted.kind == "mlp",
        early=spec.early,
    )
    own = {name: value for name, value in net.state_dict().items() if name.startswith(_HEAD)}
    stored = {name: value for name, value in state.items() if name.startswith(_HEAD)}
    fits = set(own) == set(stored) and all(own[name].shape == value.shape for name, value in stored.items())
    if trained_head and not fits:
        what = (
            f"its policy head is not the {wanted.kind} head wanted" if stored else "it has no policy head (lm_head.*)"
        )
        raise ConfigError(f"{file or folder}: {what}. Train one on this base first.")
    if not fits:
        state = {name: value for name, value in state.items() if name not in stored}
    if not any(name.startswith(TOWER) for name in state):
        tower = dict(Checkpoint.open(folder / VISION).read())
        state |= {TOWER + name: value for name, value in from_transformers(tower).items()}

    def allowed(name: str) -> bool:
        """Whether a weight may be missing from the file."""
        if name.startswith(_HEAD):
            return not fits
        return spec.language is None and _of_decoder(name)  # from_pretrained has loaded it

    _fill(net, state, str(file or folder), allowed)
    for name, parameter in net.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if exact(name) else dtype)
    return net  # buffers (rotary frequencies) keep their own precision


def _head_of_weights(state: Mapping[str, Tensor], told: HeadSpec | None) -> HeadSpec | None:
    """The head that the weights hold, None if none; `told` gives what weights do not tell (window, GPT's heads)."""
    told = told or HeadSpec()
    if "lm_head.gripper.mlp.6.weight" not in state:
        return None
    hidden = state["lm_head.gripper.mlp.0.weight"].shape[1]
    chunk = state["lm_head.gripper.mlp.6.weight"].shape[0]
    base = replace(told, chunk=chunk, hidden=hidden, layers=None, heads=None)
    if "lm_head.rnn.weight_hh_l0" in state:
        return replace(base, kind="lstm", history=False, layers=_count(state, r"lm_head\.rnn\.weight_hh_l(\d+)"))
    if "lm_head.gpt.wpe.weight" in state:
        window = state["lm_head.gpt.wpe.weight"].shape[0]
        layers = _count(state, r"lm_head\.gpt\.h\.(\d+)\.ln_1\.weight")
        return replace(base, kind="gpt", history=False, window=window, layers=layers, heads=told.heads)
    return replace(base, kind="mlp", history="frame_embs" in state)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.fullmatch(pattern, name)))


def _resampler(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Depth and latents of the resampler in the weights; OpenFlamingo's where there is none."""
    if "perceiver.latents" not in state:
        return 6, 64
    return _count(state, r"perceiver\.layers\.(\d+)\.0\.to_q\.weight"), state["perceiver.latents"].shape[0]


def _fill(net: Flamingo, state: dict[str, Tensor], where: str, allowed: Callable[[str], bool]) -> None:
    """Put weights in. Raises ConfigError for names or shapes that do not fit, and for weights that are missing."""
    own = net.state_dict(keep_vars=True)
    tied = {id(own[name]) for name in state if name in own}
    wrong = {
        "weights are missing": [n for n in own if n not in state and id(own[n]) not in tied and not allowed(n)],
        "have no place in the model": [n for n in state if n not in own],
        "have another shape": [n for n in state if n in own and state[n].shape != own[n].shape],
    }
    problems = [f"{len(names)} {what}, first {min(names)}" for what, names in wrong.items() if names]
    if problems:
        raise ConfigError(f"{where}: the weights do not fit the configuration: {'; '.join(problems)}")
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
        raise ConfigError(f'{folder}: several files of weights; name one in config.json: "weights": "{found[0].name}"')
    return found[0] if found else None


def _media_token(folder: Path, spec: FlamingoSpec) -> int:
    if spec.media_token is not None:
        return int(spec.media_token)
    return int(tokenizer(folder).convert_tokens_to_ids(IMAGE))


def tokenizer(folder: Path) -> Any:
    """The decoder's tokenizer with Flamingo's two tokens, added in OpenFlamingo's order where they are missing.

    Raises:
        ConfigError: no tokenizer in language/.
    """
    from transformers import AutoConfig, AutoTokenizer

    # transformers looks into the model's configuration, and does not know the first MPT's
    first_mpt = flamingo_mosaic.read_mosaic_config(folder / LANGUAGE) is not None
    settings = {"config": AutoConfig.for_model("mpt")} if first_mpt else {}
    try:
        found = AutoTokenizer.from_pretrained(folder / LANGUAGE, **settings)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{folder / LANGUAGE}: holds no tokenizer that can be read: {first}") from None
    found.add_special_tokens({"additional_special_tokens": [END, IMAGE]})
    if found.pad_token is None:
        found.add_special_tokens({"pad_token": "<PAD>"})
    found.padding_side = "right"
    return found


def _language(folder: Path, spec: FlamingoSpec, found: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The decoder: from its configuration where the weights hold it whole, else from language/ with its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    if not stderr_is_terminal():
        logging.disable_progress_bar()  # it would fill files and pipes
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
        raise ConfigError(f"{where}: no decoder can be built: {first}") from None
    held = language.get_input_embeddings().num_embeddings
    rows = rows or max(held, 0 if spec.media_token is not None else len(tokenizer(folder)))
    if rows != held:
        language.resize_token_embeddings(rows, mean_resizing=False)
    return language
