"""OpenVLA's picture preprocessing after the resize: scale, and normalise once for each vision transformer.

`assemble.resize` and `PixelNormalizer` together give what the released `PrismaticImageProcessor` gives, bit for bit;
the second half takes whole batches and runs on the GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from oxe_curate.errors import ConfigError

DINO_MEAN, DINO_STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
"""ImageNet's statistics as the released checkpoints have them: rounded to bfloat16."""
HALF = (0.5, 0.5, 0.5)

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class PixelNormalizer:
    """The normalisations that a checkpoint was trained with.

    Attributes:
        means, stds: of RGB in [0, 1], for each vision transformer in order.
    """

    means: tuple[tuple[float, ...], ...] = (DINO_MEAN, HALF)
    stds: tuple[tuple[float, ...], ...] = (DINO_STD, HALF)
    _constants: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: str | Path, towers: int = 2) -> PixelNormalizer:
        """Read a checkpoint's preprocessor_config.json; without one, the released checkpoints' values.

        Raises:
            ConfigError: not such a file, or pictures that are padded or cropped instead of resized.
        """
        path = Path(folder) / PREPROCESSOR
        if not path.is_file():
            return cls() if towers == 2 else cls((HALF,), (HALF,))
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            means, stds = (tuple(tuple(map(float, row)) for row in told[key]) for key in ("means", "stds"))
            made = cls(means, stds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: is no configuration of OpenVLA's pictures: {error!r}") from None
        if len(made.means) != towers or len(made.stds) != towers:
            raise ConfigError(f"{path}: means and stds must hold one row for each of the {towers} towers")
        if told.get("image_resize_strategy", "resize-naive") != "resize-naive":
            raise ConfigError(
                f"{path}: image_resize_strategy is {told['image_resize_strategy']!r}; only 'resize-naive' is supported"
            )
        return made

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch, once for each vision transformer.

        Args:
            images: uint8 (..., S, S, 3), RGB, or float (..., 3, S, S) in [0, 1]; on any device.

        Returns:
            float32 (..., 3 * towers, S, S).
        """
        if images.dtype == torch.uint8:
            # by a tensor: CUDA turns the division by a number into a product with its reciprocal, off by a bit
            images = images.movedim(-1, -3).float() / torch.full((1,), 255.0, device=images.device)
        if images.device not in self._constants:  # once: a copy to the GPU waits for it, and no graph may record one
            columns = torch.tensor([self.means, self.stds], device=images.device)[..., None, None]
            self._constants[images.device] = columns
        means, stds = self._constants[images.device]
        return torch.cat([(images - mean) / std for mean, std in zip(means, stds, strict=True)], dim=-3)

    def to_json(self, size: int) -> dict[str, Any]:
        """Return preprocessor_config.json as the released checkpoints have it, for pictures of `size` pixels."""
        means, stds = ([list(row) for row in rows] for rows in (self.means, self.stds))
        towers, square = len(means), [size, size]
        bicubic = {"antialias": True, "interpolation": 3, "max_size": None, "size": square}
        return {
            "auto_map": {
                "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
                "AutoProcessor": "processing_prismatic.PrismaticProcessor",
            },
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, *square]] * towers,
            "interpolations": ["bicubic"] * towers,
            "means": means,
            "processor_class": "PrismaticProcessor",
            "stds": stds,
            "tvf_crop_params": [{"output_size": square}] * towers,
            "tvf_do_letterbox": False,
            "tvf_letterbox_fill": None,
            "tvf_normalize_params": [
                {"inplace": False, "mean": mean, "std": std} for mean, std in zip(means, stds, strict=True)
            ],
            "tvf_resize_params": [bicubic] * towers,
            "use_fused_vision_backbone": towers == 2,
        }
