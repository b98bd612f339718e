"""Fields that several dialects know and do not honour: OpenAI's, vLLM's, and those that other servers add."""

from api.dialects.rules import Ignored, Refused, Table

TEXT_ONLY = Refused("The model reads and writes text only.")
NOT_RETURNED = Refused("Answers hold text only, not what it was made from.", (False,))
_NOT_RUN = Ignored("the server runs no tools, so this one is not offered to the model.")
_NOT_A_CHOICE = Refused("A choice is none, auto, required or one function of `tools`.")
_ONE_CACHE = Ignored("requests of one key share a cache of prompts without it.")
_GRAMMAR = Refused("Use a JSON Schema in the answer's format instead.")
_NO_BEAMS = Ignored("it belongs to beam search, which there is not.")

# Fields of a request.
OPENAI: Table = {
    "store": Ignored("nothing is stored between requests."),
    "service_tier": Ignored("there is one tier; the operator gives keys their priority."),
    "prompt_cache_key": _ONE_CACHE,
    "prompt_cache_options": _ONE_CACHE,
    "prompt_cache_retention": _ONE_CACHE,
    "safety_identifier": Ignored("it identifies a person to OpenAI; this service reports it to nobody."),
    "moderation": Refused("The service does not moderate. Leave it out."),
    # Other servers and gateways know these.
    "client_metadata": Ignored("it describes the client."),
    "cache_control": _ONE_CACHE,
}
VLLM: Table = {
    "use_beam_search": Refused("There is no beam search. Use `n` and a temperature.", (False,)),
    "length_penalty": _NO_BEAMS,
    "early_stopping": _NO_BEAMS,
    "include_stop_str_in_output": Refused("An answer ends before the stop string.", (False,)),
    "skip_special_tokens": Refused("Answers never contain control tokens.", (True,)),
    "spaces_between_special_tokens": Ignored("answers never contain control tokens."),
    "truncate_prompt_tokens": Refused("Prompts are never cut. Send a shorter one."),
    "truncation_side": Ignored("prompts are never cut."),
    "prompt_logprobs": Refused("Use /v1/completions with `echo` and `logprobs`."),
    "logprob_token_ids": Refused("Use `top_logprobs`."),
    "allowed_token_ids": Refused("Use `logit_bias`, or a JSON Schema in the answer's format."),
    "bad_words": Refused("Use `logit_bias`.", ([],)),
    "structured_outputs": _GRAMMAR,
    "guided_json": _GRAMMAR,
    "guided_regex": _GRAMMAR,
    "guided_choice": _GRAMMAR,
    "guided_grammar": _GRAMMAR,
    "guided_decoding_backend": Ignored("there is one."),
    "priority": Refused("The operator gives keys their priority.", (0,)),
    "request_id": Refused("Send it as the header `x-request-id`."),
    "session_id": Ignored("it only chooses where a prompt is cached."),
    "cache_salt": Refused("Keys have a salt of their own: no key reads the cache of another."),
    "return_tokens_as_token_ids": NOT_RETURNED,
    "return_token_ids": NOT_RETURNED,
    "return_token_offsets": NOT_RETURNED,
    "return_prompt_text": NOT_RETURNED,
    "return_mm_kwargs": NOT_RETURNED,
    "routed_experts_prompt_start": Ignored("the experts that were used are not returned."),
    "mm_payload": Ignored("the model reads no images."),
    "media_io_kwargs": TEXT_ONLY,
    "mm_processor_kwargs": TEXT_ONLY,
    "kv_transfer_params": Refused("The engine's caches are its own."),
    "ec_transfer_params": Refused("The engine's caches are its own."),
    "vllm_xargs": Refused("The engine takes no arguments from a request."),
    "repetition_detection": Refused("Use `frequency_penalty` or `repetition_penalty`."),
    "stream_interval": Ignored("each token is sent as it comes."),
    "watermarking": Refused("Answers have no watermark.", (False,)),
}

STREAM_OPTIONS: Table = {"include_obfuscation": Ignored("chunks are never padded.")}

# Fields of a message in the history, and of a part of its text.
HISTORY: Table = {
    "annotations": Ignored("the text is complete without it."),
    "cache_control": _ONE_CACHE,
    "prompt_cache_breakpoint": _ONE_CACHE,
    "provider_specific_fields": Ignored("it is a gateway's note of where the message came from."),
}

# Fields of the objects `reasoning` and `thinking`, which thinking.py has.
REASONING: Table = {
    "context": Ignored("the template decides which earlier thinking the model is shown."),
    "generate_summary": Ignored("thinking is sent as it is, not summarized."),
    "mode": Ignored("there is one mode."),
    "summary": Ignored("thinking is sent as it is, not summarized."),
}
THINKING: Table = {
    "block_binding": Ignored("thinking is not bound to its conversation here."),
    "clear_thinking": Ignored("the template decides which earlier thinking the model is shown."),
}

# Types of tools, and of a choice among them.
TOOL_TYPES: Table = dict.fromkeys(
    (
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    ),
    _NOT_RUN,
)
CHOICE_TYPES: Table = {
    **dict.fromkeys((*TOOL_TYPES, "computer_use"), _NOT_A_CHOICE),
    "allowed_tools": Refused("Send only those tools, and auto or required as the choice."),
}
TOOL: Table = {
    "async": Ignored("a result comes with the request after the call."),
    "cache_control": _ONE_CACHE,
    "defer_loading": Ignored("all tools are shown to the model."),
    "allowed_callers": Ignored("only the model calls tools."),
    "output_schema": Ignored("it describes results to programs, and the model is not shown it."),
}
