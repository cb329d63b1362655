"""A chart of what a run did over time, as SVG: panels one above the other, with one axis of time."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, TOP, GAP = 760, 120, 60, 30, 42
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")


@dataclass(frozen=True)
class Panel:
    """One quantity, or several of the same unit."""

    title: str
    lines: dict[str, Sequence[float]]
    """Values by name, one for each time."""


def svg(title: str, seconds: Sequence[float], panels: Sequence[Panel]) -> str:
    """The chart; every line has as many values as there are times, which rise."""
    height = TOP + len(panels) * (PANEL + GAP) + 10
    span = max(seconds[-1], 1.0)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
            'font-size="11"><rect width="100%" height="100%" fill="white"/>'
        ),
        f'<text x="{LEFT}" y="18" font-size="13">{escape(title)}</text>',
    ]
    width = WIDTH - LEFT - 20
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL + GAP) + 16
        most = max(max(values) for values in panel.lines.values()) or 1.0
        parts += [
            f'<text x="{LEFT}" y="{top - 5}">{escape(panel.title)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{width}" height="{PANEL}" fill="none" stroke="#999"/>',
            f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:g}</text>',
            f'<text x="{LEFT - 6}" y="{top + PANEL}" text-anchor="end">0</text>',
        ]
        for mark in range(0, int(span) + 1, _step(span)):
            x = LEFT + width * mark / span
            parts += [
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + PANEL}" stroke="#e5e5e5"/>',
                f'<text x="{x:.1f}" y="{top + PANEL + 12}" text-anchor="middle" fill="#555">{mark} s</text>',
            ]
        for place, (name, values) in enumerate(panel.lines.items()):
            points = " ".join(
                f"{LEFT + width * at / span:.1f},{top + PANEL * (1 - value / most):.1f}"
                for at, value in zip(seconds, values, strict=True)
            )
            colour = COLOURS[place % len(COLOURS)]
            parts += [
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
                (
                    f'<text x="{WIDTH - 24}" y="{top + 14 + 14 * place}" text-anchor="end" fill="{colour}">'
                    f"{escape(name)}</text>"
                ),
            ]
    return "\n".join([*parts, "</svg>", ""])


def _step(span: float) -> int:
    return next((step for step in (10, 30, 60, 120, 300) if span / step <= 12), 600)
