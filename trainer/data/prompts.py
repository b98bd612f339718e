"""Read files of prompts: one a line, without empty lines and comments.

This module imports no library, so that a check before any work can read them.
"""

from pathlib import Path

from trainer.errors import DataError

FOLLOWS_UP = ">"


def read_prompts(file: Path, key: str) -> list[str]:
    """Read one prompt a line, without empty lines and lines that begin with #.

    key: the setting that names the file. Raises: DataError if it cannot be read or holds no prompt.
    """
    if file.exists() and not file.is_file():
        raise DataError(f"{key} {file} is no file")  # opening a pipe would wait for a writer
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{key} {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{key} {file} is not UTF-8 text") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise DataError(f"{key} {file} holds no prompt; write one a line")
    return prompts


def read_conversations(file: Path, key: str) -> list[list[str]]:
    """Read the questions of each conversation: a line that begins with `>` follows up the one before.

    key: the setting that names the file. Raises: DataError if it cannot be read or begins with a follow-up.
    """
    conversations: list[list[str]] = []
    for line in read_prompts(file, key):
        if not line.startswith(FOLLOWS_UP):
            conversations.append([line])
        elif conversations:
            conversations[-1].append(line.removeprefix(FOLLOWS_UP).strip())
        else:
            raise DataError(f"{key} {file} begins with {line!r}, which follows up no prompt")
    return conversations
