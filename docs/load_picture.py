"""Draw the picture of docs/load.md: `python docs/load_picture.py`.

A server of 40 ms a request stalls for half a second. Above, requests are due every 100 ms; below, one client sends
each request after the last answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PATH = Path(__file__).parent / "images" / "load_stall.svg"
WIDTH, LEFT, RIGHT, TOP, STEP = 640, 16, 16, 34, 9
SERVICE, STALL, STALL_AT, END, GAP = 40, 500, 300, 1_200, 100
SLOW = 80
"""A latency above it is drawn as slow, in milliseconds."""

Request = tuple[int, int]


def open_loop() -> list[Request]:
    """Return when each request was due and answered, in milliseconds."""
    free, found = 0, []
    for due in range(0, END, GAP):
        free = max(due, free) + (STALL if due == STALL_AT else SERVICE)
        found.append((due, free))
    return found


def closed_loop() -> list[Request]:
    """Return when the only client sent each request, and when it was answered."""
    now, found = 0, []
    while now < END:
        ended = now + (STALL if now == STALL_AT else SERVICE)
        found.append((now, ended))
        now = max(ended, now + GAP)
    return found


def drawing() -> str:
    """Return the picture as SVG."""
    loads = (
        ("open loop: from the time a request was due", open_loop()),
        ("closed loop: one client waits with the server", closed_loop()),
    )
    height = sum(TOP + STEP * len(requests) + 14 for _, requests in loads) + 24
    scale = (WIDTH - LEFT - RIGHT) / (END + 100)

    def x(milliseconds: int) -> int:
        return round(LEFT + scale * milliseconds)

    def lines() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
            'font-size="12" role="img" aria-label="Latencies around a stall, in an open and in a closed loop">'
        )
        yield f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        left, right = x(STALL_AT), x(STALL_AT + STALL)
        yield f'<rect x="{left}" y="8" width="{right - left}" height="{height - 30}" fill="#fde9c8"/>'
        yield f'<text x="{(left + right) // 2}" y="{height - 8}" text-anchor="middle" fill="#8a5a00">stall</text>'
        top = 8
        for title, requests in loads:
            slow = sum(ended - began > SLOW for began, ended in requests)
            yield f'<text x="{LEFT}" y="{top + 14}" fill="#222">{title}: {slow} of {len(requests)} are slow</text>'
            for place, (began, ended) in enumerate(requests):
                color = "#b00020" if ended - began > SLOW else "#3f51b5"
                y = top + TOP - 8 + STEP * place
                yield f'<line x1="{x(began)}" x2="{x(ended)}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="5"/>'
            top += TOP + STEP * len(requests) + 14
        yield "</svg>\n"

    return "\n".join(lines())


if __name__ == "__main__":
    PATH.write_text(drawing(), encoding="utf-8")
