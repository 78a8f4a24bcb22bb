"""Parallel decoding: all actions of a chunk in one forward pass, after OpenVLA-OFT (Kim et al. 2025).

A sample is a prompt followed by `slots` positions, one for each action dimension (K * 7), whose hidden states give the
actions. The first slot is the last token of the prompt, where a pretrained model already predicts the first action id;
the others have zero embeddings, so that no action leaks into the input. Slots attend to each other in both directions;
everything else stays causal, as in pretraining. OpenVLA-OFT uses the same positions, but lets the whole sequence attend
in both directions and appends a blank and a stop token, which are not needed here.

    position   0     1 .. P    P+1 ..  L-slots      L-slots+1 .. L-1     L ..
    holds      BOS   patches   prompt  last token   zeros                padding
    output                             slot 0       slots 1 .. K*7-1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray


def blank_ids(prompts: Sequence[Sequence[int]], slots: int, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-padded prompts with room for the slots.

    Args:
        prompts: token ids of n prompts, not empty.
        slots: K * 7.
        pad_id: id of blank slots and padding; `slot_embeddings` zeroes the former, attention masks the latter.

    Returns:
        ids, int64 (n, widest), and lengths, int64 (n,): length of each row up to its last slot.
    """
    lengths = np.array([len(prompt) + slots - 1 for prompt in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), pad_id, np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, lengths


def slot_positions(length: torch.Tensor, slots: int) -> torch.Tensor:
    """Positions of the slots, int64 (n, slots), in rows whose last slot ends at `length` (n,)."""
    return length[:, None] - slots + torch.arange(slots, device=length.device)


def slot_embeddings(embeddings: torch.Tensor, length: torch.Tensor, slots: int) -> torch.Tensor:
    """Set all slots except the first, and the padding, to zero.

    Args:
        embeddings: (n, T, D), of the whole sequence.
        length: int64 (n,): length of each row up to its last slot, patches included.
        slots: K * 7.

    Returns:
        (n, T, D), new.
    """
    place = torch.arange(embeddings.shape[1], device=embeddings.device)
    prompt = place[None] <= length[:, None] - slots
    return embeddings.masked_fill(~prompt[..., None], 0)


def parallel_mask(length: torch.Tensor, slots: int, width: int) -> torch.Tensor:
    """Attention mask.

    Args:
        length: int64 (n,): end of each row, patches included; padding follows.
        slots: number of slots at the end of each row.
        width: T, of the padded batch.

    Returns:
        bool (n, 1, T, T), True if a query (row) attends to a key (column), for `scaled_dot_product_attention`. Every
        query, padding included, attends to the first token, so that no row of the softmax is empty.
    """
    place = torch.arange(width, device=length.device)
    query, key = place[None, :, None], place[None, None, :]
    end = length[:, None, None]
    slot = (query >= end - slots) & (key >= end - slots)
    return (((key <= query) | slot) & (key < end))[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mask to add to attention scores: 0 where True, minus infinity elsewhere.

    Boolean masks would be converted again in every layer.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def gather_slots(states: torch.Tensor, length: torch.Tensor, slots: int) -> torch.Tensor:
    """Select hidden states (n, T, D) at the slots: (n, slots, D)."""
    place = slot_positions(length, slots)
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[-1]))


def slot_loss(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of action ids at the slots.

    Args:
        logits: (n, K * 7, V).
        ids: int64 (n, K, 7).
        mask: bool (n, K), False for padding.

    Returns:
        float32 (n,): mean over the real actions of each sample; 0 if it has none.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return masked_mean(loss, mask)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of (n, K, 7) over the actions in a mask (n, K): (n,), 0 for a sample without any."""
    weight = mask[..., None].to(values.dtype).expand_as(values)
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def best_action_ids(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The most likely action id of each slot.

    Args:
        logits: (..., V).
        token_ids: int64 (bins,): ids of action tokens.

    Returns:
        int64 (...): ids.
    """
    return token_ids[logits[..., token_ids].argmax(-1)]
