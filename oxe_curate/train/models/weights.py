"""Checkpoint folders of safetensors files: read, load with little memory, quantize while loading, write.

A folder contains `model.safetensors`, or shards with `model.safetensors.index.json` (transformers' layout), or one
`*.safetensors` file of any name.
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

from oxe_curate.atomic import atomic_file
from oxe_curate.errors import ConfigError, CorruptError, quoted
from oxe_curate.inputs import load_json

_SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Quantization = Literal["nf4", "int8"]
QuantizationRule = Callable[[str], Quantization | None]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}

# Irrelevant warnings of bitsandbytes: at import, to install a package that downloads kernels; at int8 products, that
# they are float16. PEFT imports bitsandbytes too, so the filters are set here.
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
    """A tensor on disk: file, shape and dtype."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder, before they are read.

    Attributes:
        tensors: name -> file, shape and dtype.
        index: content of the index file; None for a single file.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    index: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the headers of a folder's safetensors files.

        Raises:
            ConfigError: the folder, its safetensors files or some shards are missing.
            CorruptError: a file is truncated or damaged.
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
            except (SafetensorError, KeyError, OSError, ValueError, OverflowError, MemoryError) as error:
                raise CorruptError(f"{folder / file}: truncated or damaged file ({error}); copy it again") from None
        lost = sorted(set(index["weight_map"]) - set(tensors)) if index else []
        if index and lost:
            file = index["weight_map"][lost[0]]
            raise CorruptError(f"{folder}: {INDEX} lists {lost[0]!r}, but {file} does not contain it")
        return cls(folder, tensors, index)

    def read(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors on the CPU, file by file, as copies."""
        chosen = set(self.tensors) if names is None else set(names)
        for file in sorted({self.tensors[name].file for name in chosen}):
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in sorted(name for name in chosen if self.tensors[name].file == file):
                    yield name, opened.get_tensor(name).clone()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        return next(self.read([name]))[1]

    @property
    def layout(self) -> dict[str, list[str]]:
        """File -> names of its tensors."""
        files: dict[str, list[str]] = {}
        for name, stored in self.tensors.items():
            files.setdefault(stored.file, []).append(name)
        return files


def _files(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: folder not found; expected a checkpoint with config.json and safetensors files")
    if (folder / INDEX).is_file():
        index = load_json(folder / INDEX, error=CorruptError)
        try:
            files = sorted(set(index["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise CorruptError(f"{folder / INDEX}: not an index of shards: {error!r}") from None
        if odd := [file for file in files if not isinstance(file, str) or Path(file).name != file]:
            raise CorruptError(f"{folder / INDEX}: expected names of files in this folder, got {quoted(odd[0])}")
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ConfigError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}. "
                "Complete the download."
            )
        return index, files
    if (folder / _SINGLE).is_file():
        return None, [_SINGLE]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return None, found
    hint = "Pickled weights (*.bin, *.pt) are not supported; convert them to safetensors." if _pickled(folder) else ""
    what = f"several safetensors files and no {INDEX}" if found else "no safetensors files"
    raise ConfigError(f"{folder}: contains {what}. {hint}".rstrip())


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
    """Load a checkpoint strictly, one tensor at a time, so that at most one is on the CPU.

    Args:
        module: parameters on the meta device, buffers real (see `skeleton`).
        checkpoint: a checkpoint or its folder.
        device: of the parameters.
        dtype: of the parameters; None keeps the stored dtypes.
        quantize: name of a linear layer ("language_model.model.layers.0.mlp.up_proj") -> quantization or None. A
            quantized layer is replaced by bitsandbytes' class; "nf4" uses double quantization.
        unused: names that the checkpoint may contain in addition to the module's.
        rename: name in the checkpoint -> name in the module.

    Returns:
        the unused tensors on the CPU, under their names in the checkpoint.

    Raises:
        ConfigError: names or shapes do not match, or bitsandbytes is not installed.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    expected = dict(module.named_parameters()) | persistent_buffers(module)
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(expected)
    places = {name: rename(name) for name in checkpoint.tensors}
    _compare(checkpoint, places, {name: tuple(p.shape) for name, p in expected.items()}, {*unused, *tied})
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
            trained = expected[name].requires_grad
            parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=trained and tensor.is_floating_point())
    for part in module.modules():  # buffers outside the checkpoint keep their precision
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = buffer.to(device)
    return kept


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that belong to a checkpoint, by name."""
    saved = set(module.state_dict())
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _compare(
    checkpoint: Checkpoint, places: Mapping[str, str], expected: Mapping[str, tuple[int, ...]], unused: Collection[str]
) -> None:
    found = {places[name]: stored.shape for name, stored in checkpoint.tensors.items()}
    missing = sorted(set(expected) - set(found))
    spare = sorted(name for name, place in places.items() if place not in expected and name not in unused)
    shapes = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}")
    if spare:
        problems.append(f"{len(spare)} tensors are not part of the model: {_some(spare)}")
    if shapes:
        listed = [f"{name}: expected {list(expected[name])}, got {list(found[name])}" for name in shapes[:3]]
        problems.append(f"{len(shapes)} tensors have a wrong shape: {'; '.join(listed)}")
    if problems:
        raise ConfigError(f"{checkpoint.folder}: the weights do not match config.json: " + "; ".join(problems))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with parameters on the meta device and real buffers (rotary frequencies)."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def replace_linear(module: nn.Module, name: str, how: Quantization, compute: torch.dtype) -> nn.Module:
    """Replace a linear layer by bitsandbytes' class, without a weight yet; returns the new layer."""
    bnb = bitsandbytes()
    old = module.get_submodule(name)
    bias = old.bias is not None
    if how == "nf4":
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, bias, compute_dtype=compute, quant_type="nf4", device="meta"
        )
        # otherwise evaluation on such a CPU repacks the weight, which breaks training or merging afterwards
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
    """Quantize a linear layer's weight (out, in); bitsandbytes quantizes when it moves to the device."""
    bnb = bitsandbytes()
    if how == "nf4":
        return bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
    return bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)


def bitsandbytes() -> Any:
    """Import bitsandbytes. Raises ConfigError if it is not installed."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ConfigError(f"quantization needs bitsandbytes: pip install 'oxe-curate[quantize]' ({error})") from None
    return bnb


def plan_files(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> dict[str, list[str]]:
    """Assign tensors to files of at most `shard_bytes` in the given order; a larger tensor gets its own file."""
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
    """Write a checkpoint file by file, with one shard in memory at a time.

    Args:
        folder: must exist.
        layout: file -> names, from `plan_files` or `Checkpoint.layout`.
        get: name -> tensor, called once for each name.
        index: content of the index to write; None: create one if there are several files.
    """
    total = 0
    weight_map: dict[str, str] = {}
    for file, names in layout.items():
        tensors = {name: get(name).detach().to("cpu").contiguous() for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
        with atomic_file(folder / file) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
    if index is None and len(layout) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    if index is not None:
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
