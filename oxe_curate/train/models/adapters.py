"""Select trained weights: a LoRA adapter (optionally over a quantized language model) or the network itself.

`attach` freezes, adapts and casts a network of any family as configured. Frozen weights keep their type; trained
weights are float32 and compute under autocast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.train.config import LoraConfig, TrainConfig
from oxe_curate.train.models.weights import Quantization, bitsandbytes, quantized, replace_linear
from oxe_curate.train.settings import AdapterKind, Tuning

_ALL_LINEAR = "all-linear"
_OPENVLA = "openvla"

_QUANTIZED = ("Linear4bit", "Linear8bitLt")


@dataclass(frozen=True)
class Parts:
    """Names of a network's submodules, as in `network.get_submodule`.

    Attributes:
        language_model: a transformers causal language model.
        vision: frozen by --tune frozen-vision.
        whole: always trained in full, without LoRA: modules that the checkpoint does not contain.
        adapted: modules that get LoRA; () for all.
        frozen: never trained or adapted, for example a layer that no output depends on.
    """

    language_model: str
    vision: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


def attach(net: nn.Module, config: TrainConfig, parts: Parts) -> nn.Module:
    """Freeze, adapt and cast a network according to `config.adapter`, `config.tune` and `config.lora`.

    Args:
        net: the network, already quantized if the adapter is qlora or int8 (see `needs_quantized`).
        config: of the run; its seed initializes the adapter.
        parts: of the network.

    Returns:
        the network itself (adapter none), or a PEFT model around it.

    Raises:
        ConfigError: LoRA targets match no layer; the adapter needs a quantized network and this one is not.
    """
    net.requires_grad_(False)
    if config.adapter == "none":
        for parameter in _tuned(net, config.tuning, parts):
            parameter.requires_grad_(True)
    else:
        net = _with_lora(net, config, parts)
    base = net.get_base_model() if hasattr(net, "get_base_model") else net
    for name in parts.whole:
        base.get_submodule(name).requires_grad_(True)
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # bf16 would round most small updates away
    return net


def needs_quantized(net: nn.Module, language_model: str) -> list[str]:
    """Names of the layers that qlora and int8 quantize: linear layers of the language model except its output head."""
    head = _output_head(net, language_model)
    inside = f"{language_model}." if language_model else ""
    return [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside) and n != head]


def check_quantization(adapter: AdapterKind, device: torch.device) -> None:
    """Raise ConfigError if qlora or int8 cannot work on this device; call before loading weights."""
    if adapter not in ("qlora", "int8"):
        return
    bnb = bitsandbytes()
    if device.type not in ("cuda", "cpu", "xpu"):
        raise ConfigError(f"--adapter {adapter}: bitsandbytes does not support {device.type}; use --adapter lora")
    probe = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16))
    try:
        quantize(probe, ["0"], adapter, device)
        with torch.no_grad():
            probe(torch.zeros(1, 64, device=device, dtype=torch.bfloat16))
    except Exception as error:  # bitsandbytes raises many kinds if its native library does not fit
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--adapter {adapter}: bitsandbytes {bnb.__version__} does not work on {device}: {first}. "
            "Update it (pip install -U bitsandbytes) or use --adapter lora."
        ) from None


def quantize(net: nn.Module, names: Sequence[str], adapter: AdapterKind, device: torch.device) -> None:
    """Quantize layers of a network in memory, one at a time, on `device`; `load_into` quantizes while loading."""
    for name in names:
        _quantize_layer(net, name, "nf4" if adapter == "qlora" else "int8", device)


def _quantize_layer(net: nn.Module, name: str, how: Quantization, device: torch.device) -> None:
    old = net.get_submodule(name)
    new = replace_linear(net, name, how, old.weight.dtype)
    new.weight = quantized(old.weight.detach(), how, device)
    new.to(device)


def lora_targets(net: nn.Module, lora: LoraConfig, parts: Parts) -> list[str]:
    """Names of the layers that get an adapter.

    "all-linear" is every linear layer except the output head; PEFT's own "all-linear" excludes the head only of a
    transformers model. "openvla" is the set of OpenVLA's fine-tuning script under PEFT 0.11, which it pins: it includes
    the output head and the ViTs' patch embedding (110,828,288 parameters at rank 32 in the 7B, of which 1.3 million
    are in blocks that no output depends on).

    Raises:
        ConfigError: no layer matches.
    """
    head = _output_head(net, parts.language_model)
    layers: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        adaptable = isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ in _QUANTIZED
        if (
            adaptable
            and not _below(name, (*parts.whole, *parts.frozen))
            and (not parts.adapted or _below(name, parts.adapted))
        ):
            layers[name] = module
    linear = [name for name, module in layers.items() if not isinstance(module, nn.Conv2d)]
    if lora.targets == _ALL_LINEAR:
        return [name for name in linear if name != head]
    if lora.targets == _OPENVLA:
        return [n for n, m in layers.items() if not isinstance(m, nn.Conv2d) or n.endswith("patch_embed.proj")]
    patterns = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    found: list[str] = []
    for pattern in patterns:
        matching = [name for name in layers if _matches(name, pattern)]
        if not matching:
            endings = {name.rpartition(".")[2] for name in layers}
            raise ConfigError(f"lora.targets: {pattern!r} matches no layer. {did_you_mean(pattern, endings)}")
        found += [name for name in matching if name not in found]
    return found


def _with_lora(net: nn.Module, config: TrainConfig, parts: Parts) -> nn.Module:
    import peft

    from oxe_curate.train.models.fast_lora import fuse

    targets = lora_targets(net, config.lora, parts)
    if config.adapter in ("qlora", "int8"):
        kind = _QUANTIZED[0] if config.adapter == "qlora" else _QUANTIZED[1]
        if not any(type(module).__name__ == kind for module in net.modules()):
            raise ConfigError(f"adapter: {config.adapter}: the language model is not quantized")
        # PEFT reads from these attributes which bitsandbytes layers to expect
        net.is_loaded_in_4bit, net.is_loaded_in_8bit = config.adapter == "qlora", config.adapter == "int8"
    settings = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=_whole_number(config.lora.alpha),
        lora_dropout=config.lora.dropout,
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[p.device for p in net.parameters() if p.is_cuda][:1]):
        torch.manual_seed(config.seed)  # the same first weights in every process
        model = peft.get_peft_model(net, settings)
    fuse(model)
    return model


def _tuned(net: nn.Module, tuning: Tuning, parts: Parts) -> Iterator[nn.Parameter]:
    """The weights trained by each kind of fine-tuning in OpenVLA (arXiv 2406.09246, table 1).

    "Last layer" is the last block of the language model with the token embedding and the output head, which matches
    the table's 465.1 million parameters. "Sandwich" adds the vision encoder and the projector (914.2 million with one
    encoder); "frozen vision" is everything except the encoder.
    """
    language_model = net.get_submodule(parts.language_model)
    last: set[int] = set()
    if tuning in ("last-layer", "sandwich"):
        chosen = (language_model.get_input_embeddings(), _blocks(language_model)[-1])
        for module in (*chosen, language_model.get_output_embeddings()):
            last |= {id(parameter) for parameter in module.parameters()}
    for name, parameter in net.named_parameters():
        inside = _below(name, (parts.language_model,))
        if _below(name, parts.frozen) or (tuning == "frozen-vision" and _below(name, parts.vision)):
            continue
        if tuning in ("full", "frozen-vision") or id(parameter) in last or (tuning == "sandwich" and not inside):
            yield parameter


def _blocks(language_model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks: its longest module list."""
    lists = [module for module in language_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(
            f"{type(language_model).__name__}: no list of blocks found; --tune cannot select the last one"
        )
    return max(lists, key=len)


def _output_head(net: nn.Module, language_model: str) -> str | None:
    head = net.get_submodule(language_model).get_output_embeddings()
    return next((name for name, module in net.named_modules() if module is head), None) if head is not None else None


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(prefix == "" or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _matches(name: str, pattern: str) -> bool:
    """PEFT's rule: the end of a name after a dot, or a regular expression that matches the full name."""
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _whole_number(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
