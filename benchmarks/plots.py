"""SVG plots without a library: a bar chart and a line chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 700
OURS, OTHERS, INK = "#2f6f4f", "#9aa5b1", "#3e4c59"


def _drawing(height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def bars(values: Mapping[str, float], ours: str = "gateway") -> str:
    """Draw a horizontal bar chart with values. Names that begin with `ours` are highlighted."""
    widest = max(values.values())
    parts = []
    for place, (name, value) in enumerate(values.items()):
        y, width = 20 + 30 * place, 320 * value / widest
        shown = name.replace("`", "")
        colour = OURS if name.startswith(ours) else OTHERS
        parts.append(f'<text x="310" y="{y + 15}" text-anchor="end">{escape(shown)}</text>')
        parts.append(f'<rect x="320" y="{y}" width="{width:.0f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{326 + width:.0f}" y="{y + 15}">{value:.2f}</text>')
    return _drawing(30 * len(values) + 20, parts)


def line(points: Sequence[tuple[float, float]], title: str, across: str, up: str) -> str:
    """Draw a line chart. Both axes start at zero and have a name and the values at their ends."""
    left, top, width, height = 70, 40, WIDTH - 100, 200
    last, highest = max(x for x, _ in points), max(y for _, y in points)
    path = " ".join(f"{left + width * x / last:.1f},{top + height * (1 - y / highest):.1f}" for x, y in points)
    bottom = top + height
    return _drawing(
        bottom + 50,
        [
            f'<text x="{left}" y="22">{escape(title)}</text>',
            f'<polyline points="{left},{top} {left},{bottom} {left + width},{bottom}" fill="none" stroke="{INK}"/>',
            f'<polyline points="{path}" fill="none" stroke="{OURS}" stroke-width="1.5"/>',
            f'<text x="{left - 8}" y="{top + 5}" text-anchor="end">{highest:.0f}</text>',
            f'<text x="{left - 8}" y="{bottom + 5}" text-anchor="end">0</text>',
            f'<text x="{left - 8}" y="{top + height // 2}" text-anchor="end">{escape(up)}</text>',
            f'<text x="{left}" y="{bottom + 20}">0</text>',
            f'<text x="{left + width}" y="{bottom + 20}" text-anchor="end">{last:.0f}</text>',
            f'<text x="{left + width // 2}" y="{bottom + 40}" text-anchor="middle">{escape(across)}</text>',
        ],
    )
