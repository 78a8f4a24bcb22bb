"""Parallel decoding: every action of a chunk in one forward pass, as OpenVLA-OFT showed.

A sample is its prompt, then `slots` positions that are read, one for each action dimension (K * 7). The first slot is
the prompt's last token, where a pretrained model already predicts the first action id; the others are zero embeddings,
so that no action can leak into the input. Slots see one another in both directions; all else stays causal, as the
language model was trained. OpenVLA-OFT reads the same positions, but lets the whole sequence attend in both directions
and appends a last blank and a stop token, which nothing reads: neither is needed here.

    position   0     1 .. P    P+1 ..  L-slots      L-slots+1 .. L-1     L ..
    holds      BOS   patches   prompt  last token   zeros                padding
    reads                              slot 0       slots 1 .. K*7-1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn


def blank_ids(prompts: Sequence[Sequence[int]], slots: int, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-padded prompts with room for the slots.

    Args:
        prompts: token ids of n prompts, not empty.
        slots: K * 7.
        pad_id: fills blank slots and padding alike; `slot_embeddings` blanks the former, attention skips the latter.

    Returns:
        ids, int64 (n, widest), and lengths, int64 (n,): of each row up to its last slot.
    """
    lengths = np.array([len(prompt) + slots - 1 for prompt in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), pad_id, np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids, lengths


def slot_positions(length: torch.Tensor, slots: int) -> torch.Tensor:
    """Where each slot lies: int64 (n, slots), for rows of `length` (n,) that end with their last slot."""
    return length[:, None] - slots + torch.arange(slots, device=length.device)


def slot_embeddings(embeddings: torch.Tensor, length: torch.Tensor, slots: int) -> torch.Tensor:
    """Zero every slot but the first, and the padding.

    Args:
        embeddings: (n, T, D), of the whole sequence.
        length: int64 (n,): of each row up to its last slot, patches included.
        slots: K * 7.

    Returns:
        (n, T, D), new.
    """
    place = torch.arange(embeddings.shape[1], device=embeddings.device)
    prompt = place[None] <= length[:, None] - slots
    return embeddings.masked_fill(~prompt[..., None], 0)


def parallel_mask(length: torch.Tensor, slots: int, width: int) -> torch.Tensor:
    """Who may look at whom.

    Args:
        length: int64 (n,): end of each row, patches included; what follows is padding, which no slot sees.
        slots: at the end of each row.
        width: T, of the padded batch.

    Returns:
        bool (n, 1, T, T), True where a query (row) sees a key (column), for `scaled_dot_product_attention`. Every
        query sees at least the first token, padding too, so that no row of the softmax is empty.
    """
    place = torch.arange(width, device=length.device)
    query, key = place[None, :, None], place[None, None, :]
    end = length[:, None, None]
    slot = (query >= end - slots) & (key >= end - slots)
    return (((key <= query) | slot) & (key < end))[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as numbers to be added to the scores: 0 where True, minus infinity elsewhere.

    Given booleans, attention converts them again in every layer.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def parallel_states(decoder: nn.Module, embeddings: torch.Tensor, length: torch.Tensor, slots: int) -> torch.Tensor:
    """Run a batch through a Hugging Face decoder, and read its slots.

    Args:
        decoder: without its output head (`LlamaForCausalLM.model`); SDPA or eager attention.
        embeddings: (n, T, D): BOS, patches, prompt and whatever lies behind it.
        length: int64 (n,): of each row, patches and slots included.
        slots: K * 7.

    Returns:
        (n, slots, D): the last hidden states, after the final norm.
    """
    width = embeddings.shape[1]
    states = decoder(
        inputs_embeds=slot_embeddings(embeddings, length, slots),
        attention_mask=additive(parallel_mask(length, slots, width), embeddings.dtype),
        position_ids=torch.arange(width, device=embeddings.device)[None].expand(len(embeddings), -1),
        use_cache=False,
    ).last_hidden_state
    return gather_slots(states, length, slots)


def gather_slots(states: torch.Tensor, length: torch.Tensor, slots: int) -> torch.Tensor:
    """Hidden states (n, T, D) at the slots: (n, slots, D)."""
    place = slot_positions(length, slots)
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[-1]))


def slot_loss(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of action ids at the slots.

    Args:
        logits: (n, K * 7, V).
        ids: int64 (n, K, 7).
        mask: bool (n, K), False where an action is padding.

    Returns:
        float32 (n,): mean over each sample's real actions; 0 where it has none.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return masked_mean(loss, mask)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of (n, K, 7) over the actions that count, bool (n, K): (n,), 0 for a sample without any."""
    weight = mask[..., None].to(values.dtype).expand_as(values)
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def likeliest_action_ids(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The likeliest action id of each slot.

    Args:
        logits: (..., V).
        token_ids: int64 (bins,): the ids that stand for actions.

    Returns:
        int64 (...): ids.
    """
    return token_ids[logits[..., token_ids].argmax(-1)]
