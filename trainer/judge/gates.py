"""Decide whether an evaluated model may ship: every gate passed, or a person ships it by a named flag.

The flag changes no measurement: the manifest keeps the failed gates and names the flag.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import GateError

OVERRIDE = "--ship-despite-failed-gates"


def failed_gates(evaluation: Mapping[str, Any]) -> list[str]:
    """Return `name: detail` of every gate that did not pass. Raises: GateError if there are no gates."""
    if not evaluation["gates"]:
        raise GateError("the evaluation has no gates, so nothing shows that the model may be shipped")
    return [f"{gate['name']}: {gate['detail']}" for gate in evaluation["gates"] if gate["passed"] is not True]


def shippable(
    evaluation: Mapping[str, Any], identifier: str, ship_despite: bool, details: Path
) -> dict[str, Any]:
    """Return the evaluation for the manifest, with `override` if the model ships against its gates.

    Raises: GateError naming the failed gates, unless `ship_despite`.
    """
    failed = failed_gates(evaluation)
    if not failed:
        return dict(evaluation)
    if not ship_despite:
        raise GateError(
            f"{identifier} is not shipped and `current` stays: {'; '.join(failed)}. See {details}; "
            f"to ship it anyway, as the manifest will state, add {OVERRIDE} to `run`"
        )
    return {**evaluation, "override": OVERRIDE}


def check_current(manifest: Mapping[str, Any], ship_despite: bool, is_current: bool) -> None:
    """Refuse to move `current` to a finished artifact that failed its gates, without the flag.

    It stays `current` once it is. Raises: GateError.
    """
    failed = failed_gates(manifest["evaluation"])
    if failed and not ship_despite and not is_current:
        raise GateError(
            f"{manifest['id']} was shipped by {OVERRIDE} and `current` has moved on since; without the "
            f"flag it stays: {'; '.join(failed)}"
        )
