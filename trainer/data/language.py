"""Identify the language of a text, if that is certain.

py3langid is a naive Bayes model over byte n-grams: 4 MB, deterministic and offline. Its confidence is spread
over 130 languages and grows with the length of the text. Code, formulas and very short texts stay far below
SURE, so they have no language and a filter keeps them (figures in docs/log.md).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from trainer.errors import DataError

SURE = 0.5
CHARACTERS = 1000  # enough to be sure; the time grows with them
NO_LANGUAGE = "zxx"  # the model's own class, ISO 639-2's code for no linguistic content


def sure_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of the first characters, or None if it is uncertain."""
    language, confidence = _identifier().classify(text[:CHARACTERS])
    return str(language) if confidence >= SURE and language != NO_LANGUAGE else None


def check_languages(languages: Sequence[str]) -> None:
    """Check the codes of a filter. Raises: DataError naming those that the model does not know."""
    known = set(_identifier().labels) - {NO_LANGUAGE}
    if unknown := sorted(set(languages) - known):
        raise DataError(f"data.filters.languages {', '.join(unknown)}: expected codes such as en, de, zh")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, for this filter only

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
