"""Collate rows into OpenVLA's batches: prompts, action ids and the positions of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bins import ActionBins
from oxe_curate.train.data.batch import IGNORE, Batch, Rows, TextRows, pad_right
from oxe_curate.train.data.mixed import packed
from oxe_curate.train.models.base import PolicySpec
from oxe_curate.train.models.openvla.parallel import blank_ids
from oxe_curate.train.models.openvla.prompt import Ids, Prompter

_TILE = 8
"""Pad sequences to a multiple: faster matrix products and attention, and fewer lengths to compile."""


@dataclass(frozen=True, eq=False)
class OpenVLACollator:
    """Collates rows; uses only the current observation.

    A batch contains, for n robot samples, C cameras, K actions: images uint8 (n, C, S, S, 3); random (n, k); actions
    and action_ids (n, K, 7); action_mask (n, K); proprio (n, P) if the model has proprio; input_ids (n, L), padded on
    the right; and either, for autoregressive decoding, prompt_length (n,) with places and targets (n, T): positions of
    hidden states, patches included, and the ids to predict from them (-100: none); or, for parallel decoding, length
    (n,): end of the last slot, patches included.

    For m image-text samples: text_images (m, S, S, 3), text_ids, text_places, text_targets, text_factor (m,).

    Attributes:
        prompter: of the model.
        tokens: int64 (bins,): bin -> token id; None for continuous actions, without action_ids.
        patches: per image. prefix: number of positions between BOS and the prompt of a robot sample.
        chunk: K. proprio: P.
        parallel: decode all slots in one pass.
    """

    prompter: Prompter
    tokens: NDArray[np.int64] | None
    patches: int
    prefix: int
    chunk: int
    proprio: int = 0
    parallel: bool = False

    def __call__(self, rows: Rows) -> Batch:
        """See the class."""
        mask = rows.action_mask[:, -1, : self.chunk]
        batch: Batch = {
            "images": packed(rows.images[:, -1]),
            "random": torch.from_numpy(rows.random),
            "actions": torch.from_numpy(np.ascontiguousarray(rows.actions[:, -1, : self.chunk])),
            "action_mask": torch.from_numpy(np.ascontiguousarray(mask)),
        }
        if self.proprio:
            batch["proprio"] = torch.from_numpy(np.ascontiguousarray(rows.proprio))
        prompts = [self.prompter.prompt(instruction) for instruction in rows.instruction]
        if self.tokens is not None:
            ids = self.tokens[rows.bins[:, -1, : self.chunk]]
            batch["action_ids"] = torch.from_numpy(ids)
        if self.parallel:
            batch |= self._slots(prompts)
        else:
            batch |= self._sequence(prompts, ids, mask)
        if rows.texts is not None and len(rows.texts.question):
            batch |= self._texts(rows.texts)
        return batch

    def _sequence(self, prompts: Sequence[Ids], ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> Batch:
        n, count = len(prompts), self.chunk * 7
        stop = np.full((n, 1), self.prompter.eos, np.int64)
        flat = ids.reshape(n, count)
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        sequences = [[*prompt, *row.tolist()] for prompt, row in zip(prompts, np.hstack([flat, stop]), strict=True)]
        targets = np.where(np.repeat(mask, 7, axis=1), flat, IGNORE)
        return {
            "input_ids": self._padded(sequences, self.prefix),
            "prompt_length": torch.from_numpy(lengths),
            "places": torch.from_numpy(lengths[:, None] + self.prefix - 1 + np.arange(count + 1)),
            "targets": torch.from_numpy(np.hstack([targets, stop])),
        }

    def _slots(self, prompts: Sequence[Ids]) -> Batch:
        ids, lengths = blank_ids(prompts or [[self.prompter.bos]], self.chunk * 7, self.prompter.pad)
        ids, lengths = ids[: len(prompts)], lengths[: len(prompts)]
        return {
            "input_ids": self._padded(list(ids), self.prefix),
            "length": torch.from_numpy(lengths + self.prefix),
        }

    def _texts(self, texts: TextRows) -> Batch:
        made = [self.prompter.text(q, a) for q, a in zip(texts.question, texts.answer, strict=True)]
        places = [[i + self.patches - 1 for i, label in enumerate(labels) if label != IGNORE] for _, labels in made]
        targets = [[label for label in labels if label != IGNORE] for _, labels in made]
        return {
            "text_images": packed(texts.images),
            "text_ids": self._padded([ids for ids, _ in made], self.patches),
            "text_places": torch.from_numpy(pad_right(places, 0)),
            "text_targets": torch.from_numpy(pad_right(targets, IGNORE)),
            "text_factor": torch.from_numpy(texts.factor),
        }

    def _padded(self, sequences: Sequence[Sequence[int]], prefix: int) -> torch.Tensor:
        longest = max(map(len, sequences), default=1)
        width = longest + -(longest + prefix) % _TILE
        ids = np.full((len(sequences), width), self.prompter.pad, np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        return torch.from_numpy(ids)


def bin_tokens(spec: PolicySpec) -> ActionTokens | None:
    """The action tokens of a spec, or None."""
    if spec.tokens is None:
        return None
    ids = np.asarray(spec.tokens, np.int64)
    return ActionTokens(
        token_id=ids,
        piece=(None,) * len(ids),
        count=None,
        rank=np.arange(len(ids), dtype=np.int32),
        action_bins=ActionBins(spec.bins, len(ids)),  # type: ignore[arg-type]  # checked by ActionBins
        vocabulary_size=int(ids.max()) + 1,
        rule="last",
    )
