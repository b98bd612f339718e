"""Whether a judged model may be shipped: every gate passed, or a person says so by a named flag.

The flag changes no measurement: the manifest keeps the gates as they failed, and names the flag.
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
    """The evaluation as it goes into the manifest: with `override` if it ships against its gates.

    Raises: GateError naming the failed gates, unless `ship_despite`.
    """
    failed = failed_gates(evaluation)
    if not failed:
        return dict(evaluation)
    if not ship_despite:
        raise GateError(
            f"{identifier} is not shipped and `current` stays: {'; '.join(failed)}. See {details}; "
            f"to ship it all the same, and have the manifest say so, add {OVERRIDE} to `run`"
        )
    return {**evaluation, "override": OVERRIDE}


def check_current(manifest: Mapping[str, Any], ship_despite: bool, is_current: bool) -> None:
    """A finished artifact that failed its gates becomes `current` by the flag only; then it stays.

    Raises: GateError if `current` would move to it without the flag.
    """
    failed = failed_gates(manifest["evaluation"])
    if failed and not ship_despite and not is_current:
        raise GateError(
            f"{manifest['id']} was shipped by {OVERRIDE} and `current` has moved on since; without the "
            f"flag it stays: {'; '.join(failed)}"
        )
