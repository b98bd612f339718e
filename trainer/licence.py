"""Apply what the base model's licence requires of a model made from it, for the Llama Community Licences.

They ask that the model's name begins with "Llama", that "Built with Llama" is shown, and that a NOTICE
file with one given line goes with the weights, next to a copy of the licence (section 1.b of each
version). Llama 3 words it with its version, Llama 2 asks for the copy and the line only. Other licences
ask for nothing here: their files are copied.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LlamaTerms:
    """name_prefix and built_with are empty where that version does not ask for them."""

    name_prefix: str
    built_with: str
    notice: str


def llama_terms(licence: str) -> LlamaTerms | None:
    """The terms for a Hugging Face licence identifier such as `llama3.2`, None for other licences."""
    version = licence.lower().removeprefix("llama")
    if version == licence.lower():
        return None
    rights = "Meta Platforms, Inc. All Rights Reserved."
    if version == "2":
        notice = f"Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) {rights}"
        return LlamaTerms("", "", notice)
    if version == "3":
        notice = f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © {rights}"
        return LlamaTerms("Llama 3", "Built with Meta Llama 3", notice)
    notice = f"Llama {version} is licensed under the Llama {version} Community License, Copyright © {rights}"
    return LlamaTerms("Llama", "Built with Llama", notice)


def wrong_name(name: str, licence: str) -> str | None:
    """Why a model of this name may not be made from a base of this licence, None if it may."""
    terms = llama_terms(licence)
    if terms is None:
        return None
    # An artifact's name holds no spaces: "Llama-3" is how "Llama 3" is written there.
    if name.replace("-", " ").startswith(terms.name_prefix):
        return None
    return f"the licence {licence} asks for a model name that begins with {terms.name_prefix!r}, not {name!r}"
