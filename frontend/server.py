"""Build the ASGI application of the page and serve it on a socket that already listens."""

import socket
from contextlib import suppress

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

import theme
from client import Api
from middleware import AllowList
from page import build_page
from settings import Settings


def build_app(settings: Settings) -> ASGIApp:
    """Return the ASGI application: Gradio without telemetry, uploads, API documents or foreign fonts."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    api = Api(str(settings.api_url), key)
    app = gr.mount_gradio_app(
        FastAPI(on_shutdown=[api.close], docs_url=None, redoc_url=None, openapi_url=None),
        build_page(settings, api),
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        root_path=settings.root_path,
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        pwa=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme.build_theme(),
        css_paths=theme.STYLES,
        js=theme.SCRIPT.read_text(encoding="utf-8"),
    )
    return AllowList(app)


def server_config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    """Return how to serve `app`. Only a configured proxy may name a visitor's address instead of its own."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; open streams then have two seconds to end."""
    config = server_config(settings, build_app(settings))
    print(f"The chat page is at http://{settings.host}:{settings.port}", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
