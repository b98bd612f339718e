"""Draw the charts of the pages as SVG: curves, differences with their intervals, pairs of dots, a histogram.

matplotlib would add 77 MB (seven packages) to every set-up for a few charts, and its SVG does not follow the
page from light to dark. Colours are the page's classes `c0` to `c5`. Sizes are in user units, which are
pixels at the intended size of a panel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

Point = tuple[float, float]
COLOURS = 6
ROW = 22
LOG_FROM = 8  # an axis whose ends differ by more than this factor is logarithmic
FAR = 4  # a difference beyond this many times the median is an arrow with a figure, not to scale
WARM = 0.1  # the share of the steps whose steep losses may leave the panel, so that the rest is larger
LEFT, RIGHT, TOP, BOTTOM = 58, 404, 28, 226
PANEL_WIDTH = 436  # room for half a label of seven characters beyond RIGHT
FOREST_LEFT, FOREST_RIGHT, FOREST_WIDTH = 112, 392, 420


@dataclass(frozen=True, slots=True)
class Line:
    """One arm. train, validation: (step, loss). cut: it diverged, so its end is marked.

    general: (step, divergence from the base in general chat), where training recorded it apart.
    """

    name: str
    colour: int
    train: Sequence[Point]
    validation: Sequence[Point]
    cut: bool
    general: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One setting's difference to the best. hollow: it is not measurably worse than the best."""

    name: str
    colour: int
    value: float
    low: float
    high: float
    hollow: bool
    winner: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Map values to user units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low / 10) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values between the ends: 1, 2 or 5 times a power of ten."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def losses_scale(lines: Sequence[Line], steps: int) -> Scale:
    """Return the scale that panels share, from arms that did not diverge, after their first steps."""
    counted = [line for line in lines if not line.cut] or lines
    points = [(s, v) for line in counted for s, v in (*line.train, *line.validation, *line.general) if v > 0]
    values = [v for s, v in points if s >= WARM * steps] or [v for _, v in points] or [1.0]
    low, high = min(values), max(values)
    if high > low * LOG_FROM:
        return Scale(low / 1.1, high * 1.1, BOTTOM, TOP, log=True)
    room = 0.05 * (high - low) or 0.05 * high
    return Scale(low - room, high + room, BOTTOM, TOP)


def curves(title: str, lines: Sequence[Line], steps: int, y: Scale, measured: str) -> str:
    """Draw one panel: training loss as lines, general chat dashed, validation scores as dots, over the steps.

    measured: what the upright axis measures, with its unit.
    """
    x = Scale(0, steps, LEFT, RIGHT)
    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for tick in y.ticks():
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(tick)}" y2="{y(tick)}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" class="end">{tick:g}</text>')
    parts += [f'<text x="{x(tick)}" y="244" class="mid">{tick:,.0f}</text>' for tick in x.ticks()]
    parts.append('<text x="231" y="264" class="mid">training step</text>')
    label = escape(f"{measured}{', log scale' if y.log else ''}")
    parts.append(f'<text transform="translate(13 127) rotate(-90)" class="mid">{label}</text>')
    drawn = "".join(_line(line, x, y) for line in lines)
    # An inner svg cuts off what leaves the panel.
    box = f"{LEFT - 5} {TOP} {RIGHT - LEFT + 10} {BOTTOM - TOP + 5}"
    place = 'x="{}" y="{}" width="{}" height="{}"'.format(*box.split())
    parts.append(f'<svg {place} viewBox="{box}">{drawn}</svg>')
    return _svg(f"{measured}, over training steps, {title}", PANEL_WIDTH, 270, parts)


def _line(line: Line, x: Scale, y: Scale) -> str:
    points = [(x(step), y(loss)) for step, loss in line.train]
    parts = [f"<title>{escape(line.name)}</title>", f'<polyline points="{_path(points)}"/>']
    if line.general:
        general = [(x(step), y(loss)) for step, loss in line.general]
        parts.append(f'<polyline class="general" points="{_path(general)}"/>')
    parts += [f'<circle cx="{x(s)}" cy="{y(v)}" r="3"/>' for s, v in line.validation]
    if line.cut and points:
        px, py = points[-1]
        py = min(max(py, TOP + 6), BOTTOM - 6)
        parts.append(f'<path d="M{px - 5},{py - 5}l10,10m0,-10l-10,10"/>')
    return f'<g class="c{line.colour % COLOURS}">{"".join(parts)}</g>'


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{px},{py}" for px, py in points)


def forest(bars: Sequence[Bar], axis: str) -> str:
    """Draw a row for every setting: its difference to the best, the interval, and a line at zero."""
    highs = [bar.high for bar in bars]
    limit = FAR * median(h for h in highs if h > 0) if any(h > 0 for h in highs) else 1.0
    high = max((h for h in highs if 0 < h <= limit), default=limit)
    low = min(0.0, *(bar.low for bar in bars))
    room = 0.04 * (high - low)
    x = Scale(low - room, high + room, FOREST_LEFT, FOREST_RIGHT)
    bottom = ROW * len(bars) + 12
    parts = [f'<line x1="{x(0)}" x2="{x(0)}" y1="4" y2="{bottom}" class="zero"/>']
    for tick in x.ticks(5):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{bottom}" class="grid"/>')
        parts.append(
            f'<text x="{x(tick)}" y="{bottom + 16}" class="mid">{f"{tick:+g}" if tick else "0"}</text>'
        )
    parts += [_bar(bar, x, ROW * i + 16) for i, bar in enumerate(bars)]
    middle = (FOREST_LEFT + FOREST_RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{bottom + 36}" class="mid">{escape(axis)}</text>')
    return _svg("Differences to the best setting with 95% intervals", FOREST_WIDTH, bottom + 44, parts)


def _bar(bar: Bar, x: Scale, y: float) -> str:
    name = f'<text x="104" y="{y + 4}" class="end{" title" if bar.winner else ""}">{escape(bar.name)}</text>'
    title = f"<title>{escape(bar.name)}: {bar.value:+.4f} [{bar.low:+.4f}, {bar.high:+.4f}]</title>"
    if bar.value > x.high:
        mark = f'<path d="M{FOREST_RIGHT - 14},{y - 5}l10,5l-10,5" class="arrow"/>'
        drawn = f'{mark}<text x="{FOREST_RIGHT - 20}" y="{y + 4}" class="end">{bar.value:+.3g}</text>'
    else:
        ends = f'x1="{x(bar.low)}" x2="{min(x(bar.high), x.end)}"'
        drawn = (
            f'<line {ends} y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(bar.value)}" cy="{y}" r="4.5" class="{"hollow" if bar.hollow else "solid"}"/>'
        )
    return f'{name}<g class="c{bar.colour % COLOURS}">{title}{drawn}</g>'


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure of two models. base, tuned: `low`, `value` and `high`. floor: what guessing scores."""

    name: str
    base: Mapping[str, float]
    tuned: Mapping[str, float]
    floor: float | None


def pairs_chart(title: str, pairs: Sequence[Pair], top: float | None) -> str:
    """Draw two dots with intervals for each measure, on one axis from 0 to `top`, or to the highest value."""
    width, row, left = 640, 64, 8
    highest = max(side["high"] for pair in pairs for side in (pair.base, pair.tuned))
    x = Scale(0, top or max(highest, 1e-9), left, width - left)
    tall = len(pairs) * row
    axis = (
        f'<line class=axis x1="{left}" x2="{width - left}" y1="{tall}" y2="{tall}"/>'
        f'<text x="{left}" y="{tall + 16}">0</text>'
        f'<text x="{width - left}" y="{tall + 16}" text-anchor="end">{top or highest:.3g}</text>'
    )
    rows = [_pair(pair, x, left, i * row) for i, pair in enumerate(pairs)]
    drawn = _svg(title, width, tall + 22, [*rows, axis])
    return f"<figure class=chart><figcaption>{escape(title)}</figcaption>{drawn}</figure>"


def _pair(pair: Pair, x: Scale, left: int, y: int) -> str:
    parts = [f'<text class=name x="{left}" y="{y + 18}">{escape(pair.name)}</text>']
    for name, side, down in (("base", pair.base, 32), ("tuned", pair.tuned, 48)):
        parts.append(
            f"<g class={name}><title>{name} {side['value']:.3f}</title>"
            f'<line x1="{x(side["low"])}" x2="{x(side["high"])}" y1="{y + down}" y2="{y + down}"/>'
            f'<circle cx="{x(side["value"])}" cy="{y + down}" r="5"/></g>'
        )
    if pair.floor is not None:
        parts.append(
            f'<line class=floor x1="{x(pair.floor)}" x2="{x(pair.floor)}" y1="{y + 24}" y2="{y + 56}">'
            "<title>what guessing scores</title></line>"
        )
    return "".join(parts)


def histogram(counts: Sequence[int], bar_tokens: int) -> str:
    """Draw rows by their length: `counts[i]` rows of up to `(i + 1) * bar_tokens` tokens."""
    width, height, most = 28, 180, max(counts)
    parts = [f'<text x="0" y="12">{most:,} rows</text>']
    for i, count in enumerate(counts):
        tall = round(height * count / most, 1)
        title = f"{i * bar_tokens + 1}–{(i + 1) * bar_tokens} tokens: {count:,} rows"
        parts.append(
            f'<rect x="{i * width + 2}" y="{height - tall + 20}" width="{width - 4}" height="{tall}">'
            f"<title>{title}</title></rect>"
        )
    parts += [
        f'<text x="{i * width}" y="{height + 38}">{i * bar_tokens:,}</text>'
        for i in range(0, len(counts) + 1, 6)
    ]
    box = (max(len(counts), 6) * width + 60, height + 46)
    return _svg("Rows by length in tokens", *box, parts, left=-4)


def _svg(label: str, width: int, height: float, parts: Sequence[str], left: int = 0) -> str:
    box = f"{left} 0 {width} {height}"
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box}">{"".join(parts)}</svg>'
