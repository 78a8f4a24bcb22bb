"""A Dask preload: a worker stops in the middle of each output file until a gate file appears.

OXE_TEST_GATE names the gate; a worker that waits there says so in `<gate>.<pid>`. `<gate>-<file>` lets one file pass.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oxe_curate.storage import Folder

publish = Folder.publish
gate = Path(os.environ["OXE_TEST_GATE"])


def slowly(self: Folder, relative: str, write: Callable[[Any], None], sync: bool = True) -> None:
    def wait_first(sink: Any) -> None:
        gate.with_name(f"{gate.name}.{os.getpid()}").write_text(relative)
        own = gate.with_name(f"{gate.name}-{relative.replace('/', '-')}")
        while not gate.exists() and not own.exists():
            time.sleep(0.05)
        write(sink)

    publish(self, relative, wait_first if relative.endswith(".parquet") else write, sync)


Folder.publish = slowly  # type: ignore[method-assign]
