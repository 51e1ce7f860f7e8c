"""The release's scheduler with its native offloading connector (see vllm_v1_release)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from policy.settings import Settings
from policy.systems import SwapOptions
from tests.helpers.vllm_v1_release import ReleaseDriver


class Connector:
    """The connector as the release's `OffloadingConnector` wires it up: it hands everything on."""

    requires_kv_delivery = False
    supports_divergent_local_hybrid_hits = False

    def __init__(self, inner: Any, arrivals: dict[str, Any]) -> None:
        self.inner = inner
        self.arrivals = arrivals
        self.on_new_request = inner.on_new_request
        self.update_state_after_alloc = inner.update_state_after_alloc
        self.update_connector_output = inner.update_connector_output

    def bind_kv_cache_manager(self, manager: object) -> None:
        """Needed by models with several kinds of layers."""

    def has_pending_block_frees(self) -> bool:
        """No."""
        return False

    def get_loaded_kv_cache_group_ids(self, request: object) -> tuple[int, ...]:
        """All layers are alike."""
        return (0,)

    def get_num_new_matched_tokens(self, request: Any, found: int) -> Any:
        """Tokens to load, or None; and whether without waiting."""
        return self.inner.get_num_new_matched_tokens(request, found, max_num_new_tokens=None)

    def build_connector_meta(self, output: Any) -> Any:
        """What a step copies. Those who ended come in order (trap L2: the release's is a set's)."""
        ended = sorted(output.finished_req_ids, key=lambda name: (self.arrivals[name], name))
        output.finished_req_ids = ended
        return self.inner.build_connector_meta(output)

    def request_finished(self, request: Any, blocks: object) -> Any:
        """Nothing is held back."""
        return self.inner.request_finished(request)

    def get_kv_connector_stats(self) -> None:
        """None."""

    def take_events(self) -> tuple[()]:
        """None."""
        return ()


class OffloadDriver(ReleaseDriver):
    """Adds to a decision: loads, stores, names that gave way, and jobs waited for. Jobs are numbered as
    the release does."""

    def __init__(
        self,
        vllm: SimpleNamespace,
        settings: Settings,
        options: SwapOptions,
        *,
        by_priority: bool,
    ) -> None:
        self.options = options
        self.arrivals: dict[str, tuple[int, str]] = {}
        self.evicted: list[Any] = []
        module = vllm.offloading
        module._group_kv_bytes_per_block = lambda _group: 0
        vllm.connectors.KVConnectorFactory.create_connector = staticmethod(
            lambda config, role, kv_cache_config: self._connector(settings, config, kv_cache_config)
        )
        super().__init__(vllm, settings, by_priority=by_priority, caches=options.prefix_sharing)

    def _connector(self, settings: Settings, config: Any, cache: Any) -> Connector:
        per_chunk = settings.offload_chunk_blocks
        manager = self.vllm.tier.CPUOffloadingManager(
            settings.host_blocks // per_chunk, self.options.host_eviction
        )
        original = manager.prepare_store

        def prepare_store(keys: Any, context: Any) -> Any:
            found = original(keys, context)
            if found is not None:
                self.evicted += [key[:-4] for key in found.evicted_keys]
            return found

        manager.prepare_store = prepare_store
        spec = SimpleNamespace(
            config=SimpleNamespace(
                groups=(
                    SimpleNamespace(
                        group_id=0,
                        tokens_per_block=settings.block_size,
                        sliding_window_size_in_chunks=None,
                    ),
                )
            ),
            blocks_per_chunk=per_chunk,
            tokens_per_block=(settings.block_size,),
            tokens_per_hash=settings.block_size,
            offload_prompt_only=self.options.offload == "prompt",
            extra_config={},
            kv_events_config=None,
            get_manager=lambda: manager,
        )
        inner = self.vllm.offloading.OffloadingConnectorScheduler(spec, config, cache)
        self.jobs = inner._jobs
        return Connector(inner, self.arrivals)

    def config(self, settings: Settings, blocks: int, **named: Any) -> SimpleNamespace:
        """With a connector."""
        config = super().config(settings, blocks, **named)
        config.kv_transfer_config = SimpleNamespace(
            kv_load_failure_policy="recompute", is_kv_consumer=True, is_kv_producer=True
        )
        config.cache_config.prefix_cache_retention_interval = None
        config.parallel_config.world_size = 1
        return config

    def add(self, request_id: str, arrival: int, *rest: Any) -> None:
        """See ReleaseDriver."""
        self.arrivals[request_id] = (arrival, request_id)
        super().add(request_id, arrival, *rest)

    def schedule(self) -> dict[str, Any]:
        """See ReleaseDriver."""
        self.evicted = []
        line = super().schedule()
        meta = self.output.kv_connector_metadata
        for key, jobs in (("loads", meta.load_jobs), ("stores", meta.store_jobs)):
            line[key] = [
                (
                    number,
                    job.req_id,
                    sorted(name[:-4] for name in self.jobs[number].keys),
                    len((job.dst_spec if key == "loads" else job.src_spec).block_ids),
                )
                for number, job in jobs.items()
            ]
        line["evicted"] = self.evicted
        line["flushed"] = sorted(meta.jobs_to_flush)
        line["holding"] = [request.request_id for request in self.scheduler.kv_holding_waiting]
        return line

    def finish_step(self, sampled: dict[str, int], ended: tuple[int, ...] = ()) -> None:
        """Copies in the order in which they ended."""
        meta = self.vllm.transfers.OffloadingWorkerMetadata(completed_jobs=dict.fromkeys(ended, 1))
        loaded = [self.jobs[number].req_id for number in ended if not self.jobs[number].is_store]
        self.transfers = SimpleNamespace(
            failed_recving=None,
            invalid_block_ids=None,
            finished_recving=loaded,
            finished_sending=(),
            kv_connector_stats=None,
            kv_connector_worker_meta=meta,
        )
        super().finish_step(sampled)
