"""RoboFlamingo inference: one observation at a time, with the state of the policy head."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.train.models.base import Controller
from oxe_curate.train.models.roboflamingo.collate import FlamingoPrompter
from oxe_curate.train.models.roboflamingo.heads import POSE
from oxe_curate.train.models.roboflamingo.net import Flamingo
from oxe_curate.train.models.roboflamingo.vit import normalize_images


def as_actions(pose: torch.Tensor, gripper: torch.Tensor, chunk: int) -> torch.Tensor:
    """Convert a head's output (n, 6 * K) and (n, K) to actions float32 (n, K, 7), with the gripper 0 or 1.

    As in the released code, the gripper is open if its probability exceeds one half.
    """
    open_ = (gripper > 0.5).float().unsqueeze(-1)
    return torch.cat([pose.float().unflatten(-1, (chunk, POSE)), open_], -1)


class FlamingoController(Controller):
    """Holds the state of an episode; controllers of the same network are independent."""

    def __init__(self, net: Flamingo, prompter: FlamingoPrompter, autocast: Any) -> None:
        """Share a network's weights.

        Args:
            net: in evaluation mode.
            prompter: of its base.
            autocast: () -> a context for the forward pass.
        """
        self._net, self._prompter, self._autocast = net, prompter, autocast
        self._head = copy.copy(net.lm_head)  # same weights, separate state
        self.reset()

    def reset(self) -> None:
        """Start a new episode."""
        self._head.reset()
        self._frames: list[torch.Tensor] = []

    @torch.no_grad()
    def act(
        self, images: NDArray[np.uint8], instruction: str, proprio: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """See `Controller.act`; `proprio` is ignored."""
        net, device = self._net, self._net.perceiver.latents.device
        ids = torch.tensor([self._prompter.robot(instruction)], device=device)
        pixels = normalize_images(torch.from_numpy(np.array(images)).to(device))
        with self._autocast():
            tokens = net.encode_images(pixels).unsqueeze(0)
            if net.history:  # use the whole window; before the first frame, repeat it
                self._frames = [*self._frames, tokens][-net.window :]
                missing = net.window - len(self._frames)
                tokens = torch.cat([self._frames[0]] * missing + self._frames)
            features = net.features(tokens, ids, torch.ones_like(ids))
            pose, gripper = self._head.step(features)
        action: NDArray[np.float32] = as_actions(pose[:, -1], gripper[:, -1], self._head.chunk)[0].cpu().numpy()
        return action
