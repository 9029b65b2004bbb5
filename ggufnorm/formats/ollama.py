"""Models that Ollama has pulled.

Ollama keeps a manifest per model, ``manifests/HOST/NAMESPACE/NAME/TAG``, a JSON document
whose layers name blobs by digest, ``blobs/sha256-…`` (``types/model/name.go`` and
``server/manifest.go`` in Ollama).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ggufnorm.errors import InputError
from ggufnorm.formats.files import read_regular

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MODEL_LAYER = "application/vnd.ollama.image.model"
# A part never begins with a dot, so that no name climbs out of the folder.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LISTED = 20
_MAX_MANIFEST = 1 << 20


def models_folder() -> Path:
    """``OLLAMA_MODELS``, or ``~/.ollama/models``."""
    folder = os.environ.get("OLLAMA_MODELS")
    return Path(folder) if folder else Path.home() / ".ollama" / "models"


def find_blob(name: str) -> Path:
    """The GGUF file of a model.

    Args:
        name: ``NAME[:TAG]``, ``NAMESPACE/NAME[:TAG]`` or ``HOST/NAMESPACE/NAME[:TAG]``.

    Raises:
        InputError: the name is malformed, there is no such model, or Ollama's files are
            damaged.
    """
    folder = models_folder()
    manifest = folder.joinpath("manifests", *_parts(name))
    if not manifest.is_file():
        raise InputError(f"ollama:{name}: there is no such model in {folder}; {_offer(folder)}")
    blob = folder / "blobs" / f"sha256-{_model_digest(manifest)}"
    if not blob.is_file():
        raise InputError(
            f"ollama:{name}: {blob} is missing: pull the model again (`ollama pull {name}`)"
        )
    return blob


def _parts(name: str) -> tuple[str, str, str, str]:
    """Host, namespace, name and tag, with Ollama's defaults."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, _TAG
    given = path.split("/")
    if len(given) <= 3:
        host, namespace, model = [_HOST, _NAMESPACE][: 3 - len(given)] + given
        parts = [_PART.fullmatch(part) for part in (namespace, model, tag)]
        if _HOST_PART.fullmatch(host) and all(parts):
            return host, namespace, model, tag
    raise InputError(f"ollama:{name}: the name is not NAME[:TAG], NAMESPACE/NAME[:TAG] or HOST/…")


def _model_digest(manifest: Path) -> str:
    try:
        layers = json.loads(read_regular(manifest, _MAX_MANIFEST))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{manifest} is not a manifest of Ollama's ({type(error).__name__}):"
            " pull the model again"
        ) from None
    found = _DIGEST.fullmatch(str(digests[0])) if digests else None
    if found is None:
        raise InputError(f"{manifest} names no GGUF file: the model is kept in another format")
    return found[1]


def pulled_models(folder: Path) -> list[str]:
    """Names of the models that are there, as Ollama shows them."""
    names = []
    for path in sorted((folder / "manifests").glob("*/*/*/*")):
        host, namespace, model, tag = path.parts[-4:]
        shown = [host, namespace, model]
        if host == _HOST:
            shown = [model] if namespace == _NAMESPACE else [namespace, model]
        names.append(f"{'/'.join(shown)}:{tag}")
    return names


def _offer(folder: Path) -> str:
    names = pulled_models(folder)
    if not names:
        return "there are no models at all (does OLLAMA_MODELS name the right folder?)"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there are {', '.join(names[:_LISTED])}{more}"
