"""Losses and means over the labelled positions of token-by-token decoding; parallel.py has those of action slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from oxe_curate.train.data.batch import IGNORE


def gather_states(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Hidden states (n, T, D) at places (n, P): (n, P, D)."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each row (n,) over the targets (n, T) that are not -100."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
    learned = targets != IGNORE
    return loss.view(targets.shape).sum(1) / learned.sum(1).clamp(min=1)


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values whose mask is True; NaN if there are none."""
    weight = mask.expand_as(values).to(values.dtype)
    return (values * weight).sum() / weight.sum()
