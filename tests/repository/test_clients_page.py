"""docs/clients.md says what bench/clients.py measured."""

import json

from bench import clients
from bench.roster import CLIENTS, FAULTS


def test_the_page_of_clients_is_what_the_program_writes() -> None:
    result = json.loads(clients.RESULT.read_text())
    assert clients.PAGE.read_text() == clients.page(result)
    assert [row["client"] for row in result["clients"]] == [client.name for client in CLIENTS]


def test_every_explained_failure_is_one_that_was_seen() -> None:
    seen = json.loads(clients.RESULT.read_text())["clients"]
    failed = {(row["client"], step) for row in seen for step, failure in row["steps"].items() if failure}
    failed |= {(client, "*") for client, _ in failed}
    assert set(FAULTS) <= failed, "an explanation of a failure that is gone"
