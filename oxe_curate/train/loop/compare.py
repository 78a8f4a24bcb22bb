"""Whether the source shards of a mixture by reference are still those that it was made from."""

from __future__ import annotations

from dataclasses import replace

from oxe_curate.errors import DataError
from oxe_curate.storage import Folder
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.sources import read_sources, write_sources
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.run_folder import RunFolder


def with_compared_sources(
    mixture: MixtureFolder, run: RunFolder, dist: Distributed, write: bool, progress: bool
) -> MixtureFolder:
    """Compare the sources of a mixture by reference with what is on disk, before anything is read from them.

    The first process reads the framing of shards that look different. The others only list them, unless they see other
    files, such as copies on the disk of another machine. The run folder keeps what was found, so that shards that moved
    are read once and not at each start.

    Args:
        mixture: any mixture; one that has copies is returned as it is.
        run: of the training.
        dist: all processes take part.
        write: whether to write into the run folder.
        progress: whether to show a progress bar.

    Raises:
        DataError: shards are missing or have changed. StorageError: they cannot be read.
    """
    if mixture.copies:
        return mixture

    def first() -> MixtureFolder | None:
        if not dist.first:
            return None
        found = with_known_sources(mixture, run)
        compared = found.sources.compare(progress)
        if write and compared != found.sources:
            write_sources(Folder.of(run.path), compared)
        return replace(found, compared=compared)

    found = dist.together(first)
    (compared, *_) = dist.gather(None if found is None else found.sources)
    assert compared is not None  # of the first process
    return found or dist.together(lambda: replace(mixture, compared=mixture.sources.identified(compared).compare()))


def with_known_sources(mixture: MixtureFolder, run: RunFolder) -> MixtureFolder:
    """The mixture with what an earlier start of the run found of its sources. Reads no source."""
    if mixture.copies or not run.sources.is_file():
        return mixture
    try:
        return replace(mixture, compared=mixture.sources.identified(read_sources(Folder.of(run.path))))
    except DataError:  # only a cache
        return mixture
