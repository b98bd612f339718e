"""Fields of /v1/completions that are known and not honoured."""

from api.dialects import other_fields
from api.dialects.other_servers import OTHER_SERVERS
from api.dialects.rules import Ignored, Refused, Table

_NO_TEMPLATE = Ignored("a text is continued without the template, and nothing tells its thinking apart.")

REQUEST: Table = {
    **other_fields.OPENAI,
    **other_fields.VLLM,
    **OTHER_SERVERS,
    "prompt_logprobs": Refused("Use `echo` with `logprobs`."),
    "logprob_token_ids": Refused("Use `logprobs`."),
    "user": Ignored("it identifies a person to OpenAI; this service reports it to nobody."),
    "best_of": Refused("Use `n`, and choose among the answers.", (1,)),
    "thinking": _NO_TEMPLATE,
    "enable_thinking": _NO_TEMPLATE,
    "include_reasoning": _NO_TEMPLATE,
    "thinking_token_budget": _NO_TEMPLATE,
    "suffix": Refused("The model does not fill gaps in a text.", ("",)),
    "prompt_embeds": Refused("Send text or token ids."),
    "response_format": Refused("Use /v1/chat/completions.", ({"type": "text"},)),
    "add_special_tokens": Refused("Send token ids if the prompt must have no others.", (True,)),
}
