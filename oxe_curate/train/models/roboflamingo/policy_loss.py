"""Loss of a policy head."""

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
    """Pose and gripper loss of each sample, over its real actions.

    The released code uses the Huber loss (delta 1), the paper mean squared error. The released data have grippers of -1
    and 1, mapped to (g + 1) / 2; here grippers are already 0 (closed) to 1 (open).

    Args:
        pose: (n, W, K, 6) in (-1, 1).
        gripper: (n, W, K, 1), logit of "open"; probabilities rounded to 0 or 1 would have no gradient.
        target: (n, W, K, 7), normalized, the gripper in [0, 1].
        mask: bool (n, W, K), False for padding; None: no padding.
        pose_loss: "huber" or "mse".

    Returns:
        float32 (n,) and (n,): mean over the real actions of a sample; 0 if it has none.
    """
    pose, gripper, target = pose.float(), gripper.float(), target.float()
    target_pose = target[..., :POSE]
    error = (F.huber_loss if pose_loss == "huber" else F.mse_loss)(pose, target_pose, reduction="none").mean(-1)
    binary = F.binary_cross_entropy_with_logits(gripper, target[..., POSE:], reduction="none").squeeze(-1)
    if mask is None:
        return error.flatten(1).mean(1), binary.flatten(1).mean(1)
    weight = mask.to(error.dtype)
    count = weight.flatten(1).sum(1).clamp(min=1)
    return (error * weight).flatten(1).sum(1) / count, (binary * weight).flatten(1).sum(1) / count
