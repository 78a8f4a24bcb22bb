"""The loss of a policy head, and what each number of it is compared with."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from oxe_curate.train.models.roboflamingo.heads import POSE


def policy_losses(
    pose: Tensor,
    gripper: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    pose_loss: Literal["huber", "mse"] = "huber",
) -> tuple[Tensor, Tensor]:
    """Loss of each sample's pose and gripper, over its real actions.

    The released code takes Huber (delta 1), the paper writes mean squared error. The released code's data have
    grippers of -1 and 1 and it trains on (g + 1) / 2; here a gripper is 0 (closed) to 1 (open) already and is the
    target as it stands.

    Args:
        pose: (n, W, K, 6) in (-1, 1).
        gripper: (n, W, K, 1), logit of "open": a probability that has rounded to 0 or 1 lets no gradient back.
        target: (n, W, K, 7), normalised, the gripper in [0, 1].
        mask: bool (n, W, K), False for actions that are padding; None: all are real.
        pose_loss: "huber" or "mse".

    Returns:
        float32 (n,) and (n,): mean over the sample's real actions; 0 for a sample without any.
    """
    pose, gripper, target = pose.float(), gripper.float(), target.float()
    wanted = target[..., :POSE]
    error = (F.huber_loss if pose_loss == "huber" else F.mse_loss)(pose, wanted, reduction="none").mean(-1)
    binary = F.binary_cross_entropy_with_logits(gripper, target[..., POSE:], reduction="none").squeeze(-1)
    if mask is None:
        return error.flatten(1).mean(1), binary.flatten(1).mean(1)
    weight = mask.to(error.dtype)
    count = weight.flatten(1).sum(1).clamp(min=1)
    return (error * weight).flatten(1).sum(1) / count, (binary * weight).flatten(1).sum(1) / count
