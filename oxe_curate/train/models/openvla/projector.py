"""What maps patches and the robot's state to the language model's embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Projector(nn.Module):
    """Patches to the language model's width: three layers for two towers, two for one, with exact GELU."""

    def __init__(self, vision: int, text: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision if fused else text
        self.fc1 = nn.Linear(vision, hidden)
        self.fc2 = nn.Linear(hidden, text)
        if fused:
            self.fc3 = nn.Linear(text, text)
        self.fused = fused

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., vision) -> (..., text)."""
        x = self.fc2(F.gelu(self.fc1(patches)))
        return self.fc3(F.gelu(x)) if self.fused else x


class ProprioProjector(nn.Module):
    """Maps the proprio state to one token."""

    def __init__(self, proprio: int, text: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio, text)
        self.fc2 = nn.Linear(text, text)

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        """(B, proprio) -> (B, 1, text)."""
        return self.fc2(F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype)))).unsqueeze(1)
