"""nginx in front with a pool of kept connections, asked by openai."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import openai
from steps import COLOR, KEY, MODEL, URL, step

PORT, IDLE_S = 24918, 12
NGINX = Path(os.environ["ZOO_DEBIAN"], "usr", "sbin", "nginx")
folder = Path(os.environ["HOME"], "nginx")
folder.mkdir(exist_ok=True)
backend = URL.removeprefix("http://")
CONFIG = f"""
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream api {{ server {backend}; keepalive 8; keepalive_timeout 60s; }}
  server {{
    listen 127.0.0.1:{PORT};
    location / {{ proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""  # noqa: E501
(folder / "nginx.conf").write_text(CONFIG)
api = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=KEY, max_retries=0)
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": COLOR}], "max_tokens": 16}


def upstream_ports() -> set[str]:
    """Return our ends of the open connections to the service."""
    there = f"{int(backend.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[1] for line in lines if line[2].endswith(f":{there}") and line[3] == "01"}


def run() -> None:
    @step
    def plain() -> None:
        assert api.chat.completions.create(**ASK).choices[0].message.content

    @step
    def stream() -> None:
        assert len(list(api.chat.completions.create(**ASK, stream=True))) > 2

    @step
    def idle() -> None:
        """A connection of the pool is still open after a pause, and the next POST uses it."""
        before = upstream_ports()
        time.sleep(IDLE_S)
        assert before & upstream_ports(), f"the service closed it within {IDLE_S} s"
        assert api.chat.completions.create(**ASK).choices
        assert before & upstream_ports()

    @step
    def unknown_path() -> None:
        try:
            api.get("/no", cast_to=object)
        except openai.NotFoundError:
            return
        raise AssertionError("no 404")


with subprocess.Popen([NGINX, "-e", folder / "error.log", "-c", folder / "nginx.conf"]) as nginx:
    time.sleep(1)
    try:
        run()
    finally:
        nginx.terminate()
