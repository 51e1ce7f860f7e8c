"""A plan while it is being made, and the shape of prefill steps."""

from __future__ import annotations

from policy.plan import Batch, Copy, Plan, PreemptionMode
from policy.settings import Settings


class Draft:
    """Collects commands; `finish` freezes them. Copies to the host come before those to the
    device, because the latter may fill what the former vacate."""

    __slots__ = (
        "cancel",
        "overlap_cost",
        "preempt",
        "prefill",
        "reject",
        "to_device",
        "to_host",
        "wait_cost",
        "wait_for",
    )

    def __init__(self) -> None:
        self.prefill: list[tuple[str, int]] = []
        self.preempt: list[tuple[str, PreemptionMode]] = []
        self.to_host: list[Copy] = []
        self.to_device: list[Copy] = []
        self.wait_for: list[int] = []
        self.cancel: list[int] = []
        self.reject: list[tuple[str, str]] = []
        self.wait_cost: int | None = None
        self.overlap_cost: int | None = None

    def add_store(self, copy: Copy | None, *, waited: bool) -> None:
        """A copy to the host, if there was anything to send."""
        if copy is not None:
            self.to_host.append(copy)
            if waited:
                self.wait_for.append(copy.copy_id)

    def add_load(self, copy: Copy, *, waited: bool) -> None:
        """A copy to the device."""
        self.to_device.append(copy)
        if waited:
            self.wait_for.append(copy.copy_id)

    @property
    def acts(self) -> bool:
        """Something in it happens once, so the next plan may differ."""
        return bool(self.to_host or self.to_device or self.preempt or self.reject or self.cancel)

    def finish(self, batch: Batch | None, waiting_on: tuple[str, ...] = ()) -> Plan:
        """The frozen plan."""
        return Plan(
            batch=batch,
            prefill=tuple(self.prefill),
            preempt=tuple(self.preempt),
            copies=(*self.to_host, *self.to_device),
            wait_for=tuple(self.wait_for),
            cancel=tuple(self.cancel),
            reject=tuple(self.reject),
            waiting_on=waiting_on,
            wait_cost=self.wait_cost,
            overlap_cost=self.overlap_cost,
        )


class PrefillShape:
    """vLLM 0.3.3's prefill-only step: prompts padded to the longest, within a token budget.

    Source: `Scheduler._schedule` of the release (`max_num_batched_tokens`, `max_paddings`).
    """

    __slots__ = ("_count", "_longest", "_settings", "_total")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = 0
        self._longest = 0
        self._total = 0

    def admits(self, tokens: int, *, alone_at_any_length: bool = False) -> bool:
        """Add a prompt of `tokens` if the step still fits; whether it did.

        `alone_at_any_length`: a context that grew past the budget may still run by itself.
        """
        count = self._count + 1
        longest = max(self._longest, tokens)
        padded = count * longest
        fits = (
            padded <= self._settings.max_num_batched_tokens
            and padded - self._total - tokens <= self._settings.max_paddings
        )
        if not fits and not (alone_at_any_length and not self._count):
            return False
        self._count, self._longest, self._total = count, longest, self._total + tokens
        return True
