"""What steps and copies cost, as integers: coefficients in 1/1024 ns, one rounding per step or job."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from calibrate.profile import ONE, Corrections, Curve, Profile, Quantity, StepCost, TokenCost
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


class StepCosts(Protocol):
    """What a step costs, under whichever form a profile has. `uneven`: longest * B - K."""

    #: Whether the longest context of a batch matters.
    asks_longest: bool

    def decode_line(self, batch: int, uneven: int = 0) -> tuple[int, int]:
        """A decode step of so many as a line over its KV tokens: (at none, per token), both in
        2**-DECODE_SHIFT ns. `uneven` stays while a batch stands: every context grows."""

    def decode_ns(self, batch: int, kv_tokens: int, uneven: int = 0) -> int:
        """A step of `batch` decoding requests that read `kv_tokens` tokens of KV."""

    def mixed_ns(
        self, batch: int, kv_tokens: int, uneven: int, lengths: list[tuple[int, int]]
    ) -> int:
        """A step in which `batch` requests decode beside prompts of (new tokens, tokens there)."""

    def prefill_ns(self, lengths: list[tuple[int, int]]) -> int:
        """A step that prefills prompts of (new tokens, tokens already there)."""


def step_costs(profile: Profile) -> StepCosts:
    """By the form of a profile."""
    if isinstance(profile.step, TokenCost):
        return TokenCosts(profile.step)
    return LinearCosts(profile.step, profile.corrections or Corrections())


class TokenCosts:
    """`calibrate.profile.TokenCost`: what depends on tokens or on the batch alone is a list, expanded
    as far as steps have gone."""

    def __init__(self, step: TokenCost) -> None:
        self._step = step
        self._table: list[int] = []  # by all new tokens, with the host's
        self._decode = _optional(step.decode)
        self._output = _optional(step.per_output)
        self._own = self._output + _optional(step.sequence_decode)
        self._kv = _fixed(step.kv_decode)
        self._uneven = _optional(step.uneven_decode)
        self._longest = _optional(step.longest_decode)
        self._own_mixed = self._output + _optional(step.sequence_mixed)
        self._kv_mixed = _fixed(step.kv_mixed)
        self._uneven_mixed = _optional(step.uneven_mixed)
        self._longest_mixed = _optional(step.longest_mixed)
        self._square = _fixed(step.square)
        self._past = _optional(step.past)
        self._chunk = _optional(step.chunk) + self._output
        self.asks_longest = any(
            (self._uneven, self._longest, self._uneven_mixed, self._longest_mixed)
        )
        self._expand(8192)

    def decode_line(self, batch: int, uneven: int = 0) -> tuple[int, int]:
        """See StepCosts. The longest context is (K + uneven) / B."""
        if batch >= len(self._table):
            self._expand(batch)
        at_none = self._table[batch] + self._decode + self._own * batch + self._uneven * uneven
        longest = (self._longest << _SHIFT) // (batch or 1)
        return (at_none << _SHIFT) + longest * uneven, (self._kv << _SHIFT) + longest

    def decode_ns(self, batch: int, kv_tokens: int, uneven: int = 0) -> int:
        """See StepCosts."""
        at_none, per_token = self.decode_line(batch, uneven)
        return (at_none + per_token * kv_tokens) >> DECODE_SHIFT

    def mixed_ns(
        self, batch: int, kv_tokens: int, uneven: int, lengths: list[tuple[int, int]]
    ) -> int:
        """See StepCosts."""
        tokens, pasts, squares = batch, 0, 0
        for new, past in lengths:
            tokens += new
            pasts += past
            squares += new * (2 * past + new)
        if tokens >= len(self._table):
            self._expand(tokens)
        found = self._table[tokens] + self._chunk * len(lengths) + self._past * pasts
        if batch:
            found += self._own_mixed * batch + self._kv_mixed * kv_tokens
            found += self._uneven_mixed * uneven
            found += self._longest_mixed * ((kv_tokens + uneven) // batch)
        return 2 * found + self._square * squares >> _SHIFT + 1

    def prefill_ns(self, lengths: list[tuple[int, int]]) -> int:
        """See StepCosts."""
        return self.mixed_ns(0, 0, 0, lengths)

    def _expand(self, upto: int) -> None:
        base, each = _fixed(self._step.host_base), _fixed(self._step.host_per_token)
        table = self._step.table(max(upto, 2 * len(self._table)), _SHIFT)
        self._table = [ns + base + each * tokens for tokens, ns in enumerate(table)]


class LinearCosts:
    """`calibrate.profile.StepCost`."""

    KNEE = 64

    def __init__(self, step: StepCost, corrections: Corrections) -> None:
        self._decode, self._prefill = corrections.decode, corrections.prefill
        self.base = _fixed(step.base)
        self.per_kv_token = _fixed(step.per_kv_token)
        self._per_sequence = _fixed(step.per_sequence)
        self._beyond = _fixed(step.per_sequence_beyond)
        self._per_prefill_token = _fixed(step.per_prefill_token)
        self._per_square = _fixed(step.per_prefill_square)
        #: Times longest * B - K. That does not change while a batch stands: every context grows.
        self.per_uneven_token = _optional(step.per_uneven_token)
        self.asks_longest = bool(self.per_uneven_token)
        self._per_further_prompt = _optional(step.per_further_prompt)
        self._further = corrections.further_prompts

    def decode_line(self, batch: int, uneven: int = 0) -> tuple[int, int]:
        """See StepCosts."""
        fixed = self.base + self._per_sequence * batch + self._beyond * max(0, batch - self.KNEE)
        factor = _factor(self._decode, batch)
        return factor * (fixed + self.per_uneven_token * uneven), factor * self.per_kv_token

    def decode_ns(self, batch: int, kv_tokens: int, uneven: int = 0) -> int:
        """See StepCosts."""
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
        """See StepCosts."""
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
        #: Smaller pieces to the device go another way.
        self._small = self._small_setup = self._small_per_byte = 0
        if transfer.small_piece and transfer.small_setup and transfer.small_rate:
            self._small = round(transfer.small_piece.value)
            self._small_setup = _fixed(transfer.small_setup)
            self._small_per_byte = round((1 << 40) * 1e9 / transfer.small_rate.value)

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
        if copy.direction is Direction.TO_DEVICE and size < self._small * pieces:
            setup = pieces * self._small_setup >> _SHIFT
            wire = size * self._small_per_byte >> 40
        if self.submission == "batched":
            # the driver begins with the first descriptor while it takes the others
            submit = self.per_job_ns + ((self._per_call + pieces * self._per_descriptor) >> _SHIFT)
            first = self.per_job_ns + ((self._per_call + self._per_descriptor) >> _SHIFT)
            return CopyCost(submit, first, setup + wire, (setup + wire) // pieces, 1, size)
        submit = self.per_job_ns + (pieces * self._per_call >> _SHIFT)
        first = self.per_job_ns + (self._per_call >> _SHIFT)
        return CopyCost(submit, first, setup + wire, (setup + wire) // pieces, pieces, size)

    def stalls_after(self, cost: CopyCost) -> int:
        """How long before the job's end on the link its last calls can be queued: a stream takes
        `queue_depth` calls and then blocks the submitter (trap A10)."""
        return self.queue_depth * cost.last_piece_ns if cost.calls > self.queue_depth else 0


def _share(part: Quantity, whole: Quantity) -> int:
    return max(1, round(part.value / whole.value * _ONE))
