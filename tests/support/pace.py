"""Bounds on CPU time that hold on any machine: multiples of a fixed piece of work, never seconds."""

import time


def _fixed_work() -> int:
    return sum(len(str(number)) for number in range(200_000))


def cpu_s_of_fixed_work() -> float:
    """Return the least CPU time of several runs, in seconds; about 0.02 on a core of 2024."""
    times = []
    for _ in range(5):
        begun = time.process_time()
        _fixed_work()
        times.append(time.process_time() - begun)
    return min(times)


class CpuMeter:
    """Measure the CPU time of this process within a `with` block.

        with CpuMeter() as meter:
            near_duplicates(rows, 0.8)
        assert meter.units < 100

    units: CPU time of the block divided by that of a fixed piece of work, both on this machine
    """

    units: float

    def __enter__(self) -> "CpuMeter":
        self._unit_s = cpu_s_of_fixed_work()
        self._begun = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.units = (time.process_time() - self._begun) / self._unit_s
