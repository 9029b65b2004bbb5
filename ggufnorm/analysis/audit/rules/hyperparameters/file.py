"""H2xx: the label of the file's type, and its length."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.formats.file_type import inner_types, label_of, mislabelled


@rule("H201", "file-type", "warning")
def file_type(subject: Subject) -> Iterator[Problem]:
    """The label of the file's type is not borne out by its tensors.

    What it does:
        Compares ``general.file_type`` with the types of the matrices. The label's own type,
        or what llama.cpp takes where its blocks do not fit a row, must be that of some of
        the weights.

    Why it matters:
        The label is what users and programs go by: a file that is called Q8_0 and holds
        Q4_0 is not as good as it says.

    What to do:
        Set ``general.file_type``, or find out which file this is.

    Example:
        ``general.file_type says Q8_0, but 100 % of the matrices' weights are Q4_0``
    """
    label = subject.metadata.integer("general.file_type")
    if label is None:
        raise NotApplicableError("the file has no general.file_type")
    name = label_of(label)
    if name is None:
        raise NotApplicableError(f"general.file_type {label} is not known")
    tensors = subject.file.tensors.values()
    weights = inner_types(tensors)
    if not weights:
        raise NotApplicableError("the file has no matrices")
    message = mislabelled(name, tensors)
    if message is not None:
        evidence = {"key": "general.file_type", "actual": label, "types": weights}
        yield Problem(message, evidence=evidence)


@rule("H202", "trailing-bytes", "warning")
def trailing(subject: Subject) -> Iterator[Problem]:
    """The file goes on behind its last tensor.

    What it does:
        Compares the size of each file with the end of its last tensor, padded to the
        alignment.

    Why it matters:
        Nothing reads these bytes: two files were joined, a download wrote twice, or
        something is hidden there.

    What to do:
        Download or convert the file again.

    Example:
        ``1,048,576 bytes follow the last tensor``
    """
    for file in subject.file.shards:
        n = file.n_trailing
        if n:
            message = f"{n:,} bytes follow the last tensor"
            if len(subject.file.shards) > 1:
                message = f"{file.path}: {message}"
            yield Problem(message, evidence={"n_bytes": n, "end": file.size - n})


RULES: tuple[Rule, ...] = (file_type, trailing)
