"""What was verified, as an in-toto statement that can be signed elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ggufnorm.core.verify import VerifyReport
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.version import __version__

_STATEMENT = "https://in-toto.io/Statement/v1"
"""Its type, as in-toto's attestation framework names it (spec/v1/statement.md)."""
PREDICATE = "urn:ggufnorm:requantized:v1"
_PART = 1 << 22


def statement(report: VerifyReport) -> str:
    """The statement that a file was made again bit for bit from its source.

    Its subjects are the file, or each shard of a set; the source and the importance matrix are
    named by their digests, and the parameters are those of llama-quantize: a type for each tensor.

    Args:
        report: of a file that :attr:`~ggufnorm.core.verify.VerifyReport.is_derived`.

    Raises:
        ValueError: it is not: then there is nothing to attest.
        InputError: a file is not on this machine.
    """
    if not report.is_derived:
        raise ValueError("the file is not what its source gives: there is nothing to attest")
    materials = [*_resources(report.source.path)]
    if report.imatrix is not None:
        materials.append(_resource(Path(report.imatrix)))
    value = {
        "_type": _STATEMENT,
        "subject": list(_resources(report.quant.path)),
        "predicateType": PREDICATE,
        "predicate": {
            "verifier": f"ggufnorm {__version__}",
            "quantizer": report.engine,
            "materials": materials,
            "fileType": report.quant.file_type,
            "tensorTypes": {t.tensor: t.dtype for t in report.tensors},
            "result": "every tensor was made again, bit for bit",
        },
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _resources(location: str) -> list[dict[str, Any]]:
    with open_model(local_path(location)) as file:
        return [_resource(Path(shard.path)) for shard in file.shards]


def _resource(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(_PART):
            digest.update(part)
    return {"name": path.name, "digest": {"sha256": digest.hexdigest()}}
