"""`fastswitch reproduce`: operating points and claims that are whole, verdicts by one rule, and a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fastswitch
from explore.reproduce import crossover, data, figures, text
from explore.reproduce.data import PARTS, Claim, Variant, claims, points
from explore.reproduce.judge import Verdict, cells_of, judge_all, state_of
from explore.reproduce.overhead import Overhead, measure
from explore.reproduce.run import Reproduction, Session
from explore.reproduce.study import Found, Place, study_of
from explore.studies.estimates import Ratio
from explore.studies.trial import run_trial
from explore.studies.worth import MECHANISMS
from explore.words import HEADINGS

TINY = {
    "workload.conversations": 12,
    "workload.rate": 2.0,
    "workload.context_cap": 600,
    "workload.think": "none",
    "limits.max_model_len": 600,
    "pool.device_blocks": 60,
    "pool.host_blocks": 400,
    "pool.aging": "none",
}
KEEP, DROP, OURS = "paged-keep", "paged", "fastswitch"


# ---------------------------------------------------------------------- the files


def test_one_point_for_every_claim_with_five_seeds_and_few_runs() -> None:
    study = study_of(points(full=False), PARTS)
    assert len(study.plan.keys) <= 180
    assert all(len(keys) >= 5 for systems in study.keys.values() for keys in systems.values())
    assert study.left_out == ()
    for claim in claims():
        if claim.kind == "overhead":
            continue
        held = study_of(points(full=False), [claim.part])
        for setup in claim.setups:
            places = [p for p in held.keys if (p.group, p.setup) == (claim.group, setup)]
            assert places, claim.id
            for pair in claim.pairs:
                assert all(set(pair) <= set(held.keys[place]) for place in places), claim.id


def test_claims_say_what_was_claimed_and_by_whom() -> None:
    assert len({claim.id for claim in claims()}) == len(claims())
    assert {claim.part for claim in claims()} == set(PARTS)
    for claim in claims():
        assert claim.low <= claim.high
        assert set(claim.metrics) <= set(HEADINGS)
        sources = ("abstract", "third party", "digest", "memory", "none")
        assert claim.source.startswith(sources), claim.id


def test_everything_of_a_full_study_can_be_built_and_holds_the_points() -> None:
    base, full = (study_of(points(full=one), PARTS) for one in (False, True))
    assert set(base.plan.keys) <= set(full.plan.keys)
    known = {name for systems in full.keys.values() for name in systems}
    assert not known & set(full.left_out)


def test_a_load_is_a_share_of_what_the_baseline_was_measured_to_make() -> None:
    study = study_of(points(full=True), ["sensitivity"])
    rates = {
        trial.label: trial.scenario["workload"]["rate"]
        for trial in study.plan.trials
        if trial.label.startswith("load 8b-markov")
    }
    saturation = points(full=True).setups["8b-markov"].saturation
    assert rates["load 8b-markov 50 %"] == pytest.approx(saturation / 2)
    assert rates["load 8b-markov 125 %"] == pytest.approx(saturation * 1.25)


def test_a_system_nobody_knows_is_left_out_and_named() -> None:
    base = points(full=False)
    odd = base.model_copy(
        update={
            "custom": {"odd": {"base": OURS, "host_eviction": "none such"}},
            "lists": {"all": (KEEP, "odd", "+not-yet")},
            "groups": (base.groups[0].model_copy(update={"systems": ("all",)}),),
        }
    )
    study = study_of(odd, PARTS)
    assert study.left_out == ("+not-yet", "odd")
    assert {name for systems in study.keys.values() for name in systems} == {KEEP}


# ---------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("value", "factor", "state"),
    [
        (5.0, 1.1, "holds"),
        (4.0, 1.1, "holds"),  # the interval meets the range
        (3.0, 1.1, "less"),
        (9.0, 1.1, "more"),
        (5.0, 2.5, "wide"),
        (1.5, 1.6, "none"),
        (0.5, 1.2, "worse"),
        (5.0, None, "few"),
        (None, None, "few"),
    ],
)
def test_a_cell_stands_somewhere_to_the_claimed_range(
    value: float | None, factor: float | None, state: str
) -> None:
    assert state_of(Ratio(value, factor), 4.3, 5.8) == state


def claim(**changes: Any) -> Claim:
    facts: dict[str, Any] = {
        "id": "x",
        "part": "ttft",
        "row": "x",
        "said": "4 to 6 times",
        "source": "abstract",
        "kind": "ratio",
        "metrics": ("ttft_p95_s",),
        "pairs": ((OURS, DROP), (OURS, KEEP)),
        "setups": ("one", "two"),
        "low": 4.0,
        "high": 6.0,
    }
    return Claim(**{**facts, **changes})


Value = Callable[[Place, str, int], float]


def found(value: Value, *variants: str, group: str = "turns") -> Found:
    """Five runs of three systems at two set-ups under each variant."""
    places = [Place(group, setup, name) for setup in ("one", "two") for name in variants or ("",)]
    results = {
        place: {
            system: [
                {"metrics": {"ttft_p95_s": value(place, system, run) * (1 + run / 100)}}
                for run in range(5)
            ]
            for system in (DROP, KEEP, OURS)
        }
        for place in places
    }
    made = tuple(Variant(name=name) for name in variants or ("",))
    return Found(results, {group: made})


def verdict(one: Claim, held: Found) -> Verdict:
    (made,) = judge_all([one], held)
    return made


def test_all_cells_in_the_range_is_reproduced_and_some_is_partly() -> None:
    every = verdict(claim(), found(lambda _p, system, _r: 1.0 if system == OURS else 5.0))
    assert (every.word, every.why) == ("reproduced", "4 of 4 in the claimed range")
    some = verdict(claim(), found(lambda _p, s, _r: {OURS: 1.0, KEEP: 5.0, DROP: 50.0}[s]))
    assert (some.word, some.why) == ("partly", "2 of 4 in the claimed range, 2 better by more")


def test_better_by_another_amount_is_partly_and_no_difference_is_not() -> None:
    more = verdict(claim(), found(lambda _p, system, _r: 1.0 if system == OURS else 2.0))
    assert (more.word, more.why) == ("partly", "4 of 4 better by less")
    none = verdict(claim(), found(lambda p, s, _r: 2.0 if (s, p.setup) == (KEEP, "one") else 1.0))
    assert (none.word, none.why) == ("not", "1 of 4 better by less, 3 no difference shown")


def test_up_to_is_judged_by_the_largest_cell_and_a_small_gain_is_no_part_of_it() -> None:
    best = claim(best=True, low=2.95, high=3.05)

    def at(most: float) -> Verdict:
        def value(place: Place, system: str, _run: int) -> float:
            return most if (system, place.setup) == (DROP, "two") else 1.0

        return verdict(best, found(value))

    assert (at(3.0).word, at(3.0).why) == (
        "reproduced",
        "largest at two: in the claimed range",
    )
    assert at(5.0).word == "partly"
    assert at(2.2).word == "partly"
    assert at(1.5).word == "not"


def test_a_share_is_a_value_of_one_system() -> None:
    share = claim(kind="value", pairs=((KEEP,),), low=0.5985, high=0.5995, best=True, show="share")
    made = verdict(share, found(lambda p, _s, _r: 0.5985 if p.setup == "two" else 0.2))
    assert made.word == "reproduced"
    assert text.value(made.cells[1], "share") == "61.0 (59.9-62.2) %"
    assert verdict(share, found(lambda _p, _s, _r: 0.1)).word == "not"


def test_where_else_a_claim_holds_is_told() -> None:
    at_point = found(lambda _p, s, _r: 1.0 if s == OURS else 2.0)

    def elsewhere(place: Place, system: str, _run: int) -> float:
        far = {"10 us": 5.0, "5 us": 2.0, "7 us": 5.0 if place.setup == "one" else 2.0}
        return 1.0 if system == OURS else far[place.variant]

    other = found(elsewhere, "5 us", "7 us", "10 us", group="dispatch")
    held = Found({**at_point.results, **other.results}, {**at_point.variants, **other.variants})
    made = verdict(claim(), held)
    assert [place.words for place in made.where] == ["7 us (2 of 4)", "10 us"]


def test_the_claims_own_runs_under_another_name_are_no_other_setting() -> None:
    own = found(lambda _p, system, _r: 1.0 if system == OURS else 5.0)
    again = {Place("dispatch", p.setup, "5 us"): held for p, held in own.results.items()}
    both = {**own.variants, "dispatch": (Variant(name="5 us"),)}
    assert verdict(claim(), Found({**own.results, **again}, both)).where == ()


def test_a_claim_whose_systems_were_not_run_is_not_judged() -> None:
    assert verdict(claim(setups=("three",)), found(lambda _p, _s, _r: 1.0)).word == "not run"
    assert verdict(claim(group="dropped"), found(lambda _p, _s, _r: 1.0)).word == "not run"


def test_flat_is_no_difference_worth_naming_along_the_axis() -> None:
    flat = claim(kind="flat", pairs=((OURS,),), setups=("one",), group="initial group")

    def at(far: float) -> Verdict:
        def value(place: Place, _system: str, run: int) -> float:
            return far + run * 1e-6 if place.variant == "188" else 1.0

        return verdict(flat, found(value, "4", "60", "188", group="initial group"))

    assert [at(far).word for far in (1.0, 1.04, 1.2, 1.5)] == [
        "reproduced",
        "reproduced",
        "partly",
        "not",
    ]


def test_growing_is_a_larger_gain_at_the_end_than_at_the_beginning() -> None:
    grows = claim(kind="grows", pairs=((OURS, KEEP),), setups=("one",), group="frequency")

    def at(last: float) -> Verdict:
        def value(place: Place, system: str, run: int) -> float:
            gain = last + run * 1e-6 if place.variant == "0.1" else 2.0
            return 1.0 if system == OURS else gain

        return verdict(grows, found(value, "0.01", "0.1", group="frequency"))

    assert (at(4.0).word, at(1.5).word) == ("reproduced", "not")
    assert "TTFT P95 2.000x" in at(4.0).why
    assert [point.x for point in at(4.0).trend] == ["0.01", "0.1"]


def test_steps_are_reproduced_if_each_mechanism_gains() -> None:
    steps = claim(kind="steps", pairs=((KEEP, DROP), (OURS, KEEP)))
    three = {DROP: 4.0, KEEP: 2.0, OURS: 1.0}
    assert verdict(steps, found(lambda _p, s, _r: three[s])).word == "reproduced"
    assert verdict(steps, found(lambda _p, s, _r: {**three, OURS: 2.0}[s])).word == "partly"
    worse = verdict(steps, found(lambda _p, s, _r: {**three, OURS: 3.0}[s]))
    assert worse.word == "not"
    assert worse.why == f"{KEEP}: 2 of 2 better, 0 worse; {OURS}: 0 of 2 better, 2 worse"


def test_cells_pair_runs_of_the_same_number() -> None:
    held = found(lambda _p, system, run: (run + 1.0) * (1 if system == OURS else 5))
    assert {round(cell.value or 0, 6) for cell in cells_of(claim(), held, "turns")} == {5.0}


# ---------------------------------------------------------------------- the page


def made(place: Place, system: str, run: int) -> dict[str, Any]:
    """A run that nobody made: better with every mechanism, and a little different every time."""
    worth = {DROP: 8.0, KEEP: 4.0, "+groups": 2.0, "+reuse": 1.5, "+async": 1.5, OURS: 1.0}
    size = worth.get(system, 3.0) * (1 + run / 100) * (1 + len(place.setup) / 100)
    counts = {"ttft_samples": 5000, "tbt_samples": 1_600_000, "steps": 9000}
    return {"metrics": {**dict.fromkeys(HEADINGS, size), **LOAD, **counts}}


LOAD = {"offered_tok_s": 110.0, "capacity_tok_s": 100.0}


def whole(*, full: bool) -> Reproduction:
    """A reproduction of which every run was made up."""
    study = study_of(points(full=full), PARTS)
    results = {
        place: {
            name: [made(place, name, run) for run in range(len(keys))]
            for name, keys in systems.items()
        }
        for place, systems in study.keys.items()
    }
    held = Found(results, study.variants, 0, study.left_out)
    overhead = Overhead(0.5, 0.25, 100.0, 10, 10)
    verdicts = tuple(judge_all(claims(), held, overhead))
    facts = {"commit": "abc", "semantics": 2, "trials": len(study.plan.keys)}
    return Reproduction(
        full,
        PARTS,
        verdicts,
        held,
        overhead,
        (Session(60.0, 4, None), Session(1.0, 1, 2, 9.0)),
        facts,
    )


def test_a_full_page_has_every_claim_load_mechanism_and_engine() -> None:
    found = whole(full=True)
    page = text.as_markdown(found)
    for one in claims():
        assert f"| {one.row}" in page
    assert {one.word for one in found.verdicts} <= {
        "reproduced",
        "partly",
        "not",
        "no value claimed",
    }
    titles = re.findall("^## (.*)", page, re.MULTILINE)
    assert titles == [
        "Claims",
        "Load and swap volume of the baselines",
        "What each mechanism is worth",
        "The same at other readings, loads and prices of a copy call",
        "Engines that could be built today, at the baseline's capacity",
        "Swap against recompute: the price of a call at which both take as long",
        "Choices inside the mechanisms",
        "Other rules of preemption, and static priority",
        "An eighth of the host memory: which copies go first",
        "Every cell of the claims with many",
    ]
    assert "| turns 8b-markov | paged-keep | 110% |" in page
    assert "| dispatch 8b-random 10 us | +groups | " in page
    pair = "`+groups-block-major` against `+block-major`"
    assert f"| block groups on a block-major layout: {pair} | 8b-markov |" in page
    of_three = [(mechanism, pair) for mechanism, *pair in MECHANISMS if KEEP in pair]
    assert len(of_three) == 4
    for mechanism, (has, lacks) in of_three:
        assert f"| {mechanism}: `{has}` against `{lacks}` | 8b-markov |" in page
    assert "5,000 turns, 1,600,000 gaps, 5 runs" in page
    assert "1 of the runs took 0.0 minutes with 2 workers, 9 CPU seconds" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count(" |") for line in table.splitlines()}) == 1, table
    assert json.loads(json.dumps(text.as_json(found)))["missing"] == 0


def test_each_axis_of_the_sensitivity_is_a_panel_with_intervals() -> None:
    panels = figures.sensitivity(whole(full=True).found).axes
    assert [axes.get_xlabel() for axes in panels if axes.get_visible()] == [
        words for _, words in figures.AXES
    ]
    for axes in panels:
        assert len(axes.containers) == 6  # three metrics, two patterns, each with error bars
    short = [
        axes for axes in figures.sensitivity(whole(full=False).found).axes if axes.get_visible()
    ]
    assert [axes.get_xlabel() for axes in short] == [
        "priority updates per step",
        "host memory",
    ]


def test_the_figure_of_swap_and_recompute_has_every_machine_price_and_check() -> None:
    for axes in figures.swap_or_recompute().axes:
        lines = axes.get_lines()
        assert sum(line.get_marker() == "x" for line in lines) == len(crossover.CHECKED)
        assert len(lines) == len(crossover.CALLS_US) + 3 + len(crossover.CHECKED) + 1


# ---------------------------------------------------------------------- what is measured apart


def test_the_simulated_preemption_takes_what_the_formula_says() -> None:
    for check in crossover.checks():
        assert check.swap_ns == check.swap_formula_ns > 0
        assert check.recompute_ns == check.recompute_formula_ns > 0


def test_at_the_break_even_price_swapping_takes_as_long_as_recompute() -> None:
    for machine in crossover.MACHINES:
        price = crossover.break_even_us(machine, 2048)
        profile = crossover.profiles.load(machine)
        below, above = (
            crossover.swap_ns(
                profile.with_values({"transfer.per_call": (price + by) * 1000}),
                crossover.named_system(KEEP),
                2048,
            )
            for by in (-0.06, 0.06)  # it is told in tenths
        )
        assert below < crossover.recompute_ns(profile, 2048) < above


def test_the_time_of_scheduler_calls_is_measured_of_both() -> None:
    made = measure(points(full=False), repeats=1, conversations=3)
    assert made.ours_s > 0
    assert made.theirs_s > 0
    assert made.run_s > made.ours_s
    assert Overhead(3.0, 1.0, 100.0, 1, 1).share == 0.02


# ---------------------------------------------------------------------- the command


def run(*arguments: object) -> Result:
    settings = [f"--set={path}={json.dumps(value)}" for path, value in TINY.items()]
    return CliRunner().invoke(
        fastswitch.main, ["reproduce", *(str(a) for a in arguments), *settings]
    )


@pytest.fixture
def one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The points of the sensitivity to frequency alone: 30 runs of a dozen conversations."""
    base = points(full=False)
    kept = tuple(group for group in base.groups if group.name == "frequency")
    monkeypatch.setattr(data, "points", lambda full: base.model_copy(update={"groups": kept}))


def test_a_part_is_run_judged_and_written_and_a_second_run_finds_it_all(
    one_group: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run("sensitivity", "--out", out, "--workers", 1)
    assert first.exit_code == 0, first.output
    assert "gain grows with it" in first.output
    held = json.loads((out / "claims.json").read_text())
    assert [c["verdict"] for c in held["claims"] if c["id"] == "initial-group"] == ["not run"]
    (frequency,) = (c for c in held["claims"] if c["id"] == "frequency")
    assert len(frequency["trend"]) == 9
    assert held["missing"] == 0
    (session,) = held["sessions"]
    assert session["trials"] == 30
    assert session["cpu_seconds"] > 0
    page = (out / "claims.md").read_text()
    assert "## Claims" in page
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    second = run("sensitivity", "--out", out, "--json")
    assert second.exit_code == 0
    again = json.loads(second.stdout)
    assert again["claims"] == held["claims"]
    assert len(again["sessions"]) == 1  # the second had nothing to run


def test_a_failed_trial_is_told_and_what_was_finished_is_kept(
    one_group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Failing:
        def run(self, asks: Any) -> Any:
            for ask in asks:
                asked.append(ask)
                if len(asked) == 2:
                    yield json.dumps({"key": json.loads(ask)["key"], "failed": "no luck"})
                else:
                    yield run_trial(ask)

        def close(self) -> None:
            pass

    monkeypatch.setattr("explore.studies.engine.make_workers", lambda *_: Failing())
    failed = run("sensitivity", "--out", tmp_path / "out")
    assert failed.exit_code == 5
    assert "1 trials failed: no luck" in failed.output
    assert len(failed.output.strip().splitlines()) <= 5
    before = len(asked)
    assert run("sensitivity", "--out", tmp_path / "out").exit_code == 0
    assert len(asked) == before + 1


def test_a_folder_that_holds_something_else_is_left_alone(one_group: None, tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "letter.txt").write_text("dear")
    told = run("sensitivity", "--out", tmp_path)
    assert told.exit_code == 2
    assert "no study" in told.output
