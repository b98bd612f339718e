"""Filter usable rows by score, size, source and language, as `data.filters` says."""

from trainer.config_data import DataFilters
from trainer.data.conversation import Conversation
from trainer.data.language import sure_language
from trainer.data.shapes import RowError


def check_wanted(row: Conversation, filters: DataFilters) -> None:
    """Check a row against the filters. Raises: RowError with the reason if it is filtered out."""
    if filters.only_sources and row.source not in filters.only_sources:
        raise RowError("source not in only_sources")
    if row.source in filters.without_sources:
        raise RowError("source in without_sources")
    if row.score is None:
        if filters.min_score is not None or filters.max_score is not None:
            raise RowError("no score")
    else:
        _check_range("score", row.score, filters.min_score, filters.max_score)
    characters = sum(len(message.content) for message in row.messages)
    _check_range("characters", characters, filters.min_characters, filters.max_characters)
    if filters.languages and (language := sure_language(row.text)) not in (None, *filters.languages):
        raise RowError(f"language {language}")


def _check_range(what: str, value: float, least: float | None, most: float | None) -> None:
    if least is not None and value < least:
        raise RowError(f"{what} under {least}")
    if most is not None and value > most:
        raise RowError(f"{what} over {most}")
