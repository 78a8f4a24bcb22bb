"""Collate rows into RoboFlamingo's batches: distinct frames, one instruction per window, texts for co-training."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.train.data.batch import IGNORE, Batch, Rows, TextRows, pad_right
from oxe_curate.train.data.mixed import MixedImages, PixelArray, packed
from oxe_curate.train.models.openvla.prompt import Ids
from oxe_curate.train.models.roboflamingo.config import END, IMAGE
from oxe_curate.train.models.roboflamingo.model import tokenizer
from oxe_curate.train.models.roboflamingo.vision_cache import KEY_BYTES, VisionCache, key_of

_MAX_PROMPT = 32
"""Longer robot prompts are truncated to this number of tokens, as in the released code."""
_TILE = 8
"""Pad sequences to a multiple, so that few lengths are compiled; padding is always masked."""


@dataclass(frozen=True, eq=False)
class FlamingoPrompter:
    """OpenFlamingo's prompts. Picklable: the tokenizer is read at its first use.

    Attributes:
        base: base folder with the tokenizer.
    """

    base: Path
    _cache: dict[str, Ids] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer with Flamingo's special tokens."""
        return tokenizer(self.base)

    @property
    def pad(self) -> int:
        """Id of padding on the right."""
        return int(self.tokenizer.pad_token_id)

    def robot(self, instruction: str) -> Ids:
        """Ids of "<image>{instruction}<|endofchunk|>{eos}"."""
        return self._encode(f"{IMAGE}{instruction.strip()}{END}{self._end}")[:_MAX_PROMPT]

    def text(self, question: str, answer: str) -> tuple[Ids, Ids]:
        """Ids and labels of an image-text sample; labels cover the text after the question or the image."""
        asked = f"{IMAGE}Question:{question.strip()} Short answer:" if question else IMAGE
        before, whole = self._encode(asked), self._encode(f"{asked}{answer.strip()}{END}{self._end}")
        shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return whole, [IGNORE] * shared + whole[shared:]

    @property
    def _end(self) -> str:
        return self.tokenizer.eos_token or ""

    def _encode(self, text: str) -> Ids:
        with self._lock:  # tokenizers are not thread-safe, and several threads collate
            ids = self._cache.get(text)
            if ids is None:
                if len(self._cache) > 20_000:
                    self._cache.clear()
                ids = self._cache[text] = list(self.tokenizer(text)["input_ids"])
            return ids

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache={}, _lock=threading.Lock())


@dataclass(frozen=True, eq=False)
class FlamingoCollator:
    """Collates rows.

    Padding before the start of an episode repeats its first frame, which is encoded once. A batch contains, for n
    robot samples of W steps, C cameras and K actions with U distinct steps: frames (n, W), the index in U of each
    step; images uint8 (M, S, S, 3), those of the U * C images that are not in the cache, image_place (M,) in
    U * C, image_sample (M,) in n, image_key uint8 (M, 16) with a cache; cached (U * C - M, v, width) and cached_place;
    random (n, k); actions (n, W, K, 7); action_mask (n, W, K), False if action or observation is padding;
    observation_mask (n, W); input_ids and attention_mask (n, L).

    For m image-text samples: text_images (m, S, S, 3), text_ids, text_mask, text_labels (m, L'), text_factor (m,).

    Attributes:
        prompter: of the base.
        cache: of the vision tower's tokens.
    """

    prompter: FlamingoPrompter
    cache: VisionCache | None = None

    def __call__(self, rows: Rows) -> Batch:
        """See the class."""
        n, window = rows.observation_mask.shape
        seen = rows.observation_mask
        first = seen.argmax(1)
        # number the real steps; padding repeats the first one
        numbers = np.cumsum(seen.ravel()).reshape(n, window) - 1
        frames = np.where(seen, numbers, numbers[np.arange(n), first][:, None])
        # the U * C images of the real steps
        sample, step, camera = np.nonzero(np.broadcast_to(seen[..., None], rows.images.shape[:3]))
        batch: Batch = {
            "frames": torch.from_numpy(frames),
            "random": torch.from_numpy(rows.random),
            "actions": torch.from_numpy(np.ascontiguousarray(rows.actions)),
            "action_mask": torch.from_numpy(rows.action_mask & seen[..., None]),
            "observation_mask": torch.from_numpy(np.ascontiguousarray(seen)),
            **self._images(rows.images[sample, step, camera], sample),
        }
        ids = [self.prompter.robot(instruction) for instruction in rows.instruction]
        batch["input_ids"], batch["attention_mask"] = self._padded(ids)
        if rows.texts is not None and len(rows.texts.question):
            batch |= self._texts(rows.texts)
        return batch

    def _images(self, images: PixelArray, sample: NDArray[np.int64]) -> Batch:
        place = np.arange(len(images))
        found: Batch = {}
        if self.cache is not None:
            keys = _keys(images)
            held, tokens = self.cache.read(keys)
            place = np.delete(place, held)
            joined = b"".join(keys[i] for i in place)
            found = {
                "cached": tokens,
                "cached_place": torch.tensor(held, dtype=torch.long),
                "image_key": torch.from_numpy(np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES).copy()),
            }
        return {
            "images": packed(images[place] if self.cache is not None else images),
            "image_place": torch.from_numpy(place),
            "image_sample": torch.from_numpy(sample[place]),
            **found,
        }

    def _texts(self, texts: TextRows) -> Batch:
        made = [self.prompter.text(q, a) for q, a in zip(texts.question, texts.answer, strict=True)]
        ids, mask = self._padded([ids for ids, _ in made])
        labels = pad_right([labels for _, labels in made], IGNORE, _TILE)
        return {
            "text_images": packed(texts.images),
            "text_ids": ids,
            "text_mask": mask,
            "text_labels": torch.from_numpy(labels),
            "text_factor": torch.from_numpy(texts.factor),
        }

    def _padded(self, sequences: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        if not len(lengths):
            return torch.zeros((0, _TILE), dtype=torch.long), torch.zeros((0, _TILE), dtype=torch.bool)
        ids = pad_right(sequences, self.prompter.pad, _TILE)
        return torch.from_numpy(ids), torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None])


def _keys(images: PixelArray) -> list[bytes]:
    """The keys of flat images; an image that is resized on the device is known by its own pixels."""
    if not isinstance(images, MixedImages):
        return [key_of(image) for image in images]
    goal = images.shape[1:]
    rule = f"{images.resize} {images.size}"
    return [key_of(image, "" if image.shape == goal else f"{image.shape} {rule}") for image in images.sources()]
