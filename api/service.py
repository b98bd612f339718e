"""The parts of one running service, put together once; routes get them by `ServiceOfApp`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.engine.artifact import Artifact
from api.engine.comparison import ComparisonModels
from api.engine.engine import Engine
from api.engine.grammars import Grammars
from api.engine.lifecycle import Lifecycle
from api.errors import ModelNotFound
from api.generation.admission import Admission
from api.generation.runner import Runner
from api.ledger.backends import open_ledger
from api.ledger.ledger import Ledger
from api.settings import Settings
from api.telemetry.metrics import Metrics
from api.telemetry.tracing import Tracing, start_tracing


@dataclass(frozen=True, slots=True)
class Service:
    """operator: knows the operator's key alone."""

    lifecycle: Lifecycle
    admission: Admission
    metrics: Metrics
    ledger: Ledger
    operator: Ledger | None
    tracing: Tracing | None
    grammars: Grammars
    runner: Runner
    max_model_len: int
    comparison: ComparisonModels | None

    def require_model(self, name: str) -> None:
        """Raises: ModelNotFound unless the service serves a model with this name."""
        served = [self.lifecycle.artifact.name, *(self.comparison.names if self.comparison else [])]
        if name not in served:
            names = ", ".join(map(repr, served))
            raise ModelNotFound(f"This service has no such model; it serves {names}.", param="model")


def build_service(
    settings: Settings,
    artifact: Artifact,
    make_engine: Callable[[Artifact], Engine],
    comparison: ComparisonModels | None = None,
) -> Service:
    """Raises: SettingsError if keys or usage cannot be used where they are kept."""
    metrics = Metrics()
    admission = Admission(settings.max_queue, settings.max_num_seqs, settings.max_queue_tokens, metrics)
    lifecycle = Lifecycle(
        artifact, settings.artifacts_dir, make_engine, admission.wait_idle, metrics, settings.drain_timeout_s
    )
    ledger = open_ledger(
        keys_file=settings.keys_file,
        usage_file=settings.usage_file,
        redis_url=settings.redis_url.get_secret_value() if settings.redis_url else None,
        api_key=settings.key.get_secret_value() if settings.key else None,
        artifact=lambda: lifecycle.artifact.manifest.id,
    )
    admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
    grammars = Grammars()
    runner = Runner(
        lifecycle,
        admission,
        grammars,
        ledger,
        metrics,
        settings.request_timeout_s,
        settings.strict_max_tokens,
    )
    return Service(
        lifecycle,
        admission,
        metrics,
        ledger,
        open_ledger(api_key=admin_key) if admin_key else None,
        start_tracing(),
        grammars,
        runner,
        settings.max_model_len,
        comparison,
    )


async def _service_of(request: Request) -> Service:
    """Return the service. It is async because FastAPI would run a plain function in a thread."""
    service: Service = request.app.state.service
    return service


ServiceOfApp = Annotated[Service, Depends(_service_of)]
