"""Chat templates of models that think, in the manners of families, and artifacts with them."""

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from api.engine.delta import ThinkingDelta

_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
_EARLIER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
)
# The prompt ends with the opening marker: QwQ, DeepSeek's distilled models.
OPENED = f"{_TURNS}{_BEGIN}{{{{ '<think>\n' }}}}{{% endif %}}"
# The model writes the marker, unless the prompt has a closed block: Qwen 3, SmolLM 3.
HYBRID = (
    f"{_EARLIER}{_BEGIN}{{% if enable_thinking is defined and enable_thinking is false %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The prompt opens or closes a block: Qwen 3.5, and DeepSeek 3.1, which does not think unless it is told.
SWITCHED = (
    f"{_EARLIER}{_BEGIN}{{% if enable_thinking is defined and not enable_thinking %}}"
    "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
ASKED = f"{_TURNS}{_BEGIN}{{{{ '<think>' if thinking else '</think>' }}}}{{% endif %}}"
# Words tell the model to think: Granite.
TOLD = f"{{% if thinking %}}Think between <think> and </think>.{{% endif %}}{_TURNS}{_BEGIN}{{% endif %}}"
# Only earlier turns show that the model thinks: the first template of DeepSeek R1.
UNOPENED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}"
    f"{{{{ '<|im_end|>\n' }}}}{{% endfor %}}{_BEGIN}{{% endif %}}"
)
OTHER_MARKERS = OPENED.replace("<think>", "[THINK]")
# The tag is transformers' own; one template in a few has it.
TAGGED = HYBRID.replace(
    "{{ m.content + '<|im_end|>\n' }}", "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
)


MARKERS = {
    "<jupyter_output>": "<think>",
    "<jupyter_script>": "</think>",
}  # tokens of SmolLM2 that nobody uses
END = 2  # its <|im_end|>


def thinking_artifact(model: Path, artifacts: Path, template: str, special: bool | None = None) -> None:
    """Copy an artifact to another folder of artifacts, with another template.

    The model hardly ever ends by itself, whatever it has learned, so that it thinks until it is told to stop.
    special: the markers are tokens of their own, control tokens or not; None: they are not.
    """
    changed_artifact(model, artifacts, template, {} if special is None else MARKERS, bool(special), END)


def changed_artifact(
    model: Path,
    artifacts: Path,
    template: str,
    renamed: Mapping[str, str],
    special: bool = True,
    unlikely: int | None = None,
) -> None:
    """Copy an artifact to another folder of artifacts, with another template.

    renamed: tokens with their new texts. special: they are control tokens. unlikely: a token's id that the
    model hardly ever writes then.
    """
    copied = artifacts / "models" / "changed"
    shutil.copytree(model, copied)
    (copied.parent / "current").symlink_to(copied.name)
    (copied / "chat_template.jinja").write_text(template)
    _rename_tokens(copied / "tokenizer.json", renamed, special)
    if unlikely is not None:
        _make_unlikely(copied / "model.safetensors", unlikely)
    manifest = json.loads((copied / "manifest.json").read_text())
    for name in ("chat_template.jinja", "tokenizer.json", "model.safetensors"):
        content = (copied / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (copied / "manifest.json").write_text(json.dumps(manifest | {"id": copied.name}))


def _make_unlikely(file: Path, token: int) -> None:
    """Set the embedding of a token to zeros, and with it its logit: input and output share it."""
    with file.open("r+b") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        tensor = json.loads(opened.read(length))["model.embed_tokens.weight"]
        begin, end = tensor["data_offsets"]
        width = (end - begin) // tensor["shape"][0]
        opened.seek(8 + length + begin + token * width)
        opened.write(bytes(width))


def _rename_tokens(file: Path, renamed: Mapping[str, str], special: bool) -> None:
    tokenizer: dict[str, Any] = json.loads(file.read_text())
    for token in tokenizer["added_tokens"]:
        if token["content"] in renamed:
            token |= {"content": renamed[token["content"]], "special": special}
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {renamed.get(token, token): id for token, id in vocabulary.items()}
    file.write_text(json.dumps(tokenizer))


def deltas(
    tokenizer: Any, pieces: Sequence[str], reason: Any = "stop", index: int = 0
) -> list[ThinkingDelta]:
    """Return what the engine makes of these pieces of an answer, whose end is a token without text."""
    found = []
    for piece in pieces:
        ids = tokenizer.encode(piece, add_special_tokens=False)
        logprobs = [[(id, -0.5)] for id in ids]
        found.append(ThinkingDelta(piece, len(ids), None, index, logprobs, ids=ids))
    end = tokenizer.eos_token_id
    return [*found, ThinkingDelta("", 1, reason, index, [[(end, -0.5)]], ids=[end])]
