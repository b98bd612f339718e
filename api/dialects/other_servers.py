"""Fields of other servers (llama.cpp, Ollama, LM Studio, KoboldAI), whose clients send them to any server.

Such clients send every setting that they have. A value that asks for nothing is ignored.
"""

from api.dialects.rules import Ignored, Refused, Table

_NO_SAMPLER = "There is no such sampler. Use temperature, top_p, top_k, min_p and the penalties."
_OFF_AT_0 = Refused(_NO_SAMPLER, (0,))
_OFF_AT_1 = Refused(_NO_SAMPLER, (1,))
_PART_OF_SAMPLER = Ignored("it belongs to a sampler that is off.")
_REPETITION = Refused("Use `repetition_penalty`.", (1,))
_LENGTH = Refused("Use `max_tokens`.", (-1,))
_CONTEXT = Ignored("the context is the model's, and prompts are never cut.")
_ORDER = Refused("The order of samplers is fixed.", ([],))
_GRAMMAR = Refused("Use a JSON Schema in `response_format`.", ("",))
_ONE_CACHE = Ignored("requests of one key share a cache of prompts without it.")
_LOADED = Ignored("the model stays loaded.")

OTHER_SERVERS: Table = {
    "repeat_penalty": _REPETITION,
    "rep_pen": _REPETITION,
    "repeat_last_n": Ignored("`repetition_penalty` counts the whole prompt."),
    "rep_pen_range": Ignored("`repetition_penalty` counts the whole prompt."),
    "penalize_nl": Refused(_NO_SAMPLER, (False,)),
    **dict.fromkeys(("typical_p", "typical", "tfs", "tfs_z", "guidance_scale", "num_beams"), _OFF_AT_1),
    **dict.fromkeys(
        (
            "top_a",
            "mirostat",
            "mirostat_mode",
            "dry_multiplier",
            "xtc_probability",
            "dynatemp_range",
            "smoothing_factor",
            "epsilon_cutoff",
            "eta_cutoff",
            "no_repeat_ngram_size",
        ),
        _OFF_AT_0,
    ),
    **dict.fromkeys(
        (
            "mirostat_tau",
            "mirostat_eta",
            "dry_base",
            "dry_allowed_length",
            "dry_penalty_last_n",
            "dry_sequence_breakers",
            "xtc_threshold",
            "dynatemp_exponent",
            "smoothing_curve",
        ),
        _PART_OF_SAMPLER,
    ),
    "samplers": _ORDER,
    "sampler_order": _ORDER,
    "sampler_seed": Refused("Use `seed`.", (-1,)),
    "do_sample": Refused("Use `temperature`; 0 is greedy.", (True,)),
    "n_predict": _LENGTH,
    "num_predict": _LENGTH,
    "max_new_tokens": _LENGTH,
    "num_ctx": _CONTEXT,
    "truncation_length": _CONTEXT,
    "max_context_length": _CONTEXT,
    "stopping_strings": Refused("Use `stop`.", ([],)),
    "custom_token_bans": Refused("Use `logit_bias`.", ("",)),
    "banned_strings": Refused("Use `logit_bias`.", ([],)),
    "ban_eos_token": Refused("Use `ignore_eos`.", (False,)),
    "add_bos_token": Refused("The tokenizer adds its own tokens.", (True,)),
    "n_probs": Refused("Use `logprobs`.", (0,)),
    "grammar": _GRAMMAR,
    "grammar_string": _GRAMMAR,
    "guided_whitespace_pattern": Ignored("answers in JSON have no white space."),
    "json_schema": Refused("Use `response_format`.", ({},)),
    "format": Refused("Use `response_format`.", ("",)),
    "options": Refused("Send its fields beside `model`.", ({},)),
    "thinking_budget": Refused("Use `thinking_token_budget`."),
    "enable_search": Refused("The server cannot search.", (False,)),
    "cache_prompt": _ONE_CACHE,
    "id_slot": _ONE_CACHE,
    "slot_id": _ONE_CACHE,
    "keep_alive": _LOADED,
    "ttl": _LOADED,
}
