"""Load a data set of the Hugging Face Hub, and say in one sentence why it cannot be loaded.

`datasets` and `huggingface_hub` download, resume and cache. They read HF_TOKEN, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE themselves.
"""

import ast
import errno
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.errors import DataError
from trainer.source_name import HUB, HubName

TIMEOUT_S = 10  # of a check before any work
LOCAL = "or download its files and give them as data.source"


def load(name: HubName) -> Mapping[str, Any]:
    """Return the splits of a data set, or the one that `name` asks for. Raises: DataError."""
    from datasets import load_dataset

    try:
        # The prefix says that a folder of this name, where the user stands, is not meant.
        splits = load_dataset(f"hf://datasets/{name.repository}", name.subset, revision=name.revision)
    except Exception as error:  # datasets raises its own, the hub's and the network's errors
        if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in _causes(error)):
            raise
        raise DataError(problem(name, error)) from None
    if name.split is None:
        return dict(splits)
    if name.split not in splits:
        raise DataError(f"data set {name} has no split {name.split}: it has {', '.join(splits)}")
    return {name.split: splits[name.split]}


def check(name: HubName) -> str | None:
    """Return why a data set cannot be had, or None; without a download."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().auth_check(name.repository, repo_type="dataset")
        HfApi().dataset_info(name.repository, revision=name.revision, timeout=TIMEOUT_S)
    except OfflineModeIsEnabled:
        return None  # what the cache holds is enough, and only loading shows it
    except Exception as error:  # no route, no name, a proxy: httpx and OS errors
        return problem(name, error)
    return None


def problem(name: HubName, error: BaseException) -> str:
    """Return one sentence: what failed, and what to do."""
    causes = list(_causes(error))
    found = next(filter(None, (_refusal(name, cause) for cause in causes)), None)
    found = found or next(filter(None, (_of_the_content(name, str(cause)) for cause in causes)), None)
    if found:
        return f"data set {name} {found}"
    last = causes[-1]
    said = next((line for line in str(last).splitlines() if line.strip()), "no message")[:200]
    what = f"{type(last).__name__}: {said}"
    return f"data set {name} cannot be loaded ({what}): run the same command again, {LOCAL}"


def _refusal(name: HubName, error: BaseException) -> str | None:
    """Return what a refusal of the Hub, or its silence, means."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            "is gated: accept its terms on its page of the Hugging Face Hub, make a read token in your "
            "account's settings, and set HF_TOKEN to it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {name.revision}: give a branch, a tag or a commit of it after @"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return "is not on the Hub, or HF_TOKEN has no access to it: check the name, or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"is not in the cache, and HF_HUB_OFFLINE forbids the network: unset it, {LOCAL}"
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        after = f"after {wait} seconds" if wait.isdecimal() else "in a few minutes"
        return (
            "cannot be loaded, because the Hub has had too many requests from here (429): run the same "
            f"command again {after}, or set HF_TOKEN, which is allowed more"
        )
    if status in (401, 403):
        return f"is refused ({status}): set HF_TOKEN to a token that may read it"
    if status >= 500:
        return (
            f"cannot be loaded, because the Hub has a fault of its own ({status}): run the same command later"
        )
    if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(error, TimeoutError):
        return (
            f"cannot be loaded, because the Hub cannot be reached ({type(error).__name__}): run the same "
            f"command again with a network, {LOCAL}"
        )
    return None


def _of_the_content(name: HubName, said: str) -> str | None:
    """Return what a message of `datasets` about the data set's files means."""
    subsets = _names(said, "available configs: ") or _names(said, "Available: ")
    if subsets and "Config name is missing" in said:
        some = ", ".join(subsets)
        return f"has several subsets, {some}: name one, such as {HUB}{name.repository}:{subsets[0]}"
    if subsets:
        return f"has no subset {name.subset}: it has {', '.join(subsets)}"
    if "scripts are no longer supported" in said:
        return f"is a program, which is not run: its tables may be at {HUB}{name}@refs/convert/parquet"
    if "same columns" in said:
        return f"has files of different columns, which make no one table: name a subset, {LOCAL}"
    if "No (supported) data files" in said or "doesn't contain any data" in said:
        return "has no files that can be read as rows"
    return None


def _names(said: str, before: str) -> list[str]:
    """Return the names in the list that a message shows after `before`."""
    found = re.search(re.escape(before) + r"(\[[^\]]*\])", said)
    try:
        return [str(name) for name in ast.literal_eval(found[1])] if found else []
    except (ValueError, SyntaxError):
        return []


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
