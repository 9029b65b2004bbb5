"""Models in repositories of the Hugging Face Hub.

Endpoint, token and cache are those of huggingface_hub: ``HF_ENDPOINT``, ``HF_TOKEN`` or
the saved token, ``HF_HOME``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import httpx2
from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from ggufnorm.errors import InputError
from ggufnorm.formats.connection import (
    Connection,
    DeadlineError,
    Patience,
    current_connection,
    one_line,
)
from ggufnorm.formats.remote import RemotePlace, RemoteStorage
from ggufnorm.formats.split import all_shards
from ggufnorm.version import __version__

DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
"""Tried in turn where no quant is named, before the first GGUF file of the repository."""

_NOT_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Parts of the names of GGUF files that go with a model (``gguf_filename_is_model``)."""

_LISTED = 20
_PAGE = 500
"""Repositories that one request lists."""
_MAX_INFO = 1 << 25
"""Bytes of what the Hub says of a repository."""

_LOCATION = re.compile(
    r"hf://(?P<repo>[^/@:]+/[^/@:]+)"
    r"(?:@(?P<revision>refs/[^/:]+/[^/:]+|[^/:]+))?"
    r"(?:/(?P<file>.+)|:(?P<quant>[^/:]+))?",
    re.DOTALL,
)
_ORGANISATION = re.compile(r"hf://(?P<org>[^/@:*?\[]+)/?")
_LATER_SHARD = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        repo: ``org/name``.
        revision: the commit, so that all requests see the same files.
        path: within the repository.
        name: the location that names it: ``hf://…``.
    """

    repo: str
    revision: str
    path: str
    name: str


def find_file(location: str) -> HubFile:
    """The file that a location stands for.

    Args:
        location: ``hf://org/repo[@revision]/file.gguf``, or
            ``hf://org/repo[@revision][:QUANT]`` for the file that ``llama.cpp -hf`` takes.

    Raises:
        InputError: the location is malformed; the repository, the revision, the file or
            the quant does not exist; or the Hub cannot be reached.
    """
    parts = _parse(location)
    repo, asked = parts["repo"], _revision(parts)
    commit, files = list_files(location, repo, asked)
    if parts["file"]:
        path = parts["file"]
        if path not in files:
            raise InputError(f"{location}: the repository has no such file; {_offer(files)}")
    else:
        chosen = choose_file(files, parts["quant"])
        if chosen is None:
            what = f"no {parts['quant']} file" if parts["quant"] else "no GGUF model"
            raise InputError(f"{location}: the repository has {what}; {_offer(files)}")
        path = chosen
    at = f"@{parts['revision']}" if asked else ""
    return HubFile(repo, commit, path, f"hf://{repo}{at}/{path}")


def choose_file(files: Sequence[str], quant: str | None) -> str | None:
    """The file that ``llama.cpp -hf repo[:quant]`` takes, None where there is none.

    As in ``find_best_model`` (``common/download.cpp``): the first file whose path has the
    quant's name, in any case, before a dot or a dash. Without a quant: Q4_K_M, then Q8_0,
    then the first model. Of a split model the first shard.
    """
    models = _models(files)
    for tag in (quant,) if quant else DEFAULT_QUANTS:
        pattern = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE)
        for path in models:
            if pattern.search(path):
                return path
    return None if quant else next(iter(models), None)


def _models(files: Sequence[str]) -> list[str]:
    return [
        path
        for path in files
        if path.endswith(".gguf")
        and not any(part in path.rpartition("/")[2] for part in _NOT_MODELS)
        and not _LATER_SHARD.search(path)
    ]


def list_files(location: str, repo: str, revision: str | None) -> tuple[str, list[str]]:
    """Commit and files of a repository.

    Raises:
        InputError: they cannot be had.
    """
    known = _LISTED_COMMITS.get((endpoint(), repo, revision or ""))
    if known is not None:
        return revision or "", known
    try:
        return _model_info(repo, revision)
    except InputError as error:
        raise InputError(f"{location}: {error}") from None
    except GatedRepoError:
        raise InputError(f"{location}: {_hints(repo)[403]}") from None
    except RevisionNotFoundError:
        raise InputError(f"{location}: {repo} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{location}: there is no repository {repo}, or it is private: check its name;"
            " for a private one set HF_TOKEN or run `hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(f"{location}: {endpoint()} answered with status {status}") from None
    except HFValidationError as error:
        raise InputError(f"{location}: {one_line(error)}") from None
    except Exception as error:  # of the HTTP client, or whatever the answer is
        raise InputError(f"{location}: cannot ask {endpoint()}: {one_line(error)}") from None


def _model_info(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """As ``HfApi.model_info`` asks for it, which has no limit of time or size."""
    validate_repo_id(repo)
    url = f"{endpoint()}/api/models/{repo}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    info = _asked(url).json()
    return str(info.get("sha") or revision or "main"), _files(info)


def _asked(url: str) -> httpx2.Response:
    """What the Hub answers, asked again where that may help.

    Raises:
        InputError: it cannot be reached, or wants less of us.
        HfHubHTTPError: it refuses.
    """
    connection = current_connection()

    def ask() -> httpx2.Response:
        try:
            response = connection.get(url, _headers(), _MAX_INFO)
        except DeadlineError as error:
            raise InputError(f"cannot ask {endpoint()}: {one_line(error)}") from None
        connection.require_lasting(response)
        return response

    response = connection.attempts(f"cannot ask {endpoint()}", ask)
    hf_raise_for_status(response)
    return response


def _files(info: Mapping[str, Any]) -> list[str]:
    return [str(file["rfilename"]) for file in info.get("siblings") or ()]


_LISTED_COMMITS: dict[tuple[str, str, str], list[str]] = {}
"""Endpoint, repository and commit to its files, which never change: of organisations that were
listed, so that their repositories need not be asked one by one."""


def expand(location: str) -> list[str]:
    """The GGUF models of an organisation, or of a repository, as locations at one commit each.

    Later shards of a split model are left out, and files that are no models by their names
    (:func:`choose_file`).

    Args:
        location: ``hf://org``, or a pattern of files: ``hf://org/repo[@revision]/*.gguf``.

    Returns:
        The repositories as the Hub lists them, the files of each by name.

    Raises:
        InputError: there is none, or they cannot be had.
    """
    if found := _ORGANISATION.fullmatch(location):
        models = [
            f"hf://{repo}@{commit}/{path}"
            for repo, commit, files in _repositories(location, found["org"])
            for path in sorted(_models(files))
        ]
    else:
        parts = _parse(location)
        repo = parts["repo"]
        commit, files = list_files(location, repo, _revision(parts))
        _LISTED_COMMITS[endpoint(), repo, commit] = files
        models = [
            f"hf://{repo}@{commit}/{path}"
            for path in sorted(_models(files))
            if fnmatchcase(path, parts["file"])
        ]
    if not models:
        raise InputError(f"{location}: there is no GGUF model")
    return models


def stands_for_several(location: str) -> bool:
    """Whether a location on the Hub is for :func:`expand`."""
    parts = _LOCATION.fullmatch(location)
    is_pattern = parts is not None and parts["file"] and set(parts["file"]) & set("*?[")
    return bool(is_pattern or _ORGANISATION.fullmatch(location))


def _repositories(location: str, organisation: str) -> Iterator[tuple[str, str, list[str]]]:
    """Name, commit and files of each, by few requests."""
    query = {"author": organisation, "filter": "gguf", "full": "true", "limit": str(_PAGE)}
    url: str | None = f"{endpoint()}/api/models?{urlencode(query)}"
    while url:
        try:
            response = _asked(url)
            page = response.json()
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise InputError(f"{location}: {endpoint()} answered with status {status}") from None
        except InputError as error:
            raise InputError(f"{location}: {error}") from None
        except ValueError as error:
            raise InputError(f"{location}: cannot ask {endpoint()}: {one_line(error)}") from None
        for info in page:
            repo, commit, files = str(info["id"]), str(info.get("sha") or "main"), _files(info)
            _LISTED_COMMITS[endpoint(), repo, commit] = files
            yield repo, commit, files
        link = response.links.get("next", {}).get("url")
        url = str(link) if link and link.startswith(endpoint() + "/") else None


def endpoint() -> str:
    """Address of the Hub."""
    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def _headers() -> dict[str, str]:
    """Who asks, and the token. ``build_hf_headers`` itself asks the Hub, without a limit."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    agent = {"User-Agent": f"ggufnorm/{__version__}"}
    return {**agent, "Authorization": f"Bearer {token}"} if token else agent


def access(seconds: float) -> str:
    """How the Hub can be reached.

    Args:
        seconds: to wait for an answer.

    Raises:
        InputError: it cannot.
    """
    try:
        patience = Patience(timeout=seconds)
        status = Connection(patience).get(endpoint(), {}, 0, method="HEAD").status_code
    except Exception as error:  # the exceptions of the HTTP client, whichever it is
        raise InputError(f"cannot reach {endpoint()}: {one_line(error)}") from None
    if status >= 500:
        raise InputError(f"{endpoint()} answered with status {status}")
    return f"{endpoint()} answers, {'with' if get_token() else 'without'} a token"


def hub_place(location: str) -> RemotePlace:
    """Where the file of a location is read from.

    Raises:
        InputError: see :func:`find_file`.
    """
    file = find_file(location)
    url = hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=endpoint())
    headers = _headers()
    return RemotePlace(url, file.name, headers, _hints(file.repo))


class HubFolder:
    """The files at the top of a repository; see :class:`~ggufnorm.formats.folder.Folder`.

    Args:
        location: ``hf://org/repo[@revision]``.

    Raises:
        InputError: it is malformed or names a file; or see :func:`list_files`.
    """

    def __init__(self, location: str) -> None:
        parts = _LOCATION.fullmatch(location)
        if parts is None or parts["file"] or parts["quant"]:
            raise InputError(f"{location}: write hf://org/repo or hf://org/repo@revision")
        self.name = location
        self._repo = parts["repo"]
        self._commit, files = list_files(location, self._repo, _revision(parts))
        self._files = frozenset(files)
        self._names = sorted(path for path in files if "/" not in path)
        self._connection = current_connection()

    def names(self) -> list[str]:
        """See the class."""
        return self._names

    def storage(self, name: str) -> RemoteStorage | None:
        """One file, of which the front part has been fetched."""
        if name not in self._files:
            return None
        url = hf_hub_url(self._repo, name, revision=self._commit, endpoint=endpoint())
        headers = _headers()
        shown = f"{self.name}/{name}"
        return RemotePlace(url, shown, headers, _hints(self._repo), self._connection).open()


def downloaded(location: str) -> Path:
    """The file of a location in the local cache.

    The Hub is not asked where the location names a file that is there.

    Raises:
        InputError: it is not there; the message says how to download it.
    """
    parts = _parse(location)
    found = parts["file"] and _cached(parts["repo"], parts["file"], _revision(parts))
    if found:
        return found
    file = find_file(location)
    found = _cached(file.repo, file.path, file.revision)
    if found:
        return found
    names = " ".join(all_shards(file.path))
    raise InputError(
        f"{location}: running a model needs it on this machine: download it first with"
        f" `hf download {file.repo} {names}`"
    )


def snapshot(repo: str) -> Path:
    """The folder of a checkpoint ``org/name`` in the local cache; the Hub is not asked.

    Raises:
        InputError: it is not there; the message says how to download it.
    """
    try:
        found = _cached(repo, "config.json", None)
    except HFValidationError as error:
        raise InputError(f"{repo}: {one_line(error)}") from None
    if found is None:
        raise InputError(
            f"{repo}: no such folder, and no checkpoint of that name is on this machine: download"
            f" it first with `hf download {repo}`"
        )
    return found.parent


def _parse(location: str) -> re.Match[str]:
    parts = _LOCATION.fullmatch(location)
    if parts is None:
        raise InputError(
            f"{location}: write hf://org/repo/file.gguf, hf://org/repo@revision/file.gguf"
            " or hf://org/repo:QUANT"
        )
    return parts


def _revision(parts: re.Match[str]) -> str | None:
    return unquote(parts["revision"]) if parts["revision"] else None


def _cached(repo: str, path: str, revision: str | None) -> Path | None:
    found: Any = try_to_load_from_cache(repo, path, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hints(repo: str) -> Mapping[int, str]:
    login = "set HF_TOKEN or run `hf auth login`"
    refused = f"{repo} is gated or private: ask for access at {endpoint()}/{repo}, then {login}"
    return {401: refused, 403: refused, 404: f"check the name, or {login} if {repo} is private"}


def _offer(files: Sequence[str]) -> str:
    models = [path for path in files if path.endswith(".gguf")]
    if not models:
        return "it has no GGUF file at all"
    more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
    return f"its GGUF files: {', '.join(models[:_LISTED])}{more}"
