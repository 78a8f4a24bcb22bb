"""Checkpoint folders of safetensors: read whole or in part, load with little memory, quantise on the way, write back.

A folder holds `model.safetensors`, or shards with `model.safetensors.index.json` (Hugging Face's layout), or one
`*.safetensors` of any name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from oxe_curate.errors import ConfigError, CorruptError

_SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Quantization = Literal["nf4", "int8"]
QuantizationRule = Callable[[str], Quantization | None]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}

# What bitsandbytes tells that needs nobody's attention: at its import, to install a package that would fetch kernels
# from the network; at int8 products, that they are of float16. PEFT imports it too, so the filters are set here.
_SILENCED = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
}


def _is_relevant(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_SILENCED[record.name])


for _name in _SILENCED:
    logging.getLogger(_name).addFilter(_is_relevant)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: the file that holds it, its shape and dtype there."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder, not yet read.

    Attributes:
        tensors: name -> where and what it is.
        index: content of the index file; None where one file holds everything.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    index: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Look into a folder's safetensors files without reading a tensor.

        Raises:
            ConfigError: no such folder, no safetensors in it, a shard that is missing.
            CorruptError: a file that is truncated or damaged.
        """
        folder = Path(folder)
        index, files = _files(folder)
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            try:
                with safe_open(folder / file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        piece = opened.get_slice(name)
                        tensors[name] = StoredTensor(file, tuple(piece.get_shape()), _DTYPES[piece.get_dtype()])
            except (SafetensorError, KeyError) as error:
                raise CorruptError(f"{folder / file}: is truncated or damaged ({error}); copy it again") from None
        lost = sorted(set(index["weight_map"]) - set(tensors)) if index else []
        if lost:
            raise CorruptError(f"{folder}: {INDEX} names {lost[0]!r}, which {index['weight_map'][lost[0]]} lacks")  # type: ignore[index]
        return cls(folder, tensors, index)

    def read(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors on the CPU, file by file; each is a copy that outlives the file."""
        wanted = set(self.tensors) if names is None else set(names)
        for file in sorted({self.tensors[name].file for name in wanted}):
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in sorted(name for name in wanted if self.tensors[name].file == file):
                    yield name, opened.get_tensor(name).clone()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        return next(self.read([name]))[1]

    @property
    def layout(self) -> dict[str, list[str]]:
        """File -> the names it holds."""
        files: dict[str, list[str]] = {}
        for name, stored in self.tensors.items():
            files.setdefault(stored.file, []).append(name)
        return files


def _files(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give a checkpoint folder with config.json and safetensors files.")
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text())
            files = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CorruptError(f"{folder / INDEX}: is no index of shards: {error!r}") from None
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ConfigError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}. "
                "The download is not complete."
            )
        return index, files
    if (folder / _SINGLE).is_file():
        return None, [_SINGLE]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return None, found
    hint = "Pickled weights (*.bin, *.pt) are not read: convert them to safetensors." if _pickled(folder) else ""
    what = f"several safetensors files and no {INDEX}" if found else "no safetensors files"
    raise ConfigError(f"{folder}: holds {what}. {hint}".rstrip())


def _pickled(folder: Path) -> bool:
    return any(True for pattern in ("*.bin", "*.pt", "*.pth") for _ in folder.glob(pattern))


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint | str | Path,
    device: torch.device | str,
    dtype: torch.dtype | None,
    quantize: QuantizationRule | None = None,
    *,
    unused: Collection[str] = (),
    rename: Callable[[str], str] = lambda name: name,
) -> dict[str, torch.Tensor]:
    """Load a checkpoint strictly, one tensor after another: at no time is there more than one on the CPU.

    Args:
        module: on the meta device but for its buffers (see `skeleton`), whatever its parameters' dtype.
        checkpoint: or its folder.
        device: where the parameters go.
        dtype: of the parameters; None keeps each as stored.
        quantize: name of a linear layer ("language_model.model.layers.0.mlp.up_proj") -> how to store it, None for as
            it is. Such a layer is replaced by bitsandbytes' class; "nf4" is double-quantised.
        unused: names that the checkpoint may hold beside the module's.
        rename: name in the checkpoint -> name in the module.

    Returns:
        the unused tensors, on the CPU as stored, by their names in the checkpoint.

    Raises:
        ConfigError: names or shapes that do not match, listed; bitsandbytes is missing.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    wanted = dict(module.named_parameters()) | persistent_buffers(module)
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(wanted)
    places = {name: rename(name) for name in checkpoint.tensors}
    _compare(checkpoint, places, {name: tuple(p.shape) for name, p in wanted.items()}, {*unused, *tied})
    kept: dict[str, torch.Tensor] = {}
    for stored_name, tensor in checkpoint.read():
        name = places[stored_name]
        if name in tied:
            continue
        if stored_name in unused:
            kept[stored_name] = tensor
            continue
        parent_name, _, leaf = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        how = quantize(parent_name) if quantize and isinstance(parent, nn.Linear) else None
        if how is not None and leaf == "weight":
            parent = replace_linear(module, parent_name, how, tensor.dtype)
            parent.weight = quantized(tensor, how, device)
            continue
        tensor = tensor.to(device)
        if leaf in parent._buffers:
            parent._buffers[leaf] = tensor
        else:
            trained = wanted[name].requires_grad
            parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=trained and tensor.is_floating_point())
    for part in module.modules():  # buffers that no checkpoint holds keep their own precision
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = buffer.to(device)
    return kept


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that a checkpoint holds, by name."""
    saved = set(module.state_dict())
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _compare(
    checkpoint: Checkpoint, places: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]], unused: Collection[str]
) -> None:
    found = {places[name]: stored.shape for name, stored in checkpoint.tensors.items()}
    missing = sorted(set(wanted) - set(found))
    spare = sorted(name for name, place in places.items() if place not in wanted and name not in unused)
    shapes = sorted(name for name in set(wanted) & set(found) if wanted[name] != found[name])
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    if spare:
        problems.append(f"{len(spare)} tensors have no place in the model: {_some(spare)}")
    if shapes:
        told = [f"{name} is {list(found[name])} where {list(wanted[name])} is needed" for name in shapes[:3]]
        problems.append(f"{len(shapes)} tensors have another shape: {'; '.join(told)}")
    if problems:
        raise ConfigError(
            f"{checkpoint.folder}: the weights do not fit the model that its config.json describes: "
            + "; ".join(problems)
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose parameters are on the meta device and whose buffers (rotary frequencies) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def replace_linear(module: nn.Module, name: str, how: Quantization, compute: torch.dtype) -> nn.Module:
    """Put bitsandbytes' class in place of a linear layer, without a weight yet; returns the new layer."""
    bnb = bitsandbytes()
    old = module.get_submodule(name)
    bias = old.bias is not None
    if how == "nf4":
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias, compute_dtype=compute, quant_type="nf4", device="meta"
        )
        # else an evaluation on such a CPU repacks the weight, and training or merging after it would read garbage
        new.support_avx512bf16_for_cpu = False
    else:
        new = bnb.nn.Linear8bitLt(
            old.in_features, old.out_features, bias, has_fp16_weights=False, threshold=6.0, device="meta"
        )
    if bias:
        new.bias = old.bias
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)
    return new


def quantized(weight: torch.Tensor, how: Quantization, device: torch.device | str) -> nn.Parameter:
    """Quantise a linear layer's weight (out, in); moving it to the device does the work."""
    bnb = bitsandbytes()
    if how == "nf4":
        return bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
    return bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)


def bitsandbytes() -> Any:
    """The module. Raises ConfigError where it is not installed."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ConfigError(f"quantisation needs bitsandbytes: pip install 'oxe-curate[train]' ({error})") from None
    return bnb


def plan_files(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> dict[str, list[str]]:
    """Spread tensors over files of at most `shard_bytes` (a larger tensor has its own), in the order given."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, stored in tensors.items():
        if shards[-1] and filled + stored.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += stored.size
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write_weights(
    folder: Path,
    layout: Mapping[str, Collection[str]],
    get: Callable[[str], torch.Tensor],
    index: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint file by file, so that one shard at a time is in memory.

    Args:
        folder: exists.
        layout: file -> names, as of `plan` or `Checkpoint.layout`.
        get: tensor of a name, called once for each.
        index: content of the index, where it is to be as it was; else it is made for several files.
    """
    total = 0
    weight_map: dict[str, str] = {}
    for file, names in layout.items():
        tensors = {name: get(name).detach().to("cpu").contiguous() for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
        partial = folder / f"{file}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / file)
    if index is None and len(layout) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    if index is not None:
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
