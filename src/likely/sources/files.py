"""Files: what kind they are by name, and their bytes, unpacked."""

import gzip
import io
import lzma
import zlib
from pathlib import Path

from likely.errors import DataError

__all__ = ["bare_name", "list_files", "read_bytes", "suffix"]

_MOST_BYTES = 2**33  # a compressed file of more is refused, not unpacked until memory is full
_PACKED = {".gz": gzip.open, ".xz": lzma.open}


def suffix(path: Path) -> str:
    """The lower-case suffix of a path under its compression: ".csv" of `adult.csv.gz`."""
    return Path(bare_name(path)).suffix.lower()


def bare_name(path: Path) -> str:
    """A path's name without ".gz" or ".xz"."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in _PACKED else path.name


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, those of a `.gz` or `.xz` unpacked.

    Raises: DataError if it is damaged, not readable, or unpacks to more than 8 GiB.
    """
    unpack = _PACKED.get(path.suffix.lower(), io.open)
    try:
        with unpack(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} unpacks to more than {_MOST_BYTES >> 30} GiB.")
    return content


def list_files(folder: Path) -> list[Path]:
    """All files below a folder in a fixed order, hidden ones left out.

    Raises: DataError if there is none.
    """
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not found:
        raise DataError(f"The folder {folder} is empty.")
    return found
