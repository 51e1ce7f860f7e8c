"""Reports in a real browser without a network: nothing is asked for, nothing complains, hands and keys work."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from explore.report.run import page as run_page
from explore.studies.output import write
from runs.scenario import build, load
from sim.simulate import simulate
from tests.helpers.chromium import NAMES, Page, browser, found
from tests.helpers.made import compared
from tests.helpers.pages import EVIL, requests_of, slices_of
from tests.helpers.sweeps import SMALL as SWEEP
from tests.helpers.sweeps import pretend
from tests.unit.search.test_report_search import found_best
from tests.unit.test_cli import SMALL, run
from tests.unit.test_predict import PROFILE, slow
from tests.unit.test_report_folder import reply
from tests.unit.test_report_run import by_hand, whole

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        found() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"
    ),
]

WIDTHS = (400, 1000, 1600)
DRAWN = "document.getElementById('stage').dataset.drawn === 'yes'"
#: Bytes, and milliseconds to the first paint and to the lanes, of 10,000 requests.
MOST_BYTES, FIRST_PAINT_MS, LANES_MS = 5_000_000, 1000, 5000


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    tight = {**SMALL, "pool": {"device_blocks": 45, "host_blocks": 120, "aging": "none"}}
    simulate(build({**tight, "system": "vllm-0.3.3-keep"}, "test"), out=folder / "run")
    write(compared("vllm-0.3.3-keep", "fastswitch", runs=3), folder / "comparison", "fastswitch x")
    pretend(SWEEP, folder / "sweep", reply)
    found_best(folder / "search")
    real = slow(folder / "real", **{"step.base": 80e6})
    result = run("validate", real, "--profile", PROFILE, "--out", folder / "validation")
    assert result.exit_code == 0, result.output
    found_pages = {}
    for name in ("run", "comparison", "sweep", "search", "validation"):
        found_pages[name] = folder / f"{name}.html"
        assert run("report", folder / name, "--out", found_pages[name]).exit_code == 0
    return found_pages


def quiet(tab: Page) -> bool:
    """Nothing was logged, thrown, refused or asked for since the last time."""
    complaints, tab.complaints = tab.complaints, []
    assert complaints == []
    return True


def kept(png: bytes, name: str) -> bytes:
    """The picture, also put where FASTSWITCH_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("FASTSWITCH_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(png)
    return png


@pytest.mark.parametrize("kind", ["run", "comparison", "sweep", "search", "validation"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_fits_every_width_and_follows_light_and_dark(
    tab: Page, pages: dict[str, Path], kind: str, dark: bool
) -> None:
    for width in WIDTHS:
        tab.show(pages[kind], width, dark=dark)
        if kind == "run":
            tab.wait_for(DRAWN)
        assert tab.value("document.documentElement.scrollWidth") <= width
        png = kept(tab.picture(), f"{kind}-{width}-{'dark' if dark else 'light'}.png")
        with Image.open(io.BytesIO(png)) as image:
            assert image.width == width and image.height > 900
            corner = sum(image.convert("RGB").getpixel((2, 2)))  # type: ignore[arg-type]
            assert corner < 200 if dark else corner > 700
        assert quiet(tab)


def test_the_answer_and_its_picture_are_in_the_first_screen(
    tab: Page, pages: dict[str, Path]
) -> None:
    for kind, path in pages.items():
        tab.show(path, 1000, 700)
        ends = tab.value(
            "['.opening .lead', '.opening figure'].map((one) =>"
            " document.querySelector(one).getBoundingClientRect().bottom)"
        )
        assert 0 < ends[0] < ends[1] <= 700, kind
        assert quiet(tab)
    assert pages["comparison"].stat().st_size < 300_000


def test_folded_tables_are_printed(tab: Page, pages: dict[str, Path]) -> None:
    shown = "[...document.querySelectorAll('details table')].map((one) => one.checkVisibility())"
    for path in pages.values():
        tab.show(path, 1000)
        assert not any(tab.value(shown))
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert all(tab.value(shown))
        tab.call("Emulation.setEmulatedMedia", media="screen")


def test_words_can_be_read_against_their_ground(tab: Page, pages: dict[str, Path]) -> None:
    """Contrast of text of at least 4.5 to 1 (WCAG AA), in light and dark."""
    script = """(() => {
      const light = (text) => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return Math.min(...[...document.querySelectorAll('p, td, th, a, dt, dd, figcaption, button')].map((one) => {
        const ink = light(getComputedStyle(one).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      }));
    })()"""
    for dark in (False, True):
        for page in pages.values():
            tab.show(page, 800, dark=dark)
            assert tab.value(script) >= 4.5


def test_the_policy_stops_what_is_not_ours(
    tab: Page, pages: dict[str, Path], tmp_path: Path
) -> None:
    """The page's own policy, with something planted, and a browser to enforce it."""
    planted = (
        "<script>window.ran = 1</script><img src='http://192.0.2.1/x.png'>"
        "<p id='styled' style='color: rgb(1, 2, 3)' onclick='window.ran = 1'>x</p></main>"
    )
    bad = tmp_path / "bad.html"
    bad.write_text(pages["comparison"].read_text().replace("</main>", planted))
    tab.show(bad, 800)
    tab.value("document.getElementById('styled').click()")
    assert tab.value("window.ran === undefined")
    assert tab.value("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"
    assert len([text for text in tab.complaints if "Content Security Policy" in text]) == 4
    assert "blocked: csp" in tab.complaints
    tab.complaints = []


# ---------------------------------------------------------------------- the lanes


def view(tab: Page) -> tuple[float, float]:
    """The stretch of time that is shown, in seconds."""
    text = tab.value(
        "new Promise((done) => setTimeout(() => done(document.getElementById('range').textContent), 250))"
    )
    words = text.split()
    return float(words[0]), float(words[3])


def opened(tab: Page, path: Path, width: int = 1000) -> dict[str, float]:
    """The page with its lanes in sight; where they are in the window."""
    tab.show(path, width)
    tab.wait_for(DRAWN)
    tab.value("document.getElementById('stage').scrollIntoView()")
    box: dict[str, float] = tab.value(
        "(({x, y, width, height}) => ({x, y, width, height}))"
        "(document.getElementById('stage').getBoundingClientRect())"
    )
    return box


def story(tab: Page) -> str:
    return str(tab.value("document.getElementById('story').textContent"))


def chosen(tab: Page) -> str:
    return str(tab.value("document.querySelector('#story h3')?.textContent ?? ''"))


def test_keys_alone_pan_zoom_and_tell_every_story(tab: Page, pages: dict[str, Path]) -> None:
    opened(tab, pages["run"])
    table = requests_of(pages["run"].read_text())
    whole_view = view(tab)
    tab.value("document.getElementById('stage').focus()")
    tab.press("+", 2)
    begin, end = view(tab)
    assert end - begin == pytest.approx((whole_view[1] - whole_view[0]) / 4, rel=0.01)
    tab.press("ArrowRight")
    moved = view(tab)
    assert moved[0] - begin == pytest.approx((end - begin) / 4, rel=0.02)
    tab.press("ArrowLeft")
    assert view(tab) == pytest.approx((begin, end))
    tab.press("0")
    assert view(tab) == whole_view
    order = sorted(range(len(table["row"])), key=lambda i: (table["begin"][i], i))
    names = [table["request_id"][i] for i in order]
    for name in names:
        tab.press("ArrowDown")
        assert chosen(tab) == name
    tab.press("ArrowUp")
    assert chosen(tab) == names[-2]
    tab.press("Enter")
    begin, end = view(tab)
    mine = slices_of(pages["run"].read_text())[names[-2]]
    assert begin * 1e6 <= mine[0][0] + 1000 and end * 1e6 >= mine[-1][1] - 1000
    assert end - begin < 1.5 * (mine[-1][1] - mine[0][0]) / 1e6 + 0.01
    tab.press("Escape")
    assert "No request was chosen" in story(tab)
    assert quiet(tab)


def test_every_control_is_reached_by_tab_and_has_a_name(tab: Page, pages: dict[str, Path]) -> None:
    opened(tab, pages["run"])
    tab.value("document.body.focus()")
    reached = []
    for _ in range(120):
        tab.press("Tab")
        reached.append(
            tab.value(
                "(() => { const one = document.activeElement; return one.getAttribute('aria-label')"
                " ?? (one.labels?.length ? one.labels[0].textContent : one.textContent); })()"
            )
        )
    assert all(text.strip() for text in reached)
    order = ["Skip to the finding", "All numbers", "Zoom in", "Lower lanes", "Lanes of requests"]
    places = [next(i for i, text in enumerate(reached) if text.strip() == name) for name in order]
    assert places == sorted(places)


def preempted(lives: dict[str, list[tuple[int, int, str]]]) -> list[tuple[int, str]]:
    """When (microseconds) who lost the device after it had computed, in order of time."""
    found = []
    for name, slices in lives.items():
        begun = away = False
        for begin, _, state in slices:
            begun |= state in ("prefill", "decode")
            if begun and not away and state in ("parked", "swap-out", "swap-in"):
                found.append((begin, name))
                away = True
            away &= state not in ("prefill", "decode", "paused")
    return sorted(found, key=lambda one: one[0])


def test_every_preemption_is_marked_and_the_next_one_is_a_press_away(
    tab: Page, pages: dict[str, Path]
) -> None:
    opened(tab, pages["run"])
    table = requests_of(pages["run"].read_text())
    wanted = dict(zip(table["request_id"], table["preemptions"], strict=True))
    total = sum(wanted.values())
    assert total > 1
    button = "document.querySelector('[data-do=\"next\"]')"
    assert tab.value(f"{button}.textContent") == f"Next of {total} preemptions"
    tab.value("document.getElementById('stage').focus()")
    names = []
    for moment, name in preempted(slices_of(pages["run"].read_text())):
        tab.press("n")
        begin, end = view(tab)
        assert begin - 0.01 <= moment / 1e6 <= end + 0.01
        assert chosen(tab) == name
        names.append(name)
    assert Counter(names) == Counter({name: n for name, n in wanted.items() if n})
    tab.value(f"{button}.click()")
    assert chosen(tab) == names[0]
    assert quiet(tab)


def test_a_click_tells_the_story_by_hand(tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "hand.html"
    path.write_text(run_page(whole(by_hand(EVIL, client_id="somebody"))))
    box = opened(tab, path)
    tab.click(box["x"] + box["width"] * 0.5, box["y"] + 8)  # 60 ms of 120 ms
    told = story(tab)
    assert chosen(tab) == EVIL
    for part in (
        "first token after 17.0 ms; finished after 97.0 ms; preempted once",
        "client somebody",
        "+0 s: waits 9.00 ms (queued 7.00 ms, stalled 2.00 ms)",
        "served 28.0 ms (decode 16.0 ms, prefill 8.00 ms, stalled 4.00 ms)",
        "+37.0 ms: off the device 40.0 ms (parked 19.0 ms, swap-in 15.0 ms, swap-out 6.00 ms)",
        "served 20.0 ms (decode 20.0 ms)",
    ):
        assert part in told, told
    tab.mouse("mouseMoved", box["x"] + box["width"] * 0.55, box["y"] + 8)
    assert f"{EVIL}: swap-in" in tab.value("document.getElementById('readout').textContent")
    tab.click(box["x"] + box["width"] * 0.9, box["y"] + 8)
    assert "No request was chosen" in story(tab)
    assert quiet(tab)


def test_the_lanes_show_the_states_in_their_colours(tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "hand.html"
    path.write_text(run_page(whole(by_hand())))
    for dark in (False, True):
        tab.show(path, 1000, dark=dark)
        tab.wait_for(DRAWN)
        for at_ms, state in ((5, "queued"), (16, "prefill"), (25, "decode"), (32, "stalled"),
                             (44, "swap-out"), (52, "parked"), (68, "swap-in"), (90, "decode")):  # fmt: skip
            pixel, want = tab.value(
                "(() => { const c = document.getElementById('picture');"
                f" const p = c.getContext('2d').getImageData(Math.round(c.width * {at_ms} / 120), 8, 1, 1).data;"
                " const style = getComputedStyle(document.documentElement);"
                f" const hex = style.getPropertyValue('--{state}').trim();"
                " return [[p[0], p[1], p[2]].map((v) => v.toString(16).padStart(2, '0')).join(''), hex.slice(1)]; })()"
            )
            assert pixel == want, (at_ms, state, dark)
    tab.complaints = []  # reading pixels back is slow, it says


def test_the_mouse_drags_and_its_wheel_zooms_once_the_lanes_have_the_focus(
    tab: Page, pages: dict[str, Path]
) -> None:
    box = opened(tab, pages["run"])
    x, y = box["x"] + 500, box["y"] + 100
    before = view(tab)
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    assert view(tab) == before  # the page scrolls instead
    tab.value("document.getElementById('stage').scrollIntoView()")
    tab.value("document.getElementById('stage').focus()")
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    begin, end = view(tab)
    assert end - begin < 0.7 * (before[1] - before[0])
    tab.mouse("mouseMoved", x, y)
    tab.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    tab.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
    tab.mouse("mouseReleased", x - 100, y, button="left", buttons=1, clickCount=1)
    moved = view(tab)
    share = (moved[0] - begin) / (end - begin)
    assert share == pytest.approx(100 / box["width"], rel=0.1)
    assert "No request was chosen" in story(tab)  # a drag is no click
    assert quiet(tab)


def test_names_in_the_tables_and_the_search_lead_to_the_request(
    tab: Page, pages: dict[str, Path]
) -> None:
    opened(tab, pages["run"])
    name = tab.value(
        "(() => { const b = document.querySelector('button.link'); b.click(); return b.textContent; })()"
    )
    assert chosen(tab) == name
    assert tab.value("document.activeElement.id") == "stage"
    table = requests_of(pages["run"].read_text())
    other = next(one for one in table["request_id"] if one != name)
    tab.value(
        "(() => { const f = document.getElementById('find');"
        f" f.value = {other!r}; f.dispatchEvent(new Event('input')); }})()"
    )
    assert chosen(tab) == other
    assert quiet(tab)


def test_a_sweep_shows_what_fits_the_chosen_values(tab: Page, pages: dict[str, Path]) -> None:
    tab.show(pages["sweep"], 1000)
    shown = "[...document.querySelectorAll('tr[data-knobs]')].filter((r) => r.offsetParent).length"
    everything = tab.value(shown)
    tab.value(
        "(() => { const s = document.querySelector('select[data-knob=\"0\"]'); s.value = '1';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert 0 < tab.value(shown) < everything
    assert tab.value("document.getElementById('count').textContent").startswith(
        f"{tab.value(shown)} of"
    )
    assert quiet(tab)


def test_ten_thousand_requests_stay_within_their_budget(tab: Page, tmp_path: Path) -> None:
    """In a run beyond saturation, where every request has some thirty slices."""
    scenario = load("paper-8b-a10", {"workload.conversations": 2000})
    simulate(scenario, out=tmp_path / "run")
    assert run("report", tmp_path / "run").exit_code == 0
    path = tmp_path / "run" / "report.html"
    table = requests_of(path.read_text())
    assert len(table["row"]) >= 10_000 and sum(table["count"]) > 200_000
    assert path.stat().st_size < MOST_BYTES
    paints = []
    for _ in range(3):
        opened(tab, path, 1280)
        tab.wait_for("performance.getEntriesByName('first-contentful-paint').length")
        paints.append(
            tab.value(
                "['first-contentful-paint', 'lanes drawn'].map((name) =>"
                " performance.getEntriesByName(name)[0].startTime)"
            )
        )
    best = [min(times) for times in zip(*paints, strict=True)]
    assert best[0] < FIRST_PAINT_MS and best[1] < LANES_MS, paints
    kept(tab.picture(whole=False), "ten-thousand.png")
    tab.value("document.getElementById('stage').focus()")
    tab.press("+", 6)
    tab.press("ArrowDown")
    assert chosen(tab)
    kept(tab.picture(whole=False), "ten-thousand-zoomed.png")
    assert quiet(tab)
    shutil.rmtree(tmp_path / "run")
