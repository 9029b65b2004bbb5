"""Every error that ggufnorm raises on purpose, and the exit code of each.

::

    GgufnormError
    ├── MissingPackageError     2   an optional package is not installed
    ├── InputError              3   an input cannot be read
    │   ├── GGUFError           3   … because it is not well-formed GGUF
    │   │   └── TensorDataError 3   … because a tensor's data is not where it should be
    │   ├── TensorTypeError     3   … because a tensor's type is not known
    │   ├── TextError           3   … because the text cannot be used
    │   ├── OutputError         3   … or an output cannot be written
    │   └── MismatchError       3   … because two models are not the same network
    ├── ConfigError             2   an option or a configuration file is wrong
    └── EngineError             4   llama.cpp could not do what was asked of it
        ├── RefusedError        4   … because it is asked for something impossible
        ├── EngineMissingError  4   … because it is not installed
        │   └── NoQuantizerError 4   … or is a build that runs models and makes none
        └── MemoryLimitError    4   … because the memory does not suffice

Exit code 0 means that all is well, 1 that a threshold was crossed, 2 that the
command line was wrong (click's own errors), 70 that ggufnorm itself is at fault
(any other exception), 130 that the user interrupted, 143 and 129 that the
process was told to end (SIGTERM, SIGHUP).
A message is one line: what failed, where, and what to try.
"""

from __future__ import annotations


class GgufnormError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is the CLI's exit code.

    Attributes:
        result: what had been found before, None for nothing: long work that fails at its
            end is not lost.
    """

    exit_code = 70
    result: object | None = None


class MissingPackageError(GgufnormError):
    """What was asked for needs a package that is not installed."""

    exit_code = 2


class InputError(GgufnormError):
    """A file cannot be read, or cannot be used for what was asked."""

    exit_code = 3


class GGUFError(InputError):
    """A file is not well-formed GGUF.

    Attributes:
        path: the file.
        offset: byte offset in the file at which the trouble was found.
        field: what stands there, for example ``"metadata key 3"``.
    """

    def __init__(self, path: str, offset: int, field: str, problem: str) -> None:
        super().__init__(path, offset, field, problem)  # whole: errors cross processes
        self.path = path
        self.offset = offset
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.field}: {self.problem}"


class TensorDataError(GGUFError):
    """A tensor's data reaches beyond the file's end or into another tensor's.

    Attributes:
        tensor: its name.
        whole: bytes that the file would have with all data; None if it is not short.
    """

    def __init__(
        self,
        path: str,
        offset: int,
        field: str,
        problem: str,
        tensor: str,
        whole: int | None = None,
    ) -> None:
        super().__init__(path, offset, field, problem)
        self.args = (path, offset, field, problem, tensor, whole)
        self.tensor = tensor
        self.whole = whole


class TensorTypeError(InputError):
    """A tensor is of a type that cannot be converted to float32 here."""


class TextError(InputError):
    """The text to run cannot be read or is too short."""


class OutputError(InputError):
    """A file or the standard output cannot be written, or is an input of the command."""


class TooLargeError(OutputError):
    """A file would take more bytes than anybody agreed to; nothing was written."""


class MismatchError(InputError):
    """The two models are not two versions of one network."""


class ConfigError(GgufnormError):
    """An option or a configuration file does not mean anything."""

    exit_code = 2


class EngineError(GgufnormError):
    """llama.cpp refused, failed or crashed.

    Attributes:
        log: the last lines that llama.cpp wrote, oldest first.
    """

    exit_code = 4

    def __init__(self, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log = log


class RefusedError(EngineError):
    """llama.cpp says that what it was asked for is not possible.

    Only this error means so: a crash, a full disk or a lack of memory is another.
    """


class EngineMissingError(EngineError):
    """llama-cpp-python is not installed, or its layout is not one we know."""


class NoQuantizerError(EngineMissingError):
    """This build of llama.cpp runs models, and has no quantizer."""


class MemoryLimitError(EngineError):
    """The models do not fit into the memory of this machine."""
