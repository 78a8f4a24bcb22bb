"""Which of a network's weights are trained: a LoRA adapter, over a quantised language model or not, or the weights.

`attach` serves every family: it takes a network with its published names and freezes, adapts and casts it as the
configuration says. The frozen weights keep their type; what is trained is float32 and computes under autocast.
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

ALL_LINEAR = "all-linear"
OPENVLA = "openvla"

_QUANTIZED = ("Linear4bit", "Linear8bitLt")


@dataclass(frozen=True)
class Parts:
    """Names of a network's submodules, as `network.get_submodule` takes them.

    Attributes:
        language_model: a Hugging Face causal language model.
        vision: frozen by tuning frozen-vision.
        whole: trained whatever the adapter, in full and without LoRA: modules that the checkpoint does not hold.
        adapted: where LoRA goes; () for everywhere.
        frozen: never trained nor adapted, whatever the tuning: a layer that no output depends on, for one.
    """

    language_model: str
    vision: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


def attach(net: nn.Module, config: TrainConfig, parts: Parts) -> nn.Module:
    """Freeze, adapt and cast a network as `config.adapter`, `config.tune` and `config.lora` say.

    Args:
        net: the network, quantised already where the adapter is qlora or int8 (`needs_quantized` names the layers).
        config: of the run; its seed draws the adapter's first weights.
        parts: of the network.

    Returns:
        the network itself (adapter none), or a PEFT model around it.

    Raises:
        ConfigError: targets that match nothing; a quantised adapter on layers that are not quantised.
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
            parameter.data = parameter.data.float()  # a bf16 weight would swallow most of a step's small updates
    return net


def needs_quantized(net: nn.Module, language_model: str) -> list[str]:
    """Names of the layers that qlora and int8 quantise: the language model's linear layers but its output head."""
    head = _output_head(net, language_model)
    inside = f"{language_model}." if language_model else ""
    return [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside) and n != head]


def check_quantization(adapter: AdapterKind, device: torch.device) -> None:
    """Raise ConfigError, before anything is loaded, where qlora or int8 cannot work."""
    if adapter not in ("qlora", "int8"):
        return
    bnb = bitsandbytes()
    if device.type not in ("cuda", "cpu", "xpu"):
        raise ConfigError(f"--adapter {adapter}: bitsandbytes cannot quantise on {device.type}. Take --adapter lora.")
    probe = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16))
    try:
        quantize(probe, ["0"], adapter, device)
        with torch.no_grad():
            probe(torch.zeros(1, 64, device=device, dtype=torch.bfloat16))
    except Exception as error:  # bitsandbytes raises many kinds where its native library does not fit
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--adapter {adapter}: bitsandbytes {bnb.__version__} does not work on {device} here: {first}. "
            "Update it (pip install -U bitsandbytes), or take --adapter lora."
        ) from None


def quantize(net: nn.Module, names: Sequence[str], adapter: AdapterKind, device: torch.device) -> None:
    """Quantise layers of a network that is in memory, one at a time, on `device`; `load_into` does so while reading."""
    for name in names:
        _quantize_layer(net, name, "nf4" if adapter == "qlora" else "int8", device)


def _quantize_layer(net: nn.Module, name: str, how: Quantization, device: torch.device) -> None:
    old = net.get_submodule(name)
    new = replace_linear(net, name, how, old.weight.dtype)
    new.weight = quantized(old.weight.detach(), how, device)
    new.to(device)


def lora_targets(net: nn.Module, lora: LoraConfig, parts: Parts) -> list[str]:
    """Names of the layers that get an adapter.

    "all-linear" is every linear layer but the output head. PEFT's own word for it spares the head only where the
    network is a transformers model with the head at its top, so that the set is made here. "openvla" is what
    OpenVLA's fine-tuning script adapts under the PEFT it pins (0.11): the output head and the ViTs' patch embedding
    too (110,828,288 parameters at rank 32 in the 7B, of which 1.3 million lie in blocks that no output depends on).

    Raises:
        ConfigError: nothing matches.
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
    if lora.targets == ALL_LINEAR:
        return [name for name in linear if name != head]
    if lora.targets == OPENVLA:
        return [n for n, m in layers.items() if not isinstance(m, nn.Conv2d) or n.endswith("patch_embed.proj")]
    wanted = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    found: list[str] = []
    for pattern in wanted:
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
            raise ConfigError(f"adapter: {config.adapter}: the language model was not quantised")
        # PEFT asks the network itself which of bitsandbytes' layers to expect
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
    """The weights that OpenVLA's table of fine-tuning (arXiv 2406.09246, table 1) trains.

    Its "last layer" is the language model's last block with the token embedding and the output head: only so do the
    table's 465.1 million parameters come out. "Sandwich" adds the vision encoder and the projector (914.2 million
    with one encoder), "frozen vision" is everything but the encoder.
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
    """The decoder's blocks: the longest list of modules in it."""
    lists = [module for module in language_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(language_model).__name__}: holds no list of blocks; --tune cannot find the last one")
    return max(lists, key=len)


def _output_head(net: nn.Module, language_model: str) -> str | None:
    head = net.get_submodule(language_model).get_output_embeddings()
    return next((name for name, module in net.named_modules() if module is head), None) if head is not None else None


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(prefix == "" or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _matches(name: str, pattern: str) -> bool:
    """As PEFT matches: the end of a name at a dot, or a regular expression over the whole of it."""
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _whole_number(value: float) -> Any:
    return int(value) if float(value).is_integer() else value
