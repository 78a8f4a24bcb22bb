"""What the mixture editor and the policy server share: uvicorn, and lines for the user. Needs `[edit]` or `[train]`."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn


class Server(uvicorn.Server):
    """Calls `ready` when it can be reached."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()


def announce(line: str) -> None:
    """Print a line at once: who reads a pipe waits for the address."""
    print(line, flush=True)
