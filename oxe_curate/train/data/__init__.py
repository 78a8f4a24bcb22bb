"""The door of the data path: what trainer, evaluation and inference import."""

from oxe_curate.train.data.assemble import decode_into, resize
from oxe_curate.train.data.augment import augment, center_crop
from oxe_curate.train.data.episodes import EpisodeReader
from oxe_curate.train.data.loader import Loader, ValidationLoader
from oxe_curate.train.data.rows import Form, normalize_proprio

__all__ = [
    "EpisodeReader",
    "Form",
    "Loader",
    "ValidationLoader",
    "augment",
    "center_crop",
    "decode_into",
    "normalize_proprio",
    "resize",
]
