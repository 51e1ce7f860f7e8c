"""The simulated machine behind the door: paced to the wall clock, with text that nobody wrote."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from door.driver import LiveDriver
from door.front import Known
from door.live import HEADER, gauges, lengths_of
from door.tap import Happened, Tap
from door.ticket import Mock
from door.words import Words
from policy.views import BlockNames
from runs import recording
from runs.recording import JOURNAL, SCHEMAS, Recording
from runs.scenario import Scenario
from runs.serving import aging_lengths, make_scheduler
from runs.turns import Arrival
from runs.user_order import UserOrder
from sim.clock import Clock as SimClock
from sim.pace import Bell, Clock, Lateness, run_paced
from sim.simulate import calm_collector, close, make_engine, prepare
from traces.block_names import TokenNames
from traces.prefixes import keys_from_tokens
from traces.workload import Turn, Workload

#: A session whose events were later than this, at their 99th percentile, measured its own host: it says so.
LATE_US = 10_000


class Simulated:
    """Prepared when made; `run` serves in the calling thread until the driver is closed. Raises
    ConfigError or InputError."""

    def __init__(
        self, scenario: Scenario, words: Words, scale: float, own: UserOrder | None, check: str
    ) -> None:
        setup = prepare(scenario)
        self._own = own
        self._aging = aging_lengths(setup)
        self._check = check
        order = None if own is None else own.make(setup.streams)
        self.scheduler = make_scheduler(setup, order)
        self.mock = Mock(words)
        self.known = Known(
            setup.profile.model.name
            if hasattr(setup.profile.model, "name")
            else setup.profile.name,
            setup.settings.max_model_len,
            scenario,
            words,
            self.mock,
            lengths_of(setup.workload),
        )
        self._setup = replace(setup, workload=Workload.of([], HEADER))
        self._clock = Clock(scale)
        self.driver = LiveDriver(self._now)
        self.lateness = Lateness()

    def _now(self) -> int:
        return self._clock()

    def run(
        self, out: Path, tell: Callable[[Happened], None], more: Callable[[], dict[str, Any]]
    ) -> Recording:
        """Serve and record to `out`, an empty folder. `more`: what the door adds to run.json."""
        setup, known, scheduler = self._setup, self.known, self.scheduler
        recording.begin(out, setup.scenario)
        size = setup.settings.prefix_block or setup.settings.block_size
        system = setup.system

        def keys(turn: Turn) -> tuple[int | str, ...]:
            if not system.shares_prefixes:
                return ()
            return keys_from_tokens(list(known.prompts[turn.request_id]), size)

        def names(arrival: Arrival) -> BlockNames | None:
            if not system.finds_by_name:
                return None
            turn = arrival.turn
            reply = self.mock.tokens(int(turn.request_id[1:]), turn.output_tokens)
            tokens = list(known.prompts[turn.request_id] + array("q", reply))
            return TokenNames(tokens, setup.settings.block_size)

        with (
            (out / JOURNAL).open("w", encoding="utf-8") as journal,
            Tap(out, tell, aging=self._aging, header=HEADER) as tap,
        ):

            def note(row: tuple[Any, ...]) -> None:
                fields = dict(zip(SCHEMAS["requests"].names, row, strict=True))
                journal.write(json.dumps(fields, separators=(",", ":")) + "\n")
                journal.flush()

            tap.on_row = note
            env = SimClock()
            bell = Bell(env)
            engine = make_engine(
                setup,
                scheduler,
                tap,
                self._check,
                watch=lambda _: tap.tell(),
                env=env,
                driver=self.driver,
                pushed=bell.pushed,
                keys=keys,
                names=names,
            )
            self.driver.on_leave = engine.leave
            known.gauges = lambda: gauges(scheduler, engine.link.in_flight)
            with calm_collector():
                run_paced(engine, self.driver, bell, self._clock, self.lateness)
            tap.tell()
            recorded = close(setup, scheduler, engine, tap, self._own)
        summary = recorded.summary
        summary.update(more())
        summary["door"]["lateness_us"] = late = {
            "events": self.lateness.count,
            "p50": self.lateness.percentile_us(0.5),
            "p99": self.lateness.percentile_us(0.99),
            "max": self.lateness.max_us,
        }
        summary["door"]["scale"] = self._clock.scale
        if late["p99"] > LATE_US:
            summary["warnings"].append(
                f"served late: 1 % of events came {late['p99'] / 1000:.1f} ms and more after their time:"
                " this host was too slow for the scale"
            )
        summary["workload"]["drawn"] = "machine"
        recording.write_summary(out, summary)
        return recorded
