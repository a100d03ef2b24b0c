"""A model on disk: a folder of `config.json`, `model.safetensors`, `card.md` and `manifest.json`.

Nothing is unpickled, ever: the config names a registered family, never an import path; weights are
safetensors; the manifest holds the sha256 of every file, since safetensors alone does not notice a
flipped bit. Files are written beside their place, synced, and renamed, the manifest last.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.errors import LikelyError, StoreError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from likely.model import Model

__all__ = ["claim_folder", "open_model", "read_config", "save", "write_atomically"]

FORMAT = 1
_PROBE = ".likely-"  # begins the name of a file that tries whether a folder can be written, perhaps another rank's
FILES = ("config.json", "model.safetensors", "card.md")


def save(model: "Model", folder: str | Path, *, data: dict[str, Any] | None = None, run: dict[str, Any] | None = None) -> Path:
    """Store a model in `folder`, which is created; a model that is there already is replaced.

    Args:
        data: the card of the data that it was fitted to (source, split, what was skipped).
        run: how it was trained and what it reached; becomes part of `card.md`.

    Raises: UsageError if `folder` holds something else; StoreError if the disk is full.
    """
    import torch
    from safetensors.torch import save as to_bytes

    import likely

    if not model.config:
        raise UsageError(
            f"{type(model).__name__} was not built by the registry, so it cannot be stored.",
            "Build it with likely.families.build(name, space).",
        )
    folder = claim_folder(folder)
    config = {
        "format": FORMAT,
        "likely": likely.__version__,
        "torch": torch.__version__,
        **model.config,
        "space": model.space.to_json(),
        "given": model.given_space.to_json() if model.given_space else None,
        "data": data or {},
    }
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}
    content = {
        "config.json": json.dumps(config, indent=1).encode(),
        "model.safetensors": to_bytes(tensors),
        "card.md": _card(config, run or {}, tensors).encode(),
    }
    manifest = {name: hashlib.sha256(body).hexdigest() for name, body in content.items()}
    for name, body in {**content, "manifest.json": json.dumps(manifest, indent=1).encode()}.items():
        write_atomically(folder / name, body)
    return folder


def open_model(folder: str | Path, *, device: str = "cpu") -> "Model":
    """Load a stored model, ready to use (evaluation mode).

    Raises: StoreError for a folder that is missing, damaged, or written by a newer format.
    """
    from safetensors.torch import load

    from likely.families import build
    from likely.space import Space

    folder = Path(folder)
    config = read_config(folder)
    tensors = load(_verified(folder)["model.safetensors"])
    given = Space.from_json(config["given"]) if config["given"] else None
    model = build(config["model"], Space.from_json(config["space"]), given=given, size=config["size"], **config["options"])
    load_state(model, tensors)
    return model.to(device).eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The verified `config.json` of a stored model."""
    config = json.loads(_verified(Path(folder))["config.json"])
    if config["format"] > FORMAT:
        raise StoreError(f"{folder} has format {config['format']}, newer than this version's {FORMAT}.", "Upgrade likely.")
    return config


def load_state(model: "Model", tensors: "dict[str, Tensor]") -> None:
    """Load weights; buffers take the stored shape, since closed-form families learn theirs."""
    for name, buffer in list(model.named_buffers()):
        if name in tensors and tensors[name].shape != buffer.shape:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = tensors[name].clone()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise StoreError(f"The stored weights do not fit {type(model).__name__}: {str(error).splitlines()[-1].strip()}") from error


def claim_folder(folder: str | Path) -> Path:
    """Create an output folder, or accept one that is empty or ours.

    Raises: UsageError if it is a file, holds other things, or cannot be written.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder} is a file.", "Name a folder for --out.")
    if (
        folder.is_dir()
        and any(not path.name.startswith(_PROBE) for path in folder.iterdir())
        and not any((folder / name).exists() for name in ("config.json", "run.json", "plan.json", "rows.json"))
    ):
        raise UsageError(f"{folder} exists and is not a folder of likely.", "Name another --out, or empty it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PROBE):
            pass
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror}.", "Name another --out.") from error
    return folder


def write_atomically(path: Path, body: bytes) -> None:
    """Write beside `path`, sync, rename: a reader, or a kill, sees the old file or the new one.

    Raises: StoreError if the disk is full; what was at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"Cannot write {path} ({len(body):,} bytes): {error.strerror}.", "What was there before is unharmed.") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verified(folder: Path) -> dict[str, bytes]:
    """Contents of the stored files, each checked against the manifest."""
    if not (folder / "manifest.json").is_file():
        hint = (
            "It holds an unfinished run: repeat the same fit to go on."
            if (folder / "plan.json").exists()
            else "Expected config.json, model.safetensors and manifest.json in it."
        )
        raise StoreError(f"{folder} is not a stored model.", hint)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        content = {name: (folder / name).read_bytes() for name in FILES}
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} is damaged: {error}.", "Train it again, or restore it from a copy.") from error
    for name, body in content.items():
        if hashlib.sha256(body).hexdigest() != manifest.get(name):
            raise StoreError(f"{folder / name} is damaged: its sha256 is not the manifest's.", "Train it again, or restore it from a copy.")
    return content


def _card(config: dict[str, Any], run: dict[str, Any], tensors: "dict[str, Tensor]") -> str:
    """The model card: what it is, what it was fitted to, what it reached."""
    lines = [f"# {config['model']} ({config['size']})", ""]
    facts = {
        "space": _space_line(config["space"]),
        "given": _space_line(config["given"]) if config["given"] else "nothing: p(x)",
        "options": json.dumps(config["options"]) if config["options"] else "the size's own",
        "stored numbers": f"{sum(t.numel() for t in tensors.values()):,}",
        "written by": f"likely {config['likely']}, torch {config['torch']}",
    }
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for title, record in (("Data", config["data"]), ("Training", {k: v for k, v in run.items() if k != "curve"})):
        if record:
            lines += ["", f"## {title}", "", *(f"- {name}: {json.dumps(value)}" for name, value in record.items())]
    return "\n".join(lines) + "\n"


def _space_line(record: dict[str, Any]) -> str:
    from likely.space import Space

    return str(Space.from_json(record))


def remove(folder: Path) -> None:
    """Delete an output folder that is ours."""
    try:
        shutil.rmtree(claim_folder(folder))
    except OSError as error:
        raise LikelyError(f"Cannot remove {folder}: {error.strerror}.") from error
