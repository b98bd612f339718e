"""Mark the files whose tests train, start processes, or run real parts: `make test-fast` leaves them out."""

import pytest

SLOW = {
    "trainer": "benchmarks cluster compiled engines export hostile_rows knowable pipeline push "
    "several_processes train".split(),
    "api": "call_grammar capacity comparison document fork_server grammars ledger_machine processes "
    "redis_ledger replicas serving_bench validators".split(),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW.get(item.path.parent.name, ()):
            item.add_marker("slow")
