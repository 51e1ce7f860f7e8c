"""What steps and copies cost, as integers: coefficients in 1/1024 ns, one rounding per step or job."""

from __future__ import annotations

from typing import NamedTuple

from calibrate.profile import ONE, Corrections, Curve, Profile, Quantity
from policy.plan import Copy, Direction
from policy.systems import System

_SHIFT = 10
_ONE = 1 << _SHIFT
#: Coefficients and factors have `_SHIFT` bits behind the point each.
DECODE_SHIFT = 2 * _SHIFT


def _fixed(quantity: Quantity) -> int:
    return round(quantity.value * _ONE)


def _optional(quantity: Quantity | None) -> int:
    return 0 if quantity is None else _fixed(quantity)


def _factor(curve: Curve | None, value: int) -> int:
    return ONE if curve is None else curve.at(value)


class StepCosts:
    """The iteration model of `calibrate.profile.StepCost`."""

    KNEE = 64

    def __init__(self, profile: Profile) -> None:
        step = profile.step
        corrections = profile.corrections or Corrections()
        self._decode, self._prefill = corrections.decode, corrections.prefill
        self.base = _fixed(step.base)
        self.per_kv_token = _fixed(step.per_kv_token)
        self._per_sequence = _fixed(step.per_sequence)
        self._beyond = _fixed(step.per_sequence_beyond)
        self._per_prefill_token = _fixed(step.per_prefill_token)
        self._per_square = _fixed(step.per_prefill_square)
        #: Times longest * B - K. That does not change while a batch stands: every context grows.
        self.per_uneven_token = _optional(step.per_uneven_token)
        self._per_further_prompt = _optional(step.per_further_prompt)
        self._further = corrections.further_prompts

    def decode_line(self, batch: int, uneven: int = 0) -> tuple[int, int]:
        """A decode step of so many as a line over its KV tokens: (at none, per token), both in
        2**-DECODE_SHIFT ns. `uneven`: longest * B - K, which stays while a batch stands."""
        fixed = self.base + self._per_sequence * batch + self._beyond * max(0, batch - self.KNEE)
        factor = _factor(self._decode, batch)
        return factor * (fixed + self.per_uneven_token * uneven), factor * self.per_kv_token

    def decode_ns(self, batch: int, kv_tokens: int, uneven: int = 0) -> int:
        """A step of `batch` decoding requests that read `kv_tokens` tokens of KV."""
        at_none, per_token = self.decode_line(batch, uneven)
        return (at_none + per_token * kv_tokens) >> DECODE_SHIFT

    def mixed_ns(
        self, batch: int, kv_tokens: int, uneven: int, lengths: list[tuple[int, int]]
    ) -> int:
        """A step in which `batch` requests decode and prompts, or chunks of them, are prefilled: the
        terms of both and the base once, as `calibrate.models` fits mixed points. Curves belong to
        steps of one kind and do not enter."""
        squares = sum(new * (2 * past + new) for new, past in lengths)
        linear = self.base + self.per_kv_token * kv_tokens + self._per_sequence * batch
        linear += self._beyond * max(0, batch - self.KNEE) + self.per_uneven_token * uneven
        linear += self._per_prefill_token * sum(new for new, _ in lengths)
        linear += self._per_further_prompt * (len(lengths) - 1)
        return 2 * linear + self._per_square * squares >> _SHIFT + 1

    def prefill_ns(self, lengths: list[tuple[int, int]]) -> int:
        """A step that prefills prompts of (new tokens, tokens already there)."""
        tokens = 0
        squares = 0  # twice the sum of L * (past + L / 2)
        for new, past in lengths:
            tokens += new
            squares += new * (2 * past + new)
        linear = self.base + self._per_prefill_token * tokens
        prompts = len(lengths)
        further = self._per_further_prompt * _factor(self._further, prompts) >> _SHIFT
        linear += further * (prompts - 1)
        cost = 2 * linear + self._per_square * squares
        return cost * _factor(self._prefill, tokens) >> 2 * _SHIFT + 1


class CopyCost(NamedTuple):
    """One job: nanoseconds in the dispatching thread and on the link, calls, bytes."""

    submit_ns: int
    first_call_ns: int  # after this the link can begin
    link_ns: int  # at the rate of a link busy one way
    last_piece_ns: int
    calls: int
    bytes: int


class CopyCosts:
    """A copy job under a system's layout and submission (hardware model: LogGP-like, README).

    `layer_major` splits every run into 2 * layers pieces, K and V of each layer; `block_major`
    moves whole blocks. `per_block` calls once per block and piece, `merged` once per run and piece,
    `batched` once per job with a descriptor per run and piece, `gather` packs first and calls once.
    """

    def __init__(self, profile: Profile, system: System, block_size: int) -> None:
        transfer = profile.transfer
        self.block_bytes = profile.block_bytes(block_size)
        self.pieces_per_run = (
            2 * profile.model.layers if system.transport.layout == "layer_major" else 1
        )
        self.submission = system.transport.submission
        growth = 1 + transfer.lock_growth.value * (system.transport.threads - 1)
        self.per_job_ns = round(transfer.per_job.value)
        self._per_call = round(transfer.per_call.value * growth * _ONE)
        self._per_descriptor = round(transfer.per_descriptor.value * growth * _ONE)
        self._piece_setup = _fixed(transfer.piece_setup)
        self._gather_launch = round(transfer.gather_launch.value)
        self._gather_per_byte = round((1 << 40) * 1e9 / transfer.gather_bandwidth.value)
        self.queue_depth = round(transfer.queue_depth.value)
        self._per_byte = {
            Direction.TO_DEVICE: round((1 << 40) * 1e9 / transfer.to_device.value),
            Direction.TO_HOST: round((1 << 40) * 1e9 / transfer.to_host.value),
        }
        #: Progress per ns while the other direction is busy too, in 1/1024.
        self.duplex_rate = {
            Direction.TO_DEVICE: _share(transfer.to_device_duplex, transfer.to_device),
            Direction.TO_HOST: _share(transfer.to_host_duplex, transfer.to_host),
        }
        self.interference = {
            Direction.TO_DEVICE: _fixed(transfer.interference_to_device),
            Direction.TO_HOST: _fixed(transfer.interference_to_host),
        }
        self._curve = None if profile.corrections is None else profile.corrections.copy_piece

    def cost(self, copy: Copy) -> CopyCost:
        found = self._by_formula(copy)
        if self._curve is None:
            return found
        factor = self._curve.at(found.bytes // self.pieces(copy))
        times = [time * factor >> _SHIFT for time in found[:4]]
        return CopyCost(times[0], times[1], times[2], times[3], found.calls, found.bytes)

    def pieces(self, copy: Copy) -> int:
        """What moves as one: a block or a run, of each layer and side under `layer_major`."""
        per_block = self.submission == "per_block"
        return (copy.num_blocks if per_block else len(copy.runs)) * self.pieces_per_run

    def _by_formula(self, copy: Copy) -> CopyCost:
        size = copy.num_blocks * self.block_bytes
        wire = size * self._per_byte[copy.direction] >> 40
        if self.submission == "gather":
            pack = self._gather_launch + (size * self._gather_per_byte >> 40)
            call = self._per_call >> _SHIFT
            setup = self._piece_setup >> _SHIFT
            submit = self.per_job_ns + self._gather_launch + call
            return CopyCost(submit, submit, pack + setup + wire, wire, 2, size)
        pieces = self.pieces(copy)
        setup = pieces * self._piece_setup >> _SHIFT
        if self.submission == "batched":
            submit = self.per_job_ns + ((self._per_call + pieces * self._per_descriptor) >> _SHIFT)
            return CopyCost(submit, submit, setup + wire, 0, 1, size)
        submit = self.per_job_ns + (pieces * self._per_call >> _SHIFT)
        first = self.per_job_ns + (self._per_call >> _SHIFT)
        return CopyCost(submit, first, setup + wire, (setup + wire) // pieces, pieces, size)

    def stalls_after(self, cost: CopyCost) -> int:
        """How long before the job's end on the link its last calls can be queued: a stream takes
        `queue_depth` calls and then blocks the submitter (trap A10)."""
        return self.queue_depth * cost.last_piece_ns if cost.calls > self.queue_depth else 0


def _share(part: Quantity, whole: Quantity) -> int:
    return max(1, round(part.value / whole.value * _ONE))
