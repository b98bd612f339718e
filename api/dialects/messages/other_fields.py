"""Fields and types of /v1/messages that are known and not honoured."""

from api.dialects.rules import Ignored, Refused, Table

_ONE_CACHE = Ignored("requests of one key share a cache of prompts without it.")
_ONLY_THE_MODEL_CALLS = Ignored("only the model calls tools.")
_NO_PLACE = Ignored("chat templates have no place for it.")
_BY_NAME = Ignored("tools are known by their name alone.")
_CHANGED = Refused("Send the tools that there are now in `tools`.")
_TOLD = Ignored("the server runs no tools, and what came of this is in the text after it.")
_RAN = Refused("The server runs no tools. Send what came of it as a block of type 'text'.")
_AS_TEXT = Refused("The model reads text only. Send its text as a block of type 'text'.")
_NOT_RUN = Ignored("the server runs no tools and has no schema for it, so it is not offered to the model.")

_NO_BILL = Ignored("nothing is billed here.")

# Fields of a request, and of a request to count its tokens.
PROMPT: Table = {
    "betas": Ignored("no beta changes anything here."),
    "billing_policy": _NO_BILL,
    "cache_control": _ONE_CACHE,
    "compaction": Ignored("the tokens of the conversation as it was sent are counted."),
    "context_management": Ignored("a conversation that is too long is refused, never shortened."),
    "mcp_servers": Refused("The service calls no other servers. Give their tools in `tools`.", ([],)),
    "speed": Ignored("there is one speed."),
    "user_profile_id": Ignored("it identifies a person to Anthropic; this service reports it to nobody."),
    "workspace_id": Ignored("it names a workspace at Anthropic."),
}
REQUEST: Table = {
    **PROMPT,
    "compaction": Refused("Nothing is compacted here. Ask for a summary in a message."),
    "container": Refused("The service runs no code and has no skills. Leave it out."),
    "diagnostics": Ignored("`usage` has the cached tokens, and no more is known of them."),
    "fallback_credit_token": _NO_BILL,
    "fallbacks": Ignored("the model declines no request, so no other is asked."),
    "inference_geo": Ignored("the service is where it is."),
    "metadata": Ignored("it identifies a person to Anthropic; this service reports it to nobody."),
    "service_tier": Ignored("there is one tier; the operator gives keys their priority."),
    "thread": Refused("Nothing is stored between requests: send the whole conversation as `messages`."),
}
MESSAGE: Table = {"output_config": Ignored("the model was not trained to vary its effort.")}
OUTPUT: Table = {
    "effort": Ignored("the model was not trained to vary it."),
    "task_budget": Ignored("`max_tokens` is the limit of an answer."),
}

# Fields of a content block.
TEXT: Table = {"cache_control": _ONE_CACHE, "citations": Ignored("the text is complete without them.")}
THINKING: Table = {"signature": Ignored("thinking is not signed here.")}
TOOL_USE: Table = {
    "cache_control": _ONE_CACHE,
    "caller": _ONLY_THE_MODEL_CALLS,
    "toolset_name": _BY_NAME,
}
TOOL_RESULT: Table = {
    "cache_control": _ONE_CACHE,
    "toolset_name": _BY_NAME,
    "is_error": Ignored("chat templates have no place for it; the content says what went wrong."),
}
BLOCK_TYPES: Table = {
    "redacted_thinking": Ignored("only Anthropic can read it."),
    "fallback": Ignored("it names the model that answered."),
    "image": Refused("The model reads text only. Leave it out, or describe it in a block of type 'text'."),
    "browser_state": _AS_TEXT,
    "document": _AS_TEXT,
    "search_result": _AS_TEXT,
    "container_upload": Refused("The service keeps no files. Send the text as a block of type 'text'."),
    "compaction": Refused("Nothing is compacted here. Send the summary as a block of type 'text'."),
    "mid_conversation_system": Refused("Send its text as a message of role 'system'."),
    "tool_addition": _CHANGED,
    "tool_removal": _CHANGED,
    "tool_reference": Refused("Tools are not searched for here. Send them in `tools`."),
    **dict.fromkeys(
        (
            "server_tool_use",
            "advisor_tool_result",
            "mcp_tool_listing",
            "tool_search_tool_result",
            "web_fetch_tool_result",
            "web_search_tool_result",
        ),
        _TOLD,
    ),
    **dict.fromkeys(
        (
            "bash_code_execution_tool_result",
            "code_execution_tool_result",
            "mcp_tool_result",
            "mcp_tool_use",
            "text_editor_code_execution_tool_result",
        ),
        _RAN,
    ),
}

# Fields of a tool.
TOOL: Table = {
    "allowed_callers": _ONLY_THE_MODEL_CALLS,
    "cache_control": _ONE_CACHE,
    "defer_loading": Ignored("all tools are shown to the model."),
    "eager_input_streaming": Ignored("arguments are sent as they come."),
    "input_examples": _NO_PLACE,
}
TOOL_TYPES: Table = dict.fromkeys(
    (
        "advisor_20260301",
        "bash_20241022",
        "bash_20250124",
        "browser_toolset_20260801",
        "code_execution_20250522",
        "code_execution_20250825",
        "code_execution_20260120",
        "code_execution_20260521",
        "computer_20241022",
        "computer_20250124",
        "computer_20251124",
        "computer_toolset_20260801",
        "mcp_toolset",
        "memory_20250818",
        "text_editor_20241022",
        "text_editor_20250124",
        "text_editor_20250429",
        "text_editor_20250728",
        "tool_search_tool_bm25",
        "tool_search_tool_bm25_20251119",
        "tool_search_tool_regex",
        "tool_search_tool_regex_20251119",
        "web_fetch_20250910",
        "web_fetch_20260209",
        "web_fetch_20260309",
        "web_fetch_20260318",
        "web_search_20250305",
        "web_search_20260209",
        "web_search_20260318",
    ),
    _NOT_RUN,
)
