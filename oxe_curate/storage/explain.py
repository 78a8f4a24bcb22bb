"""Errors of files and object stores, explained."""

from __future__ import annotations

import errno
import re

from oxe_curate.errors import StorageError


class explained:  # noqa: N801 (reads as a phrase: `with explained(name):`)
    """Turn an OSError in the block into a StorageError that names the file and says what to do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise StorageError(f"{self.name}: {explain(error)}") from error


def explain(error: OSError) -> str:
    """Explain an operating system error and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full. Free some space and run the same command again; finished work is kept",
        errno.EDQUOT: "disk quota exceeded. Free some space and run the same command again; finished work is kept",
        errno.ENOENT: "file or folder not found",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a parent of the path is a file, not a folder",
        errno.EISDIR: "is a folder, not a file",
    }
    known = advice.get(error.errno or 0)
    return known or (error.strerror or str(error).splitlines()[0] if str(error) else type(error).__name__)


_S3 = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))? during (\w+) operation:\s*(.*)", re.DOTALL)
_S3_CODE = re.compile(r"ExceptionName: (\w+)")
_CURL = re.compile(r"curlCode: \d+, ([^;]*)(?:; Details: (.*))?", re.DOTALL)
_GCS = re.compile(r"google::cloud::Status\(([A-Z_]+): (.*?)(?: error_info=\{.*)?\)", re.DOTALL)
_REFUSED = {
    "missing": ("NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "NOT_FOUND", "404"),
    "denied": (
        "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "UNRECOGNIZED_CLIENT", "NOT_INITIALIZED",
        "INVALID_CLIENT_TOKEN_ID", "MISSING_AUTHENTICATION_TOKEN", "INVALID_SIGNATURE", "PERMISSION_DENIED",
        "UNAUTHENTICATED", "401", "403",
    ),
    "expired": ("ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"),
    "moved": ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"),
    "clock": ("REQUEST_TIME_TOO_SKEWED", "REQUEST_EXPIRED"),
    "changed": ("FAILED_PRECONDITION", "InvalidRange", "412", "416"),
    "wrong": ("VALIDATION", "INVALID_PARAMETER_VALUE", "INVALID_ARGUMENT", "INVALID_REQUEST", "400"),
}  # fmt: skip
"""Answers that another try would not change, by what the user can do."""
_ADVICE = {
    "missing": "not found. Check the name of the bucket and the path",
    "denied": "access denied. Check the credentials of this process, and that they may list, read and write here. "
    "OXE_CURATE_ANONYMOUS=1 reads public data without credentials",
    "expired": "the credentials have expired. Renew them, and run the same command again; finished work is kept",
    "moved": "the bucket is in another region. Set AWS_DEFAULT_REGION to the bucket's region",
    "clock": "the store refuses this machine's clock. Set the clock",
    "changed": "the object was replaced or shortened while it was being read. Run the same command again",
    "wrong": "the store does not accept the request",
}


def _answer(error: BaseException) -> tuple[str, str]:
    """What the store answered: a key of `_ADVICE`, or "" for a failure that may pass; and its own words."""
    text = " ".join(str(error).split())
    codes: list[str] = []
    words = text
    if found := _S3.search(text):
        code, status, operation, message = found.groups()
        inner = _S3_CODE.search(message)
        codes = [inner[1]] if inner else []
        codes += [code, *([status] if status else [])]
        known = codes[0] if codes[0] != "UNKNOWN" else ""
        words = " ".join(filter(None, (known, f"HTTP {status}" if status else "", f"to {operation}")))
        if curl := _CURL.search(message):
            words = f"{(curl[2] or curl[1]).strip()}"
    elif found := _GCS.search(text):
        codes = [found[1]]
        words = f"{found[1]}: {found[2]}"
    kind = next((kind for code in codes for kind, refused in _REFUSED.items() if code in refused), "")
    return kind, words[:300]


def may_pass(error: BaseException) -> bool:
    """Whether a request that failed with this error may succeed if it is repeated."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, OSError) and not _answer(error)[0]


def explain_request(error: BaseException) -> str:
    """Explain why a request to an object store failed, and what to do if it was refused."""
    if isinstance(error, FileNotFoundError):
        return _ADVICE["missing"]
    kind, words = _answer(error)
    return f"{_ADVICE[kind]} (the store answered {words})" if kind else f"the store failed: {words}"
