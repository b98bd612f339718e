"""Load a data set of the Hugging Face Hub, and say in one sentence why it cannot be loaded.

`datasets` and `huggingface_hub` download, resume and cache. They read HF_TOKEN, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE themselves.
"""

import ast
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.source_name import HUB, HubName

COMMIT = re.compile("[0-9a-f]{40}")
TIMEOUT_S = 10  # of a check before any work
LOCAL = "or download its files and give them as data.source"
GATED = (
    "is gated: accept its terms on its page of the Hugging Face Hub, make a read token in your account's "
    "settings, and set HF_TOKEN to it"
)
UNKNOWN = "is not on the Hub, or HF_TOKEN has no access to it: check the name, or set HF_TOKEN"
UNREACHED = (
    f"cannot be loaded, because the Hub cannot be reached: run the same command with a network, {LOCAL}"
)
OFFLINE = f"is not in the cache, and HF_HUB_OFFLINE forbids the network: unset it, {LOCAL}"
MIXED = f"has files of different columns, which make no one table: name a subset, {LOCAL}"
NO_ROWS = "has no files that can be read as rows"
MESSAGES = {  # of `datasets`, which keeps no more of what failed; those that say most come first
    "is a gated dataset": GATED,
    "doesn't exist on the Hub or cannot be accessed": UNKNOWN,
    "Couldn't reach": UNREACHED,
    "scripts are no longer supported": "is a program, which is not run: give another, or its files",
    "Couldn't cast": MIXED,
    "same columns": MIXED,
    "No (supported) data files": NO_ROWS,
    "doesn't contain any data": NO_ROWS,
    "error occurred while generating": "has a file that cannot be read: download its files and give them as "
    "data.source, where a broken row costs only itself",
}


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


def commit_of(splits: Mapping[str, Any]) -> str | None:
    """Return the commit that loaded splits are of, by the folder in which `datasets` keeps them."""
    files = [file for rows in splits.values() for file in rows.cache_files]
    folder = Path(files[0]["filename"]).parent.name if files else ""
    return folder if COMMIT.fullmatch(folder) else None


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
        # Too many requests is no answer: loading waits as long as the Hub asks for, and then tells it.
        return None if _status(error) == 429 else problem(name, error)
    return None


def problem(name: HubName, error: BaseException) -> str:
    """Return one sentence: what failed, and what to do."""
    from huggingface_hub import constants

    causes = list(_causes(error))
    found = next(filter(None, (_refusal(name, cause) for cause in causes)), None)
    found = found or _of_the_messages(name, "\n".join(map(str, causes)))
    if found == UNREACHED and constants.is_offline_mode():
        found = OFFLINE
    if found:
        return f"data set {name} {found}"
    said = next((line for cause in causes for line in str(cause).splitlines() if line.strip()), "no message")
    what = f"{type(causes[0]).__name__}: {said[:200]}"
    return f"data set {name} cannot be loaded ({what}): run the same command again, {LOCAL}"


def _refusal(name: HubName, error: BaseException) -> str | None:
    """Return what a refusal of the Hub, or its silence, means."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return GATED
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {name.revision}: give a branch, a tag or a commit of it after @"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UNKNOWN
    status = _status(error)
    if status == 429:
        answer: Any = getattr(error, "response", None)
        wait = answer.headers.get("Retry-After", "")
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
        return UNREACHED
    return None


def _status(error: BaseException) -> int:
    """Return the status of the answer that an error is about, or 0."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _of_the_messages(name: HubName, said: str) -> str | None:
    """Return what the messages of `datasets` mean."""
    subsets = _names(said, "available configs: ") or _names(said, "Available: ")
    if subsets and "Config name is missing" in said:
        some = ", ".join(subsets)
        return f"has several subsets, {some}: name one, such as {HUB}{name.repository}:{subsets[0]}"
    if subsets:
        return f"has no subset {name.subset}: it has {', '.join(subsets)}"
    return next((meaning for words, meaning in MESSAGES.items() if words in said), None)


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
