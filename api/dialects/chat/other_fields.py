"""Fields of /v1/chat/completions that are known and not honoured."""

from api.dialects import other_fields
from api.dialects.other_fields import TEXT_ONLY
from api.dialects.other_servers import OTHER_SERVERS
from api.dialects.rules import Ignored, Refused, Table

_AS_TEXT = Ignored("`reasoning_content` is the thinking's field.")

REQUEST: Table = {
    **other_fields.OPENAI,
    **other_fields.VLLM,
    **OTHER_SERVERS,
    "metadata": Ignored("it labels stored answers, and nothing is stored."),
    "user": Ignored("it identifies a person to OpenAI; this service reports it to nobody."),
    "verbosity": Ignored("the model was not trained to vary it."),
    "prediction": Ignored("it only makes answers faster."),
    "modalities": Refused("The model reads and writes text only.", (["text"],)),
    "audio": TEXT_ONLY,
    "functions": Refused("Send `tools`.", ([],)),
    "function_call": Refused("Send `tool_choice`.", ("none", "auto")),
    "web_search_options": Refused("The server cannot search. Offer a function of your own in `tools`."),
    "chat_template": Refused("The model's own template is used; it was trained with it."),
    "add_special_tokens": Refused("The template writes all control tokens.", (False,)),
    "documents": Refused("Put documents into a message.", ([],)),
    "echo": Refused("The messages are not repeated.", (False,)),
}
MESSAGE: Table = {
    **other_fields.HISTORY,
    "id": Ignored("messages are known by their order."),
    "prefix": Refused("Use `continue_final_message`.", (False,)),
    "parsed": Ignored("`content` holds it as text."),
    "reasoning_details": _AS_TEXT,
    "thinking_blocks": _AS_TEXT,
    "audio": Refused("No audio is stored. Send its transcript as `content`."),
    "function_call": Refused("Send `tool_calls`."),
}
PART: Table = {
    **other_fields.HISTORY,
    "role": Ignored("the message has one."),
}
PART_TYPES: Table = {
    **dict.fromkeys(("image_url", "input_audio", "file", "video_url", "audio_url"), TEXT_ONLY),
    "refusal": Refused("Send its text as `content`."),
}
CALL: Table = {
    "index": Ignored("calls are known by their order and id."),
    "cache_control": Ignored("requests of one key share a cache of prompts without it."),
    "provider_specific_fields": Ignored("it is a gateway's note of where the call came from."),
}
CALL_TYPES: Table = {"custom": Refused("Offer functions, and send calls of them.")}
MADE_CALL: Table = {"parsed_arguments": Ignored("`arguments` holds them as text.")}
FORMAT_TYPES: Table = {"structural_tag": Refused("Use the type json_schema.")}
