"""A Dask preload: each output file waits, written but not yet in its place, until a gate file appears.

OXE_TEST_GATE names the gate; a worker that waits there says so in `<gate>.<pid>`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oxe_curate.storage import Folder

publish = Folder.publish
gate = Path(os.environ["OXE_TEST_GATE"])


def slowly(self: Folder, relative: str, write: Callable[[Any], None]) -> None:
    def then_wait(sink: Any) -> None:
        write(sink)
        gate.with_name(f"{gate.name}.{os.getpid()}").write_text(relative)
        while not gate.exists():
            time.sleep(0.05)

    publish(self, relative, then_wait if relative.endswith(".parquet") else write)


Folder.publish = slowly  # type: ignore[method-assign]
