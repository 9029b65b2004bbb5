"""Results as tables of pandas."""

from __future__ import annotations

from typing import Any

from ggufnorm.core.plain import to_plain
from ggufnorm.core.result import Result
from ggufnorm.errors import InputError, MissingPackageError


def to_dataframe(result: Result, part: str | None = None) -> Any:
    """A part of a result as a ``pandas.DataFrame``; nested names are joined by dots.

    Args:
        result: the whole.
        part: name of a field that holds several things of a kind, for example ``norms``;
            by default operations of a drift report, tensors of a diff, norms of an
            inspection: the main table of the kind, or the first such field.

    Raises:
        InputError: there is no such part.
        MissingPackageError: pandas is not installed.
    """
    from ggufnorm.report.kinds import kind_of

    parts = [name for name, value in vars(result).items() if isinstance(value, tuple)]
    main = kind_of(result).main
    chosen = part or (main if main in parts else next(iter(parts), None))
    if chosen not in parts:
        raise InputError(f"no table {chosen!r} in this {type(result).__name__}: {', '.join(parts)}")
    try:
        from pandas import json_normalize
    except ImportError:
        raise MissingPackageError("a data frame needs pandas: pip install pandas") from None
    return json_normalize([to_plain(row) for row in getattr(result, chosen)])
