"""The texts that the page shows: notices about failures, and the note under an answer. Plain text."""

from collections.abc import Sequence
from textwrap import shorten

from client import Answer
from errors import ApiError, CutShort, Malformed, Refused, TooMany, Unreachable, VoteRefused
from settings import Example

INTRO = "Ask anything, or start with one of these."
NO_ANSWER_YET = "This question has no answer yet."
TOO_LONG = (
    "This conversation no longer fits into the model's context. Leave out the oldest messages, or "
    "ask this question in a new chat. A lower answer length in the settings leaves more room."
)
TOO_LONG_ALONE = (
    "This message does not fit into the model's context. Shorten it, or lower the answer length in the "
    "settings."
)
EMPTY = "The model gave an empty answer. Try again, or change the settings."
ONLY_THOUGHT = (
    "The model was still thinking when its answer had to end. Allow longer answers in the settings."
)
CUT_OFF = "Not finished"
STOPPED = "Stopped"
BUILT_WITH_LLAMA = "Built with Llama"
VOTED = "Thank you. Your vote is stored."
VOTE_REFUSED = {
    "unknown": (
        "This vote was not stored: it does not belong to answers that this page has just given. Ask again, "
        "then vote on the new answers."
    ),
    "repeated": "You have voted on these answers already.",
    "full": "This vote was not stored: the server has no room for more votes.",
    "failed": "This vote could not be stored. Try again in a moment.",
}
ASK_TO_VOTE = "Which answer is better? A vote is stored on the server with the conversation."
STOPPED_EARLY = "Stopped before the answer began."
KEPT = "Your message is kept."
LIMITED = "The answer reached the length limit in the settings."
CONTINUE_PROMPT = (
    "Your last message was cut off. Go on exactly where it ended, with the next word; repeat nothing of "
    "it and say nothing about this."
)
# The action of a reader after a failure: its name, and the label of the button.
CHOICES = {
    "retry": "Try again",
    "continue": "Continue",
    "shorten": "Leave out the oldest messages",
    "new_chat": "Ask this in a new chat",
}


LABEL_WIDTH = 60
ASK = "ask "  # begins the name of a choice that asks the prompt after it


def example_buttons(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Return (label, name) of each example to try next; a label has the first two lines, shortened."""
    return [(_label(example.title), ASK + example.prompt) for example in examples]


def _label(title: str) -> str:
    first, *more = (shorten(line, LABEL_WIDTH, placeholder="…") for line in title.splitlines())
    return "\n".join([first, *more[:1]])


def answer_length_info(context_tokens: int | None, lowered_from: int | None = None) -> str:
    """Return what the answer length has to fit into. lowered_from: the setting that was above its end."""
    lowered = f"Lowered from {lowered_from:,}. " if lowered_from else ""
    if context_tokens is None:
        return f"{lowered}The API does not say how many tokens message and answer may have together."
    return (
        f"{lowered}Messages and answer share the model's context of {context_tokens:,} tokens. At the right "
        "end an answer may take all that the messages leave."
    )


def choice_buttons(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (label, name) of each choice."""
    return [(CHOICES[name], name) for name in names]


def failure_notice(failure: ApiError, *, begun: bool, alone: bool) -> tuple[str, tuple[str, ...]]:
    """Return (what is wrong, names of the choices).

    begun: part of the answer has arrived. alone: no earlier messages were sent with the question
    """
    if is_too_long(failure) and alone:
        return TOO_LONG_ALONE, ("retry",)
    if is_too_long(failure):
        return TOO_LONG, ("shorten", "new_chat")
    if begun:
        return explain(failure), ("continue", "retry")
    return f"{explain(failure)} {KEPT}", ("retry",)


def length_notice(answer: Answer) -> tuple[str, tuple[str, ...]]:
    """Return (notice, choices) for an answer that the length limit ended, empty for another."""
    return (LIMITED, ("continue",)) if answer.finish_reason == "length" else ("", ())


def visitor_notice(refused: TooMany) -> str:
    """Say which limit the visitor has reached."""
    if refused.retry_after_s is None:
        return f"You already have an answer running. Wait for it or stop it. {KEPT}"
    return f"That is a lot of messages in one minute. {_wait(refused.retry_after_s)} {KEPT}"


def vote_notice(refused: TooMany | VoteRefused) -> str:
    """Say why a vote was not stored."""
    if isinstance(refused, VoteRefused):
        return VOTE_REFUSED[refused.reason]
    return f"That is a lot of votes in one minute. {_wait(refused.retry_after_s)}"


def explain(failure: ApiError) -> str:
    """Say what is wrong and what to do about it."""
    match failure:
        case Refused():
            return _explain_refusal(failure)
        case CutShort():
            return "The answer was cut off. What arrived is kept."
        case Malformed():
            return "The server at the API's address is not an OpenAI-style API. Check FRONTEND_API_URL."
        case Unreachable():
            return "The API does not answer. It may be down or still starting."
        case _:
            raise TypeError(failure)


def is_too_long(failure: ApiError) -> bool:
    """Return whether the conversation does not fit into the model's context."""
    match failure:
        case Refused(status=413) | Refused(status=400, code="context_length_exceeded"):
            return True
        case Refused(status=400):
            return "context length" in failure.message.lower()
    return False


def _explain_refusal(refused: Refused) -> str:
    if is_too_long(refused):
        return TOO_LONG
    match refused.status:
        case 401 | 403:
            return "The API refused this page's key. Set FRONTEND_API_KEY to a valid one."
        case 404:
            return (
                "The API no longer has this model or address. Try again in a moment. If that does not help, "
                "check FRONTEND_API_URL."
            )
        case 429:
            return f"Too many chats at the moment. {_wait(refused.retry_after_s)}"
        case 503:
            reason = refused.message.strip().rstrip(".") or "it gave no reason"
            return f"The API is not ready: {reason}. {_wait(refused.retry_after_s)}"
        case status if status >= 500:
            return f"The API failed on this message (status {status}). {_wait(refused.retry_after_s)}"
        case status:
            reason = refused.message.strip().rstrip(".") or f"status {status}"
            return f"The API did not accept this message: {reason}. Change it or start a new chat."


def _wait(retry_after_s: int | None) -> str:
    if retry_after_s is None:
        return "Try again in a moment."
    unit = "second" if retry_after_s == 1 else "seconds"
    return f"Try again in {retry_after_s} {unit}."


def answer_note(answer: Answer) -> str:
    """Return length, speed and wait of a complete answer: `42 tokens · 18.3 tokens/s · …`."""
    remarks = []
    if answer.tokens is not None:
        remarks.append(f"{answer.tokens} token" + "s" * (answer.tokens != 1))
        if answer.first_token_s is not None and answer.last_token_s > answer.first_token_s:
            speed = (answer.tokens - 1) / (answer.last_token_s - answer.first_token_s)
            remarks.append(f"{speed:.1f} tokens/s")
    if answer.first_token_s is not None:
        remarks.append(f"first after {answer.first_token_s:.2f} s")
    if answer.prompt_tokens is not None:
        remarks.append(f"prompt of {answer.prompt_tokens:,}")
    if answer.finish_reason == "length":
        remarks.append("ended at the length limit")
    return " · ".join(remarks)


def context_text(used: int, room: int | None) -> str:
    """Return the text of the meter."""
    return f"{used:,} tokens" if room is None else f"{used:,} of {room:,} tokens"
