"""Greedy decoding of a batch with right-padded prompts, token by token over a key-value cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from oxe_curate.train.models.openvla.model import OpenVLA


def greedy_ids(net: OpenVLA, embeds: torch.Tensor, length: torch.Tensor, count: int) -> torch.Tensor:
    """The most likely next tokens, as transformers' greedy `generate` without stopping at a stop token.

    Args:
        net: in evaluation mode.
        embeds: (n, N, width): BOS, patches, prompt, padding.
        length: int64 (n,): length of each row without padding.
        count: number of tokens to generate.

    Returns:
        int64 (n, count).
    """
    n, width, _ = embeds.shape
    places = torch.arange(width, device=embeds.device)
    # padding stays between prompt and answer: it is masked, and positions do not count it
    mask = places[None] < length[:, None]
    cache: dict[str, Any] = {cache_keyword(net.decoder): DynamicCache(config=net.language_model.config)}
    out = net.decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=True, **cache)
    state = out.last_hidden_state[torch.arange(n, device=embeds.device), length - 1]
    ids = []
    for made in range(count):
        token = net.head(state).argmax(-1)
        ids.append(token)
        if made == count - 1:
            break
        mask = torch.cat([mask, mask.new_ones(n, 1)], dim=1)
        out = net.decoder(
            inputs_embeds=net.language_model.get_input_embeddings()(token)[:, None],
            attention_mask=mask,
            position_ids=(length + made)[:, None],
            use_cache=True,
            **cache,
        )
        state = out.last_hidden_state[:, 0]
    return torch.stack(ids, dim=1)


def cache_keyword(decoder: nn.Module) -> str:
    """Name of a transformers decoder's cache argument: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
