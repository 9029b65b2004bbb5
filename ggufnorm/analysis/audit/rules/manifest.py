"""The file beside a manifest of what it held (``--manifest``)."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.analysis.diff.metadata import affects
from ggufnorm.core.manifest import Manifest
from ggufnorm.formats.naming import layer_of


def _both(subject: Subject) -> tuple[Manifest, Manifest]:
    if subject.manifest is None:
        raise NotApplicableError("no manifest was given (--manifest)")
    return subject.manifest, subject.digests


@rule("M101", "tensor-changed", "error")
def tensor_changed(subject: Subject) -> Iterator[Problem]:
    """A tensor does not hold what it held when the manifest was made.

    What it does:
        Digests type, shape and bytes of each tensor and compares them with the manifest
        (``--manifest``).

    Why it matters:
        Somebody or something has changed the file: a download that broke, a disk that fails, an
        edit, another upload under the same name. It computes something else.

    What to do:
        Fetch the file again, or make a new manifest if the change is meant
        (``--save-manifest``).

    Example:
        ``blk.7.ffn_down.weight`` is Q4_K as in the manifest, but its bytes are others.
    """
    then, now = _both(subject)
    held = {t.name: t for t in then.tensors}
    for t in now.tensors:
        before = held.get(t.name)
        if before is None or before.digest == t.digest:
            continue
        moved = next((b.name for b in then.tensors if b.digest == t.digest), None)
        if (before.dtype, before.shape) != (t.dtype, t.shape):
            what = f"it was {before.dtype} {before.shape} and is {t.dtype} {t.shape}"
        elif moved is not None:
            what = f"it holds what {moved} held"
        else:
            what = f"its {t.dtype} bytes are not those of the manifest"
        evidence = {"expected": before.digest, "found": t.digest, "holds": moved}
        yield Problem(f"{t.name}: {what}", t.name, layer_of(t.name), evidence)


@rule("M102", "tensors-of-manifest", "error")
def tensors_of_manifest(subject: Subject) -> Iterator[Problem]:
    """The file lacks a tensor of the manifest, or has one that was not there.

    What it does:
        Compares the names with those of the manifest. A tensor whose bytes are there under
        another name was renamed: a warning.

    Why it matters:
        llama.cpp ignores or refuses tensors that it does not expect, and silently goes without
        some of those it lacks.

    What to do:
        Fetch the file again, or make a new manifest if the change is meant.

    Example:
        ``output.weight`` of the manifest is not in the file.
    """
    then, now = _both(subject)
    held, holds = ({t.name: t for t in m.tensors} for m in (then, now))
    names = {t.digest: t.name for t in now.tensors if t.name not in held}
    renamed = {names[t.digest] for n, t in held.items() if n not in holds and t.digest in names}
    for name, t in held.items():
        if name in holds:
            continue
        now_called = names.get(t.digest)
        if now_called is None:
            yield Problem(f"{name} of the manifest is not in the file", name, layer_of(name))
        else:
            message = f"{name} of the manifest is called {now_called} now"
            yield Problem(message, now_called, layer_of(now_called), severity="warning")
    for name in holds:
        if name not in held and name not in renamed:
            yield Problem(f"{name} is not in the manifest", name, layer_of(name))


@rule("M103", "key-changed", "error")
def key_changed(subject: Subject) -> Iterator[Problem]:
    """A metadata key has not the value that it had when the manifest was made.

    What it does:
        Digests the value of each key. One that changes neither the network's computation nor the
        token ids (a name, a date) is told as info.

    Why it matters:
        Hyperparameters and the vocabulary are keys: another value computes something else with
        the same tensors.

    What to do:
        Fetch the file again, or make a new manifest if the change is meant.

    Example:
        ``llama.rope.freq_base`` has another value than in the manifest.
    """
    then, now = _both(subject)
    for key in dict.fromkeys((*then.keys, *now.keys)):
        before, after = then.keys.get(key), now.keys.get(key)
        if before == after:
            continue
        what = (
            "is not in the file" if after is None
            else "was not in the file" if before is None
            else "has another value"
        )  # fmt: skip
        effect = affects(key, [subject.architecture])
        yield Problem(
            f"{key} {what} {'any more' if after is None else 'when the manifest was made'}",
            evidence={"key": key, "affects": effect},
            severity="info" if effect == "nothing" else None,
        )


RULES = (tensor_changed, tensors_of_manifest, key_changed)
