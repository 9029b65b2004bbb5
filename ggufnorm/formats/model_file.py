"""What all readers of a model have in common, in one file or in many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ggufnorm.formats.gguf import GGUFFile, Metadata
    from ggufnorm.formats.gguf_header import ByteOrder, Tensor
    from ggufnorm.formats.storage import Extent


class ModelFile(Protocol):
    """A GGUF model, read-only: a :class:`~ggufnorm.formats.gguf.GGUFFile` or a set of shards.

    A context manager.

    Attributes:
        path: of the model, as messages call it.
        byte_order: ``"<"`` for little endian, ``">"`` for big endian.
        metadata: key to value; a set's is that of its first shard.
        tensors: name to :class:`~ggufnorm.formats.gguf.Tensor`, in file order; a tensor's
            offset counts from the start of the shard that holds it.
        size: in bytes, of all shards together.
        shards: the files that the model is in.
    """

    path: str
    byte_order: ByteOrder
    metadata: Metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """See the class."""

    @property
    def shards(self) -> tuple[GGUFFile, ...]:
        """See the class."""

    @property
    def size(self) -> int:
        """See the class."""

    @property
    def architecture(self) -> str:
        """``general.architecture``, or the empty string."""

    def read_bytes(self, name: str) -> NDArray[np.uint8]:
        """The raw bytes of a tensor, as a copy in native memory.

        Raises:
            KeyError: there is no such tensor.
            InputError: its bytes cannot be had.
        """

    def read_part(
        self, name: str, start: int, n: int, into: memoryview | None = None
    ) -> bytes | memoryview:
        """``n`` bytes of a tensor from its byte ``start`` on, in the memory given if possible.

        Raises:
            KeyError: there is no such tensor.
            InputError: they cannot be had.
        """

    def extent(self, name: str) -> Extent:
        """Where a tensor's bytes are.

        Raises:
            KeyError: there is no such tensor.
        """

    def read_many(self, names: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
        """The raw bytes of several tensors, fetched together.

        Raises:
            KeyError: one of them does not exist.
            InputError: their bytes cannot be had.
        """

    def close(self) -> None:
        """Give the model back. Arrays already read stay valid: they are copies."""

    def __enter__(self) -> ModelFile: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
