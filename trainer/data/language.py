"""The language of a text, told only where it is sure.

py3langid is a naive Bayes model over byte n-grams, 4 MB, deterministic and offline. Its confidence is spread
over 130 languages and grows with the length of the text, so code, formulas and a few words stay far
below SURE: they are told as no language at all, and a filter keeps them (figures in docs/log.md).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from trainer.errors import DataError

SURE = 0.5
CHARACTERS = 1000  # enough to be sure; the time grows with them
NO_LANGUAGE = "zxx"  # the model's own class, ISO 639-2's code for no linguistic content


def sure_language(text: str) -> str | None:
    """The ISO 639-1 code of the language that the first characters are in, None where it is unsure."""
    language, confidence = _identifier().classify(text[:CHARACTERS])
    return str(language) if confidence >= SURE and language != NO_LANGUAGE else None


def check_languages(languages: Sequence[str]) -> None:
    """Raises: DataError naming those that no text is ever found to be in."""
    known = set(_identifier().labels) - {NO_LANGUAGE}
    if unknown := sorted(set(languages) - known):
        raise DataError(f"data.filters.languages {', '.join(unknown)}: expected codes such as en, de, zh")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, for this filter only

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
