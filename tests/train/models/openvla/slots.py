"""Parallel decoding of a batch by a transformers decoder, composed as the product composes it."""

from __future__ import annotations

import torch

from oxe_curate.train.models.openvla.parallel import additive, gather_slots, parallel_mask, slot_embeddings


def parallel_states(
    decoder: torch.nn.Module, embeddings: torch.Tensor, length: torch.Tensor, slots: int
) -> torch.Tensor:
    """Last hidden states (n, slots, D) at the slots of embeddings (n, T, D), whose rows end at `length` (n,)."""
    width = embeddings.shape[1]
    states = decoder(
        inputs_embeds=slot_embeddings(embeddings, length, slots),
        attention_mask=additive(parallel_mask(length, slots, width), embeddings.dtype),
        position_ids=torch.arange(width)[None].expand(len(embeddings), -1),
        use_cache=False,
    ).last_hidden_state
    return gather_slots(states, length, slots)
