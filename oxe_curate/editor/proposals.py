"""Proposed weights, computed in the background: "diversity" takes seconds, "proxy" minutes."""

from __future__ import annotations

import threading
from typing import Any, get_args

from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.errors import ConfigError, CurateError, did_you_mean
from oxe_curate.mixture.propose import Method, propose
from oxe_curate.mixture.spec import Mixture


class Proposals:
    """Runs at most one proposal at a time, and keeps its result until the next one starts."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"state": "idle"}

    def state(self) -> dict[str, Any]:
        """{"state": "idle" | "running" | "done" | "failed", ...}, with the step, the result or the error."""
        with self._lock:
            return dict(self._state)

    def start(self, mixture: Mixture, method: str) -> dict[str, Any]:
        """Start to compute weights for a mixture's data sets.

        Raises:
            ConfigError: an unknown method, no index, or a proposal is already running.
        """
        if method not in get_args(Method):
            raise ConfigError(f"unknown method {method!r}. {did_you_mean(method, get_args(Method))}")
        if self._catalogue.index is None:
            raise ConfigError("a proposal needs an index; start the editor with --index")
        with self._lock:
            if self._state["state"] == "running":
                raise ConfigError("a proposal is already running")
            self._state = {"state": "running", "method": method, "step": "reading the index"}
        # a daemon, so that Ctrl+C does not wait for a training
        threading.Thread(target=self._work, args=(mixture, method), daemon=True).start()
        return self.state()

    def _work(self, mixture: Mixture, method: Method) -> None:
        try:
            result = self._propose(mixture, method)
        except CurateError as error:
            result = {"state": "failed", "method": method, "error": str(error)}
        except Exception as error:
            result = {"state": "failed", "method": method, "error": f"{type(error).__name__}: {error}"}
        with self._lock:
            self._state = result

    def _propose(self, mixture: Mixture, method: Method) -> dict[str, Any]:
        index, identity = self._catalogue.index, self._catalogue.identity
        assert index is not None
        done = propose(index, mixture, method, seed=mixture.seed, cards=self._catalogue.cards, progress=self._step)
        return {
            "state": "done",
            "method": method,
            "weights": self._catalogue.weights(done.mixture),
            "reasons": {identity(row.name): row.reason for row in done.rows},
            "absent": list(done.absent),
        }

    def _step(self, name: str) -> None:
        with self._lock:
            self._state["step"] = name
