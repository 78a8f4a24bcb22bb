"""OpenVLA's image preprocessing after the resize: scale, and normalize once for each vision transformer.

`train.data` resizes; with `PixelNormalizer` the result is bit-identical to the released
`PrismaticImageProcessor`. Normalization takes whole batches and runs on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from oxe_curate.errors import ConfigError
from oxe_curate.inputs import load_json
from oxe_curate.train.settings import ResizeFilter

DINO_MEAN, DINO_STD = (0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)
"""ImageNet's statistics as in the released checkpoints: rounded to bfloat16."""
HALF = (0.5, 0.5, 0.5)

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class PixelNormalizer:
    """Normalization of a checkpoint.

    Attributes:
        means, stds: of RGB in [0, 1], for each vision transformer in order.
    """

    means: tuple[tuple[float, ...], ...] = (DINO_MEAN, HALF)
    stds: tuple[tuple[float, ...], ...] = (DINO_STD, HALF)
    _constants: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: str | Path, towers: int = 2) -> PixelNormalizer:
        """Read a checkpoint's preprocessor_config.json; the default is the normalization of the released checkpoints.

        Raises:
            ConfigError: invalid file, or images are padded or cropped instead of resized.
        """
        path = Path(folder) / PREPROCESSOR
        if not path.is_file():
            return cls() if towers == 2 else cls((HALF,), (HALF,))
        try:
            config: dict[str, Any] = load_json(path, constants=True)
            means, stds = (tuple(tuple(map(float, row)) for row in config[key]) for key in ("means", "stds"))
            made = cls(means, stds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: not an image preprocessor of OpenVLA: {error!r}") from None
        if len(made.means) != towers or len(made.stds) != towers:
            raise ConfigError(f"{path}: means and stds: expected one row for each of the {towers} towers")
        if config.get("image_resize_strategy", "resize-naive") != "resize-naive":
            raise ConfigError(
                f"{path}: image_resize_strategy: expected 'resize-naive', got {config['image_resize_strategy']!r}"
            )
        return made

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize a batch, once for each vision transformer.

        Args:
            images: uint8 (..., S, S, 3), RGB, or float (..., 3, S, S) in [0, 1]; on any device.

        Returns:
            float32 (..., 3 * towers, S, S).
        """
        if images.dtype == torch.uint8:
            # divide by a tensor: CUDA multiplies by the reciprocal of a number, which differs in the last bit
            images = images.movedim(-1, -3).float() / torch.full((1,), 255.0, device=images.device)
        if images.device not in self._constants:  # only once: copies to the GPU synchronize, which CUDA graphs forbid
            columns = torch.tensor([self.means, self.stds], device=images.device)[..., None, None]
            self._constants[images.device] = columns
        means, stds = self._constants[images.device]
        return torch.cat([(images - mean) / std for mean, std in zip(means, stds, strict=True)], dim=-3)

    def to_json(self, size: int, resize: ResizeFilter = "bicubic") -> dict[str, Any]:
        """Content of preprocessor_config.json in the released checkpoints' layout, for images of `size` pixels."""
        means, stds = ([list(row) for row in rows] for rows in (self.means, self.stds))
        towers, square = len(means), [size, size]
        name, number = {"bicubic": ("bicubic", 3), "lanczos3": ("lanczos", 1)}[resize]  # timm's name, Pillow's number
        resizing = {"antialias": True, "interpolation": number, "max_size": None, "size": square}
        return {
            "auto_map": {
                "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
                "AutoProcessor": "processing_prismatic.PrismaticProcessor",
            },
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, *square]] * towers,
            "interpolations": [name] * towers,
            "means": means,
            "processor_class": "PrismaticProcessor",
            "stds": stds,
            "tvf_crop_params": [{"output_size": square}] * towers,
            "tvf_do_letterbox": False,
            "tvf_letterbox_fill": None,
            "tvf_normalize_params": [
                {"inplace": False, "mean": mean, "std": std} for mean, std in zip(means, stds, strict=True)
            ],
            "tvf_resize_params": [resizing] * towers,
            "use_fused_vision_backbone": towers == 2,
        }
