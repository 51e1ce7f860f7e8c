"""The real machine behind the door: the model's own words, sampled as each client asks."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from door.driver import LiveDriver
from door.front import Known
from door.live import HEADER, gauges
from door.tap import Happened, Tap
from door.ticket import Wish
from door.words import Bytes, Folder, Words
from policy.errors import ConfigError
from realrun.engine import Live
from realrun.journal import Journal
from realrun.model import LoadedModel
from realrun.sampling import SamplingParams
from realrun.serve import (
    Machine,
    Options,
    computing,
    facts,
    link_rates,
    make_engine,
    prepare,
    sampler_of,
    sum_up,
)
from runs import recording
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import aging_lengths, checker
from runs.user_order import UserOrder
from traces.workload import Turn, Workload

_SEED = (1 << 63) - 1
_GREEDY = SamplingParams()


class Asked:
    """What clients sent, as prompts."""

    def __init__(self, prompts: dict[str, array[int]]) -> None:
        self._prompts = prompts

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:  # noqa: ARG002
        """See Prompts. A client sends its whole history itself."""
        return list(self._prompts[turn.request_id])


class LiveJournal(Journal):
    """Also tells who waits the last token of a reply."""

    def __init__(self, folder: Path, tap: Tap, *, with_replies: bool) -> None:
        super().__init__(folder, with_replies=with_replies)
        self._tap = tap

    def ended(self, row: tuple[Any, ...], output: list[int]) -> None:
        """See Journal."""
        super().ended(row, output)
        self._tap.output(row[0], output)


def draws_of(
    wishes: dict[str, Wish], seed: int
) -> Callable[[str, int], tuple[SamplingParams, str, int]]:
    """Every row as its client asks. A client's own seed draws the same for the same prompt, whatever the
    request is called; without one the draw hangs on the request."""

    def row(name: str, at: int) -> tuple[SamplingParams, str, int]:
        wish = wishes.get(name)
        if wish is None or wish.temperature == 0:
            return _GREEDY, name, at
        own = wish.seed is not None
        number = (wish.seed or 0) & _SEED if own else seed
        params = SamplingParams(wish.temperature, wish.top_p, wish.top_k, number)
        return params, "asked" if own else name, at

    return row


class Real:
    """Prepared when made; `run` serves in the calling thread until the driver is closed. `words`: in place
    of the model's tokenizer. Raises ConfigError or InputError."""

    def __init__(
        self,
        scenario: Scenario,
        options: Options,
        words: Words | None,
        own: UserOrder | None,
        check: str,
        *,
        keep_replies: bool,
        model: LoadedModel | None = None,
    ) -> None:
        self._machine = machine = prepare(scenario, options, order=own, model=model)
        self._own = own
        self._check = check
        self._keep_replies = keep_replies
        self._aging = aging_lengths(machine.serving)
        generation, eos = machine.model.generation, frozenset(machine.model.config.eos_ids)
        words = words or words_of(machine)
        self.known = Known(
            options.model,
            machine.serving.settings.max_model_len,
            scenario,
            words,
            None,
            eos=eos,
            temperature=generation.temperature or 1.0,
            top_p=generation.top_p,
            top_k=generation.top_k,
        )
        machine.serving = replace(machine.serving, workload=Workload.of([], HEADER))
        self._begin = time.perf_counter_ns()
        self.driver = LiveDriver(self._now)

    def _now(self) -> int:
        return time.perf_counter_ns() - self._begin

    def run(
        self, out: Path, tell: Callable[[Happened], None], more: Callable[[], dict[str, Any]]
    ) -> Recording:
        """Serve and record to `out`, an empty folder. `more`: what the door adds to run.json."""
        try:
            recording.begin(out, self._machine.serving.scenario)
            with computing():
                return self._serve(out, tell, more)
        finally:
            self._machine.close()

    def _serve(
        self, out: Path, tell: Callable[[Happened], None], more: Callable[[], dict[str, Any]]
    ) -> Recording:
        machine, known, driver = self._machine, self.known, self.driver
        scenario = machine.serving.scenario
        rates = link_rates(machine.device)

        def ends(name: str, produced: int, token: int) -> bool:
            end = known.ends.get(name)
            return end is not None and end(produced, token)

        live = Live(
            driver,
            Asked(known.prompts),
            sampler_of(draws_of(known.wishes, scenario.seed)),
            ends,
            driver.wait,
        )
        with Tap(out, tell, aging=self._aging, header=HEADER) as tap:
            journal = LiveJournal(out, tap, with_replies=self._keep_replies)
            engine = make_engine(machine, tap, journal, "off", live=live, clock=self._now)
            engine.watch(tap.checking(checker(self._check)))
            driver.on_leave = engine.leave
            known.gauges = lambda: gauges(machine.scheduler, engine.swap.in_flight)

            def token_of(name: str) -> int | None:
                served = engine.served.get(name)
                return None if served is None else served.tokens[-1]

            tap.token_of = token_of
            try:
                engine.run()
                tap.tell()
            finally:
                engine.swap.close()
                machine.has_copies_left = bool(engine.swap.in_flight)
                journal.close()
            recorded = tap.close(facts(machine, engine, rates))
        recorded.summary.update(more())
        sum_up(machine, recorded, self._own)
        recording.write_summary(out, recorded.summary)
        return recorded


def words_of(machine: Machine) -> Words:
    """The model's own tokenizer and template; bytes where it has none and its vocabulary is theirs."""
    model = machine.model
    if model.tokenizer is not None:
        return Folder(model.tokenizer, model.chat, model.tokenizer.size, machine.options.model)
    if model.config.vocab < Bytes.vocab:
        raise ConfigError(
            f"--model {machine.options.model}: has no tokenizer, and {model.config.vocab} tokens are too"
            " few for bytes; name one with --tokenizer"
        )
    return Bytes()
