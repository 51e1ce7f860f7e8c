"""How a system looks: one colour, dash and marker by its name, in every page, file and notebook.

Colours are Okabe and Ito's, darkened until each stands three to one against white, so that most colour-blind
readers tell them apart; dashes and markers repeat the cue in grey. Pages have the same colours, and others in the dark, in
style.css.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Look(NamedTuple):
    """Indices into COLOURS, DASHES and MARKERS."""

    colour: int
    dash: int = 0
    marker: int = 0


#: On white: ink, blue, green, amber, vermilion, sky, pink, grey. A test holds style.css to them.
COLOURS = ("#1b1b1b", "#0072b2", "#00805d", "#a86b00", "#c44f00", "#3a8fc8", "#b0568c", "#767676")
#: As matplotlib's line styles and as SVG's dash arrays, alike.
DASHES = ("-", "--", ":", "-.")
#: Outlines around (0, 0), of about the same area: circle, square, triangle, diamond, triangle that points
#: down, plus.
MARKERS = ("o", "s", "^", "D", "v", "P")
MARKER_PATHS = (
    "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -4.8L4.5 3.4H-4.5Z",
    "M0 -5L4.6 0L0 5L-4.6 0Z",
    "M0 4.8L4.5 -3.4H-4.5Z",
    "M-1.6 -4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
)

#: Colours follow what a system is made of, so that a variant keeps its mechanism's.
SYSTEMS: dict[str, Look] = {
    "paged": Look(7, 2, 1),
    "paged-keep": Look(0, 0, 1),
    "paged-recompute": Look(7, 3, 2),
    "vllm-0.3.3": Look(7, 1, 3),
    "vllm-0.3.3-keep": Look(0, 1, 3),
    "vllm-0.3.3-recompute": Look(7, 0, 4),
    "vllm-v1": Look(6, 0, 1),
    "vllm-v1+swap": Look(1, 1, 2),
    "vllm-v1+swap-block-major": Look(2, 3, 1),
    "vllm-v1+swap-async": Look(3, 0, 5),
    "vllm-v1+park": Look(4, 1, 4),
    "vllm-v1+least-computed": Look(7, 0, 3),
    "vllm-v1+victim-cost": Look(0, 2, 2),
    "vllm-v1+displace": Look(5, 0, 4),
    "vllm-v1+groups": Look(5, 1, 5),
    "vllm-v1+groups-block-major": Look(2, 3, 4),
    "vllm-v1-offload": Look(6, 3, 4),
    "vllm-v1-offload-all": Look(6, 1, 5),
    "+groups": Look(5, 1, 2),
    "+reuse": Look(1, 3, 3),
    "+async": Look(6, 2, 5),
    "+batched": Look(3, 1, 4),
    "+block-major": Look(2, 2, 5),
    "+groups-block-major": Look(2, 1, 2),
    "fastswitch": Look(4, 0, 0),
    "fastswitch-no-groups": Look(5, 0, 0),
    "fastswitch-no-reuse": Look(1, 0, 0),
    "fastswitch-no-async": Look(3, 0, 0),
    "fastswitch-block-major": Look(2, 0, 0),
    "+cost": Look(3, 2, 2),
    "fastswitch-cost": Look(3, 3, 1),
    "fastswitch-gap": Look(1, 1, 1),
    "fastswitch-never": Look(7, 1, 0),
    "fastswitch-lru": Look(1, 2, 2),
    "fastswitch-arc": Look(2, 3, 3),
    "fastswitch-isolated-lru": Look(5, 2, 4),
    "fastswitch-no-leader": Look(4, 1, 3),
    "fastswitch-no-cap": Look(4, 2, 2),
    "+prefix": Look(1, 0, 5),
    "fastswitch-prefix": Look(1, 1, 4),
    "+chunked": Look(2, 1, 1),
    "fastswitch-chunked": Look(2, 2, 4),
    "+write-through": Look(5, 3, 5),
    "fastswitch-write-through": Look(5, 0, 1),
    "+incremental": Look(3, 2, 5),
    "fastswitch-incremental": Look(3, 0, 3),
    "+proactive": Look(4, 3, 5),
    "fastswitch-proactive": Look(4, 3, 1),
}


def of(system: str) -> Look:
    """A system's look; that of one with a name of its own is drawn from the name."""
    known = SYSTEMS.get(system)
    if known is not None:
        return known
    drawn = hashlib.sha256(system.encode()).digest()
    return Look(1 + drawn[0] % (len(COLOURS) - 1), drawn[1] % len(DASHES), drawn[2] % len(MARKERS))


def style_of(system: str) -> dict[str, str]:
    """A system's look as keyword arguments of matplotlib."""
    look = of(system)
    return {
        "color": COLOURS[look.colour],
        "linestyle": DASHES[look.dash],
        "marker": MARKERS[look.marker],
    }


def nth(index: int) -> Look:
    """Of what is no system: curves of pools, clients and the like, by their place."""
    return Look(index % len(COLOURS), index % len(DASHES), index % len(MARKERS))
