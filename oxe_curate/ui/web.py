"""The HTTP server of the mixture editor and of the policy server. Needs uvicorn (extra `edit` or `serve`)."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn


class Server(uvicorn.Server):
    """Calls `ready` once it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `ready`."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()


def announce(line: str) -> None:
    """Print a line without buffering, so that a reader of a pipe gets the address at once."""
    print(line, flush=True)
