"""One interface to local folders, gs:// and s3://: `Folder`, its errors explained, requests retried and timed out."""

from oxe_curate.storage.explain import explain
from oxe_curate.storage.folder import Folder, StoredFile, status_identity
from oxe_curate.storage.options import StoreOptions
from oxe_curate.storage.terminal import stderr_is_terminal

__all__ = ["Folder", "StoreOptions", "StoredFile", "explain", "status_identity", "stderr_is_terminal"]
