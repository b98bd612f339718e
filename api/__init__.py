"""The finechat service: OpenAI's chat API in front of one verified artifact, vLLM inside."""
