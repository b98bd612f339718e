"""Read the name of a data source: `stdlib-docs`, a path, or a data set of the Hugging Face Hub."""

import re
from dataclasses import dataclass
from pathlib import Path

HUB = "hub:"
HUB_FORM = "hub:OWNER/NAME:SUBSET@REVISION#SPLIT"  # all but OWNER/NAME may be left out
_HUB = re.compile(
    r"hub:(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?::(?P<subset>[^@#]+))?"
    r"(?:@(?P<revision>[^:#]+))?(?:#(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set of the Hub. subset, revision, split: None if the source names none."""

    repository: str
    subset: str | None
    revision: str | None
    split: str | None

    @classmethod
    def parse(cls, source: str) -> "HubName":
        """Read `hub:...`. Raises: ValueError if it has not the form."""
        found = _HUB.fullmatch(source)
        if not found:
            raise ValueError(f"{source} is not of the form {HUB_FORM}, where only OWNER/NAME is needed")
        return cls(**found.groupdict())

    def __str__(self) -> str:
        """Return what a person calls it: `OWNER/NAME`, with the subset if there is one."""
        return f"{self.repository}:{self.subset}" if self.subset else self.repository


def at_commit(source: str, commit: str | None) -> str:
    """Return a source of the Hub with this commit as its revision; another source as it is."""
    found = _HUB.fullmatch(source)
    if not (commit and found):
        return source
    subset, split = (
        f"{mark}{found[name]}" if found[name] else "" for mark, name in ((":", "subset"), ("#", "split"))
    )
    return f"{HUB}{found['repository']}{subset}@{commit}{split}"


def is_local(source: str) -> bool:
    """Return whether a source is a path, and neither built in nor on the Hub."""
    return source != "stdlib-docs" and not source.startswith(HUB)


def public_source(source: str) -> str:
    """Return the source as it may be published: only the last part of a path, not this machine's folders."""
    return Path(source).name if is_local(source) else source
