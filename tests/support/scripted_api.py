"""A scripted OpenAI-style API over real HTTP: `python scripted_api.py PORT`.

A question chooses its failure by a word in it ("snap", "limit", "busy", "too long"); with "think" the answer
has thoughts before it, and with "only" nothing else. POST /state makes every
request fail: "starting", "draining", "key", or any other text as the reason why the API is not ready. POST
/answer, /models (a JSON list of names) and /refusal (a message) replace the answer and the model list, and
refuse every chat. GET /requests returns the bodies of all chats.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHARED = {"max_model_len": 2048, "licence": "llama3.2"}
EXAMPLES = ["Explain a table.\n\nhash(key)", "Explain a tree."]
MODELS = [
    {"id": "Llama-base", "description": "Explains data structures.", "examples": EXAMPLES, **SHARED},
    {"id": "Llama-tuned", **SHARED},
]
ANSWER = (
    "A **hash table** finds a value by its key: \\(O(1)\\) on average.\n\n"
    "```python\ndef put(table, key, value):\n    table[hash(key) % len(table)] = (key, value)  # one\n```\n\n"
    "| step | cost |\n|---|---|\n| look-up | 1 |\n"
)
THOUGHTS = (
    "The user asks about a **hash table**.\n\n1. What is a key?\n2. `hash(key)` gives a place.\n\n"
    "So I explain both, with <b>one</b> example. <img src=x onerror=alert(1)>"
)
STATES = {
    "starting": (503, "The engine is loading the weights", "starting", 20),
    "draining": (503, "The server is shutting down", "draining", 5),
    "key": (401, "Incorrect API key provided", "invalid_api_key", None),
}


class Api(BaseHTTPRequestHandler):
    state = ""
    answer = ANSWER
    models = MODELS
    refusal = ""
    requests: list[dict[str, Any]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/requests":
            self._json(200, Api.requests)
        elif Api.state == "key" or (Api.state and self.path == "/health/ready"):
            self._refuse(*STATES.get(Api.state, (503, Api.state, "x", None)))
        else:
            self._json(200, {"object": "list", "data": Api.models})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path in ("/state", "/answer", "/refusal", "/models"):
            self._script(self.path, body.decode())
            return self._json(200, {})
        request = json.loads(body)
        Api.requests.append(request)
        question = request["messages"][-1]["content"]
        if Api.state:
            self._refuse(*STATES.get(Api.state, (503, Api.state, "x", None)))
        elif Api.refusal:
            self._refuse(422, Api.refusal, "invalid_request_error", None)
        elif "busy" in question:
            self._refuse(429, "Too many requests", "rate_limit_exceeded", 7)
        elif "too long" in question and len(request["messages"]) > 1:
            self._refuse(400, "The context holds 2048 tokens", "context_length_exceeded", None)
        else:
            self._stream(question)

    @staticmethod
    def _script(path: str, text: str) -> None:
        match path:
            case "/state":
                Api.state = text
            case "/answer":
                Api.answer = text
            case "/refusal":
                Api.refusal = text
            case "/models":
                Api.models = [{"id": name, "max_model_len": 2048} for name in json.loads(text)]

    def _stream(self, question: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if "think" in question:
            for piece in THOUGHTS.split(" "):
                self._event({"choices": [{"index": 0, "delta": {"reasoning_content": f"{piece} "}}]})
                time.sleep(0.02)
        pieces = [] if "only" in question else Api.answer.split(" ")
        for place, piece in enumerate(pieces):
            if "snap" in question and place == 5:
                return
            text = piece + " " * (place + 1 < len(pieces))
            self._event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
            time.sleep(0.01)
        reason = "length" if "limit" in question or "only" in question else "stop"
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 1500, "completion_tokens": len(pieces)}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, piece: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        self.wfile.flush()

    def _refuse(self, status: int, message: str, code: str, wait_s: int | None) -> None:
        self._json(status, {"error": {"message": message, "type": "x", "code": code}}, wait_s)

    def _json(self, status: int, body: object, wait_s: int | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if wait_s is not None:
            self.send_header("retry-after", str(wait_s))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Api).serve_forever()
