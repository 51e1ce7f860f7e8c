"""The largest host copy gives way first."""

from __future__ import annotations

from policy.choices.host_eviction import HostEviction
from policy.views import RequestView


class Largest(HostEviction):
    """See policy.choices.host_eviction."""

    name = "largest"

    def key(self, owner: RequestView) -> tuple[int | float, ...]:
        return (owner.host_blocks,)
