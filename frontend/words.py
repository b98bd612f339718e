"""What the page says: failures told kindly, and the remark under an answer. Plain text out."""

from client import Answer
from errors import ApiError, CutShort, Malformed, Refused, Unreachable

NO_ANSWER_YET = "This question has no answer yet. Press Retry to send it again."
TOO_LONG = (
    "This conversation is too long for the model. Start a new chat, shorten the text, or lower the "
    "answer length in the settings."
)
EMPTY = "The model gave an empty answer. Press Retry, or change the settings."
CUT_OFF = "Cut off."
STOPPED = "Stopped."
STOPPED_EARLY = "Stopped before the answer began. Press Retry to send it again."
AGAIN = "Your message is kept; Retry sends it again."


def why_not(failure: ApiError) -> str:
    """What is the matter, and what to do about it."""
    match failure:
        case Refused():
            return _why_refused(failure)
        case CutShort():
            return "The answer was cut off on its way. What came is kept; press Retry for a new one."
        case Malformed():
            return (
                "Something answers at the API's address, but not as an OpenAI-style API does. "
                "Check FRONTEND_API_URL."
            )
        case Unreachable():
            return "The API does not answer. It may be down or still starting."
        case _:
            raise TypeError(failure)


def _why_refused(refused: Refused) -> str:
    match refused.status, refused.code:
        case 401 | 403, _:
            return "The API refused this page's key. Set FRONTEND_API_KEY to a valid one."
        case 404, _:
            return (
                "The API does not know this model or address any more. Try again in a moment; "
                "if it stays so, check FRONTEND_API_URL."
            )
        case (413, _) | (400, "context_length_exceeded"):
            return TOO_LONG
        case 400, _ if "context length" in refused.message.lower():
            return TOO_LONG
        case 429, _:
            return f"Too many chats at the moment. {_wait(refused)}"
        case 503, _:
            said = refused.message.strip().rstrip(".") or "it gave no reason"
            return f"The API is not ready: {said}. {_wait(refused)}"
        case status, _ if status >= 500:
            return f"The API failed on this message (status {status}). {_wait(refused)}"
        case status, _:
            said = refused.message.strip().rstrip(".") or f"status {status}"
            return f"The API did not accept this message: {said}. Change it or start a new chat."


def _wait(refused: Refused) -> str:
    if refused.retry_after_s is None:
        return "Try again in a moment."
    unit = "second" if refused.retry_after_s == 1 else "seconds"
    return f"Try again in {refused.retry_after_s} {unit}."


def about(answer: Answer) -> str:
    """Length, speed and wait of a whole answer: `42 tokens · 18.3 tokens/s · …`."""
    remarks = []
    if answer.tokens is not None:
        remarks.append(f"{answer.tokens} tokens")
        if answer.first_token_s is not None and answer.last_token_s > answer.first_token_s:
            speed = (answer.tokens - 1) / (answer.last_token_s - answer.first_token_s)
            remarks.append(f"{speed:.1f} tokens/s")
    if answer.first_token_s is not None:
        remarks.append(f"first token after {answer.first_token_s:.2f} s")
    if answer.finish_reason == "length":
        remarks.append("ended at the answer length limit")
    return " · ".join(remarks)
