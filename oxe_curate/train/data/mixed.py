"""Images of a batch at their own sizes, grouped by size, until the device of the model resizes each group at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oxe_curate.train.data.augment import crop_middle, cut_middle
from oxe_curate.train.data.resize import resize_images
from oxe_curate.train.settings import ResizeFilter


@dataclass(frozen=True, eq=False)
class MixedImages:
    """An array of images of different sizes: indexed like a numpy array, moved like a tensor.

    Attributes:
        groups: uint8 (m, H, W, 3) tensors, of different sizes.
        order: int64 (...), which image each entry of the array is, counted through all groups. Entries may repeat.
        size: S, the model's.
        resize: the filter.
        crop: crop the center of each image after resizing.
    """

    groups: tuple[torch.Tensor, ...]
    order: NDArray[np.int64]
    size: int
    resize: ResizeFilter
    crop: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array at the model's size, (..., S, S, 3)."""
        return (*self.order.shape, self.size, self.size, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of the images at their own sizes."""
        return sum(group.nbytes for group in self.groups)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: Any) -> MixedImages:
        """A part of the array, with the images that it shows."""
        order = np.asarray(self.order[key])
        used = np.unique(order)
        count = sum(map(len, self.groups))
        if len(used) == count:
            return replace(self, order=order)
        kept, first = [], 0
        for group in self.groups:
            mine = used[(used >= first) & (used < first + len(group))] - first
            if len(mine):
                kept.append(group if len(mine) == len(group) else group[torch.from_numpy(mine)])
            first += len(group)
        return replace(self, groups=tuple(kept), order=np.searchsorted(used, order))

    def sources(self) -> Iterator[NDArray[np.uint8]]:
        """The image of each entry of the array, at its own size."""
        images = [image for group in self.groups for image in group.numpy()]
        return (images[i] for i in self.order.ravel())

    def packed(self) -> torch.Tensor | MixedImages:
        """A tensor if nothing is left to do: all images have the model's size, are in order and shown once."""
        count = sum(map(len, self.groups))
        done = len(self.groups) == 1 and self.groups[0].shape[1:] == self.shape[-3:] and not self.crop
        if self.order.size == 0:
            return torch.empty(self.shape, dtype=torch.uint8)
        if done and self.order.size == count and (self.order.ravel() == np.arange(count)).all():
            return self.groups[0].view(self.shape)
        return self

    def pin_memory(self) -> MixedImages:
        """The images in page-locked memory, where they usually are already."""
        return replace(self, groups=tuple(group.pin_memory() for group in self.groups))

    def resized(self, device: torch.device) -> torch.Tensor:
        """Move the images to a device and resize them there: uint8 (..., S, S, 3). The same for the CPU."""
        if not self.groups:
            return torch.empty(self.shape, dtype=torch.uint8, device=device)
        moved = (group.to(device, non_blocking=True) for group in self.groups)
        parts = [resize_images(group, self.size, self.resize) for group in moved]
        images = torch.cat(parts) if len(parts) != 1 else parts[0]
        if self.crop:
            images = cut_middle(images)
        flat = self.order.ravel()
        if len(flat) != len(images) or (flat != np.arange(len(flat))).any():
            images = images[torch.from_numpy(flat).to(device, non_blocking=True)]
        return images.unflatten(0, self.order.shape)


PixelArray = NDArray[np.uint8] | MixedImages
"""uint8 (..., S, S, 3), or the same before resizing."""


def crop_images(images: PixelArray) -> PixelArray:
    """Crop the center of each image as `crop_middle` does, or mark mixed images for it."""
    return replace(images, crop=True) if isinstance(images, MixedImages) else crop_middle(images)


def pixels_of(images: PixelArray, device: torch.device) -> NDArray[np.uint8]:
    """The images at the model's size, uint8 (..., S, S, 3), resized on a device."""
    return np.asarray(images.resized(device).cpu().numpy()) if isinstance(images, MixedImages) else images


def packed(images: PixelArray) -> torch.Tensor | MixedImages:
    """The entry of a batch: a tensor if all images have the model's size."""
    return images.packed() if isinstance(images, MixedImages) else torch.from_numpy(np.ascontiguousarray(images))
