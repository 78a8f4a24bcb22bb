"""Fine-tuning on mixture shards, and the policies that come out of it. Needs the extra `[train]`.

`from oxe_curate.train import Policy` loads a run, an exported folder or a published checkpoint.
"""

from typing import Any

__all__ = ["Policy"]


def __getattr__(name: str) -> Any:
    if name == "Policy":  # torch and transformers take seconds to import
        from oxe_curate.train.serving.policy import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
