"""The lane view's frame: what it needs of HTML, usable with keys alone and told to screen readers."""

from __future__ import annotations

from collections.abc import Sequence

from explore.report.document import details, paragraph, table
from explore.report.tails import legend

#: Its script, in the order of use.
SCRIPT = ("decode.js", "marks.js", "picture.js", "story.js", "lanes.js")

_MEANINGS = {
    "queued": "arrived, nothing computed yet",
    "prefill": "its prompt, or KV that was lost, is computed",
    "decode": "in the decode batch",
    "stalled": "its step waits for copies",
    "paused": "on the device, while prompts of others are computed",
    "parked": "preempted: its KV is on the host, on its way, or lost",
    "swap-out": "a copy of its KV to the host moves, and it does not compute",
    "swap-in": "a copy of its KV to the device moves, and it does not compute",
}
_KEYS = (
    ("left, right", "pan"),
    ("+, -", "zoom in, out"),
    ("0", "all of the run"),
    ("n", "the next preemption"),
    ("up, down", "the request that arrived before, after"),
    ("Enter", "zoom to the request"),
    ("Page up, Page down", "other lanes, where there are more than fit"),
    ("Escape", "no request"),
)
_BUTTONS = (
    ("in", "Zoom in"),
    ("out", "Zoom out"),
    ("left", "Earlier"),
    ("right", "Later"),
    ("all", "All of the run"),
    ("next", "Next preemption"),
    ("taller", "Taller lanes"),
    ("lower", "Lower lanes"),
)


def viewer(notes: Sequence[str]) -> str:
    """Tools, the picture, what is told about the request that was pressed, and the keys."""
    buttons = "".join(
        f'<button type="button" data-do="{name}">{label}</button>' for name, label in _BUTTONS
    )
    return (
        paragraph(
            "Marks below the lanes: every preemption, swap and stall, whatever the zoom. A lane holds one request at a time, so as many lanes are filled as requests live at once."
            " Where a pixel stands for more than one state, the one that fills most of it is drawn."
            " Drag to pan; the wheel zooms once the picture was pressed; press a request for its story."
        )
        + "".join(paragraph(text, "note") for text in notes)
        + '<noscript><p class="note">The lanes need JavaScript; everything else on this page does not.</p>'
        "</noscript>"
        f'<div class="viewer" id="viewer"><div class="tools" role="group" aria-label="View">{buttons}'
        '<label>Request <input id="find" type="search" list="ids" autocomplete="off" spellcheck="false">'
        '</label><datalist id="ids"></datalist>'
        '<label id="clients" hidden>Client <select id="client"></select></label></div>'
        '<p id="range" role="status"></p><p id="tail" class="told" hidden>The last turns trickle out in'
        " what follows, with a hundredth of all their time: press All of the run to see it.</p>"
        '<div class="beside"><div id="stage" tabindex="0" role="application" aria-label="Lanes of requests"'
        ' aria-describedby="keys range"><canvas id="picture"></canvas><canvas id="over"></canvas></div>'
        + legend(_MEANINGS)
        + '</div><p id="readout" aria-hidden="true"></p><div id="story" role="region" aria-label="Story of a request" aria-live="polite">'
        "<p>No request was chosen.</p></div></div>"
        + '<div id="keys">'
        + details("Keys, once the picture has the focus", table("Keys", ["key", "does"], _KEYS))
        + "</div>"
    )
