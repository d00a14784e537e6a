"""Files on the Hugging Face hub by URL: hf://ORG/REPO[@REVISION]/FILE."""

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from glide_jax.errors import UserError, first_line
from glide_jax.storage import expand_home

HUB_PREFIX = "hf://"
CONNECT_S = 5.0
"""To wait for the hub's server."""


def local_file(place: str | os.PathLike[str]) -> Path:
    """A local file, downloaded first if it is on the Hugging Face hub.

    Args:
        place: a path, whose `~` is expanded, or a URL as of `fetched`.

    Returns:
        The path. A local file need not exist.

    Raises:
        UserError: another URL, or a file that cannot be downloaded.
    """
    text = _spelled(fetched(place))
    if "://" in text:
        raise UserError(f"{text}: use a local file, or {HUB_PREFIX}ORG/REPO/FILE")
    return Path(text)


def fetched(place: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The downloaded copy of a file on the Hugging Face hub; any other place as it is.

    Downloads stay in the hub's cache (HF_HOME). With HF_HUB_OFFLINE=1, only the cache is read.

    Args:
        place: hf://ORG/REPO[@REVISION]/FILE, hf://datasets/ORG/REPO[@REVISION]/FILE, or any other.

    Raises:
        UserError: the file cannot be downloaded.
    """
    text = _spelled(place)
    return _downloaded(text) if text.startswith(HUB_PREFIX) else place


def _spelled(place: str | os.PathLike[str]) -> str:
    # Path, the type of many flags, makes hf:/ of hf://.
    return re.sub(r"^(\w\w+):/(?=[^/])", r"\1://", expand_home(place))


def _downloaded(url: str) -> Path:
    # A slow import, needed only for the hub.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    try:
        parsed = parse_hf_uri(url)
    except HfUriError:
        parsed = None
    if parsed is None or parsed.type not in ("model", "dataset") or not parsed.path_in_repo:
        raise UserError(f"{url}: use {HUB_PREFIX}ORG/REPO/FILE, or ORG/REPO@REVISION/FILE")
    file: dict[str, Any] = {
        "repo_id": parsed.id,
        "filename": parsed.path_in_repo,
        "repo_type": parsed.type,
        "revision": parsed.revision,
    }
    try:
        if not constants.is_offline_mode() and not _is_reachable(constants.ENDPOINT):
            return Path(hf_hub_download(**file, local_files_only=True))
        found = hf_hub_download(**file, dry_run=True)
        if not found.is_cached:
            print(f"downloading {url} ({(found.file_size or 0) / 1e6:,.1f} MB)", flush=True)
        return Path(hf_hub_download(**file))
    except Exception as error:  # the hub, HTTP and the disk raise many kinds
        raise UserError(f"{url}: {_reason(error, parsed.id)}") from error


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub's server accepts connections: the hub's library would retry for 27 s.

    A proxy decides on its own.
    """
    place = urlsplit(endpoint)
    if getproxies().get(place.scheme) or getproxies().get("all"):
        return True
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), CONNECT_S).close()
    except OSError:
        return False
    return True


def _reason(error: Exception, repository: str) -> str:
    """Why a file cannot be downloaded, and the fix."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"its authors must grant access: ask at {constants.ENDPOINT}/{repository}, then run "
            "`hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no repository {repository}, or a private one, which needs `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return (
                f"not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids "
                "downloads: unset it, or give a local file"
            )
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        return (
            f"not in the hub's cache, and {constants.ENDPOINT} cannot be reached: check the "
            f"network, or give a local file{cause}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository} has no such file"
    return f"cannot be downloaded: {first_line(error)}"
