"""Fields of /v1/responses that are known and not honoured."""

from api.dialects import other_fields
from api.dialects.other_fields import TEXT_ONLY
from api.dialects.rules import Ignored, Refused, Table

NOT_STORED = "Nothing is stored between requests: send the items of the whole conversation as `input`."
_NO_PLACE = Refused("The model cannot be shown it. Leave it out, or send what it says as a message.")

REQUEST: Table = {
    **other_fields.OPENAI,
    **other_fields.VLLM,
    "previous_response_id": Refused(NOT_STORED),
    "conversation": Refused(NOT_STORED),
    "prompt": Refused("No prompts are stored. Send it as `instructions` and `input`."),
    "background": Refused("Answers are not made in the background. Stream them.", (False,)),
    "background_options": Ignored("answers are not made in the background."),
    "previous_input_messages": Refused(NOT_STORED),
    "enable_response_messages": Refused("Answers hold items only.", (False,)),
    "max_tool_calls": Ignored("it limits tools that the server runs, and it runs none."),
    "context_management": Ignored("a conversation that is too long is refused, never shortened."),
    "access_programs": Ignored("it opens models of OpenAI."),
    "truncation": Ignored("a conversation that is too long is refused, never shortened."),
    "image": Ignored("the model reads no images."),
    "stream_options": Ignored("events are never padded."),
}
ITEM: Table = {
    **other_fields.HISTORY,
    "id": Ignored("items are known by their order."),
    "encrypted_content": Ignored("thinking is not encrypted here; `content` holds it."),
    "status": Ignored("an item is shown to the model as far as it came."),
    "phase": Ignored("the template has no place for it."),
    "async": Ignored("a result comes with the request after the call."),
    "caller": Ignored("only the model calls functions."),
    "namespace": Ignored("functions are known by their name alone."),
    "created_by": Ignored("the role says it."),
}
ITEM_TYPES: Table = {
    "item_reference": Refused(NOT_STORED),
    "mcp_list_tools": Ignored("the server runs no tools."),
    "web_search_call": Ignored("what was found is in the message after it."),
    **dict.fromkeys(
        (
            "additional_tools",
            "apply_patch_call",
            "apply_patch_call_output",
            "code_interpreter_call",
            "compaction",
            "compaction_trigger",
            "computer_call",
            "computer_call_output",
            "configuration_update",
            "custom_tool_call",
            "custom_tool_call_output",
            "file_search_call",
            "image_generation_call",
            "local_shell_call",
            "local_shell_call_output",
            "mcp_approval_request",
            "mcp_approval_response",
            "mcp_call",
            "program",
            "program_output",
            "shell_call",
            "shell_call_output",
            "tool_search_call",
            "tool_search_output",
        ),
        _NO_PLACE,
    ),
}
PART: Table = {
    **other_fields.HISTORY,
    "logprobs": Ignored("the text is complete without them."),
    "role": Ignored("the item has one."),
}
PART_TYPES: Table = {
    **dict.fromkeys(("input_image", "input_file", "input_audio", "output_audio"), TEXT_ONLY),
    "refusal": Refused("Send its text as an output_text."),
}
TEXT: Table = {"verbosity": Ignored("the model was not trained to vary it.")}
