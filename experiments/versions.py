"""Which code made a result: versions of the libraries, a digest of our own sources. A change is flagged, no new id."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def versions() -> dict[str, str]:
    """{"python": .., "jax": .., .., "hybrid": .., "code": digest, "commit": ..}; no library is imported."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "hybrid-ablations"):
        try:
            found[name.partition("-ablations")[0]] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["code"] = code()
    commit = _commit()
    return {**found, "commit": commit} if commit else found


@functools.cache
def code(*folders: str) -> str:
    """12 hexadecimal digits over the Python sources of `hybrid` and `experiments` (or of `folders`) on disk now."""
    digest = hashlib.sha256()
    for folder in folders or ("hybrid", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _commit() -> str:
    """The commit that is checked out, read from the files of git; empty without them."""
    git = ROOT / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text().strip()[:12]
        packed = [line.split() for line in (git / "packed-refs").read_text().splitlines() if line.endswith(" " + name)]
        return packed[0][0][:12] if packed else ""
    except OSError:
        return ""


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`jax 0.10.2 -> 0.10.3` for whatever may change numbers; commits are only names."""
    names = [name for name in {**before, **now} if name != "commit"]
    return [f"{n} {before.get(n, 'none')} -> {now.get(n, 'none')}" for n in names if before.get(n) != now.get(n)]
