"""Named routers: each a few lines of data over scorers and filters. docs/fleet.md has their sources.

A block is the KV block of the replicas, 16 tokens unless a scenario says otherwise.
"""

from __future__ import annotations

from policy.errors import ConfigError
from policy.routing import filters, scorers
from policy.routing.base import Recipe, Scored
from policy.routing.books import IndexSpec
from policy.views import Draw

_FEWEST = ((scorers.fewest_outstanding, 1.0),)
#: llm-d's approximate index: 31,250 blocks of 16 a server.
_LLM_D_INDEX = IndexSpec(capacity=31_250)
_SECONDS = 1_000_000_000

_RECIPES = (
    Recipe(
        "round-robin",
        "one after the other, whatever they have to do",
        scorers=((scorers.next_in_turn, 1.0),),
    ),
    Recipe("random", "drawn for each request", draws_ties=True, is_fixed=True),
    Recipe("least-outstanding", "whoever has fewest of the router's own requests", scorers=_FEWEST),
    Recipe(
        "power-of-two",
        "of two drawn, whoever has fewer of the router's own requests",
        filters=(filters.two_drawn,),
        scorers=_FEWEST,
    ),
    Recipe(
        "session-hash",
        "a session's replica is its hash, for good",
        scorers=((scorers.by_session, 1.0),),
        is_fixed=True,
    ),
    Recipe(
        "sticky-least",
        "a session stays where it was; a new one goes to whoever has fewest requests",
        filters=(filters.home,),
        scorers=_FEWEST,
    ),
    Recipe(
        "llm-d-default",
        "llm-d's default chart: shortest queue x 2, free KV x 2, prefix sent before x 3",
        scorers=(
            (scorers.llm_d_queue, 2.0),
            (scorers.llm_d_kv, 2.0),
            (scorers.llm_d_prefix, 3.0),
        ),
        draws_ties=True,
        remembers=_LLM_D_INDEX,
        reads_signals=True,
    ),
    Recipe(
        "llm-d-affinity",
        "llm-d's affinity filter: who has 80 % of the prompt, unless 18 s slower; then least tokens",
        filters=(filters.PrefixAffinity(),),
        scorers=((scorers.TokenLoad(), 1.0),),
        draws_ties=True,
        remembers=_LLM_D_INDEX,
    ),
    Recipe(
        "sglang-cache-aware",
        "SGLang's: best match above 30 %, unless queues differ by more than 64 and by half",
        filters=(filters.CacheAware(),),
        scorers=_FEWEST,
        remembers=IndexSpec(),
    ),
    Recipe(
        "dynamo-kv",
        "Dynamo's cost of blocks to prefill and to decode, by its own index of 120 s",
        scorers=((scorers.DynamoCost(), 1.0),),
        remembers=IndexSpec(ttl_ns=120 * _SECONDS),
    ),
    Recipe(
        "production-stack-prefix",
        "vLLM production-stack's prefixaware: any of the longest matches of 128 characters each",
        filters=(filters.longest_match,),
        draws_ties=True,
        remembers=IndexSpec(blocks_each=2),
    ),
    Recipe(
        "aibrix-prefix",
        "AIBrix' prefix-cache: the longest match that is not overloaded, unless loads differ by 8",
        filters=(filters.Aibrix(),),
        scorers=_FEWEST,
        remembers=IndexSpec(),
    ),
)

ROUTERS: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


def make_router(name: str, draw: Draw) -> Scored:
    """The router called `name`. Raises ConfigError naming the choices."""
    if name not in ROUTERS:
        raise ConfigError(f"router: {name!r} is not one of {', '.join(ROUTERS)}")
    return Scored(ROUTERS[name], draw)
