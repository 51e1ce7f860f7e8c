"""A device whose streams run in any order that is legal, and at the worst moment.

Nothing moves when it is put. Work waits on its stream until somebody asks for a mark, or until the
test says `run` or `step`. Inside a stream things happen in order; between streams in an order that a
seed chooses, or the worst one that the test names (`last`); behind a wait only after its mark. A
copy reads its source at one moment and writes its target at a later one, and other streams may come
in between. The pieces of a batched call go in any order; they are moved by address, as the driver
would, and a source that may be read in ANY order is read when the call is made, before the stream's
waits. A kernel of the compute stream lands late as well.

Copies by `copy` keep their tensors alive until they are done, as torch's allocators do for memory of
their own; the others are addresses, and whose memory that is nobody knows.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import repeat
from typing import Any

import torch

from realrun import batchcopy, driver, eachcopy
from realrun.pieces import Pieces

#: A piece of work: it goes on at each `next`, and other streams may come in between.
Work = Iterator[None]
#: CUmemcpySrcAccessOrder.
STREAM, DURING_API_CALL, ANY = 1, 2, 3
INVALID_VALUE = 1
#: How long a thread that waits for the device bears with nothing happening at all.
PATIENCE_S = 10.0


class Stuck(AssertionError):
    """Somebody waits for a mark that can never be done."""


class FakeMark:
    """Done when its stream gets there."""

    def __init__(self, device: FakeDevice) -> None:
        self.done = False
        self._device = device

    def is_done(self) -> bool:
        with self._device.lock:
            self._device.asked()
            return self.done

    def synchronize(self) -> None:
        self._device.run_until(self)


class Stream:
    """Work in order. `name`: "compute", or "lane0" and so on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: deque[tuple[FakeMark | None, Work | None]] = deque()

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.queue)}>"

    @property
    def can_go_on(self) -> bool:
        if not self.queue:
            return False
        mark, work = self.queue[0]
        return mark is None or work is not None or mark.done


class FakeDevice:
    """A `Runtime`. Everything it does, it does while it holds `lock`.

    `depth`: so many pieces of work fit on a lane, and who puts more waits. `pooled_marks`: marks
    come out of a ring of so many, used again whether they are done or not (trap A11).
    """

    def __init__(
        self, seed: int = 0, *, depth: int | None = None, pooled_marks: int | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.lock = threading.RLock()
        self.compute_stream = Stream("compute")
        self.lanes: list[FakeLane] = []
        self.last: set[str] = set()  # streams that move only when no other can
        self.stalled: set[str] = set()  # streams that do not move
        self.goes_on_when_asked = True
        self.on_put: Callable[[FakeLane, str], None] = lambda _lane, _what: None
        self.blocked: list[str] = []  # threads that found a lane full
        self.num_marks = self.num_bytes = 0
        self.broken: str | None = None
        self.checked: list[str] = []
        self.refusals: dict[str, str] = {}  # submission -> why it cannot be had
        self.copy_code = 0  # what every copy call answers, if it is not success
        self.borders: list[int] = []  # no call may cross one
        self._depth = depth
        self._ring = None if pooled_marks is None else [FakeMark(self) for _ in range(pooled_marks)]
        self._changed = threading.Condition(self.lock)
        self.memcpy_batch = batchcopy.PROTOTYPE(self._memcpy_batch)
        self.memcpy = driver.COPY(self._memcpy)

    # ------------------------------------------------------------------ as a Runtime

    def why_not(self, submission: str) -> str | None:
        self.checked.append(submission)
        return self.refusals.get(submission)

    def lane(self) -> FakeLane:
        lane = FakeLane(self, len(self.lanes))
        self.lanes.append(lane)
        return lane

    def barrier(self) -> FakeMark:
        return self.record(self.compute_stream)

    # ------------------------------------------------------------------ putting

    def compute(self, kernel: Callable[[], Work | None]) -> None:
        """A kernel behind everything computed so far. One that yields takes its time."""

        def work() -> Work:
            going = kernel()
            if going is not None:
                yield from going

        self.put(self.compute_stream, work())

    def put(self, stream: Stream, work: Work) -> None:
        with self._changed:
            if self._depth is not None and len(stream.queue) >= self._depth:
                self.blocked.append(threading.current_thread().name)
                while len(stream.queue) >= self._depth:
                    self._advance_or_wait()
            stream.queue.append((None, work))
            self._changed.notify_all()

    def put_wait(self, stream: Stream, mark: FakeMark) -> None:
        with self._changed:
            stream.queue.append((mark, None))
            self._changed.notify_all()

    def record(self, stream: Stream) -> FakeMark:
        with self._changed:
            mark = (
                FakeMark(self)
                if self._ring is None
                else self._ring[self.num_marks % len(self._ring)]
            )
            self.num_marks += 1
            mark.done = False

            def work() -> Work:
                mark.done = True
                yield from ()

            stream.queue.append((mark, work()))
            self._changed.notify_all()
            return mark

    # ------------------------------------------------------------------ going on

    @property
    def streams(self) -> list[Stream]:
        return [self.compute_stream, *(lane.stream for lane in self.lanes)]

    def step(self) -> bool:
        """Let one stream go on by one moment; whether any could."""
        with self._changed:
            ready = [s for s in self.streams if s.can_go_on and s.name not in self.stalled]
            if not ready:
                return False
            first = [s for s in ready if s.name not in self.last]
            self._go_on(self.rng.choice(first or ready))
            self._changed.notify_all()
            return True

    def run(self) -> None:
        """Let everything happen that can."""
        while self.step():
            pass

    def asked(self) -> None:
        """Somebody looks whether a mark is done: some time has passed."""
        if self.broken is not None:
            raise RuntimeError(self.broken)
        if self.goes_on_when_asked:
            for _ in repeat(None, self.rng.randrange(4)):
                self.step()

    def run_until(self, mark: FakeMark) -> None:
        with self._changed:
            while not mark.done:
                if self.broken is not None:
                    raise RuntimeError(self.broken)
                self._advance_or_wait()

    def let_go(self) -> None:
        """What stalled moves again."""
        with self._changed:
            self.stalled.clear()
            self._changed.notify_all()

    def _advance_or_wait(self) -> None:
        if not self.step() and not self._changed.wait(PATIENCE_S):
            raise Stuck(f"nothing moves any more: {self.streams}")

    def _go_on(self, stream: Stream) -> None:
        _, work = stream.queue[0]
        if work is not None:
            try:
                with torch.inference_mode():
                    next(work)
            except StopIteration:
                pass
            else:
                return
        stream.queue.popleft()

    # ------------------------------------------------------------------ the driver's copies

    def _memcpy(self, target: int, source: int, size: int, handle: int) -> int:
        lane = self.lanes[handle - 1]
        try:
            lane._putting("copy")
        except BaseException as error:  # noqa: BLE001  # nothing may be raised through C
            lane.error = error
            return INVALID_VALUE
        if self.copy_code or self.crosses(target, size) or self.crosses(source, size):
            return self.copy_code or INVALID_VALUE
        self.put(lane.stream, self._one(target, source, size))
        return 0

    def crosses(self, address: int, size: int) -> bool:
        return any(address < border < address + size for border in self.borders)

    def _one(self, target: int, source: int, size: int) -> Work:
        yield
        data = ctypes.string_at(source, size)
        yield
        ctypes.memmove(target, data, size)
        self.num_bytes += size

    def _memcpy_batch(
        self,
        targets: int,
        sources: int,
        sizes: int,
        count: int,
        attributes: Any,
        first_piece: int,
        num_attributes: int,
        failed: Any,
        handle: int,
    ) -> int:
        order = attributes[0].srcAccessOrder
        if num_attributes != 1 or order not in (STREAM, DURING_API_CALL, ANY) or not handle:
            return INVALID_VALUE
        lane = self.lanes[handle - 1]
        pieces = list(
            zip(*(numbers(array, count) for array in (targets, sources, sizes)), strict=True)
        )
        for at, (target, source, size) in enumerate(pieces):
            if self.copy_code or self.crosses(target, size) or self.crosses(source, size):
                failed[0] = at
                return self.copy_code or INVALID_VALUE
        early = [
            None if order == STREAM else ctypes.string_at(source, size)
            for _, source, size in pieces
        ]
        self.put(lane.stream, self._all_at_once(pieces, early))
        return 0

    def _all_at_once(
        self,
        pieces: list[tuple[int, ...]],
        read: list[bytes | None],
    ) -> Work:
        """Reads and writes of all pieces in any order, each read before its write."""
        left = list(range(len(pieces)))
        while left:
            at = self.rng.choice(left)
            target, source, size = pieces[at]
            data = read[at]
            if data is None:
                read[at] = ctypes.string_at(source, size)
            else:
                ctypes.memmove(target, data, size)
                left.remove(at)
                self.num_bytes += size
            yield


class FakeLane:
    """A `Lane`. Only between `on` and its end may anything be put, by the thread that entered."""

    def __init__(self, device: FakeDevice, index: int) -> None:
        self.stream = Stream(f"lane{index}")
        self.error: BaseException | None = None
        self._device = device
        self._handle = index + 1
        self._owner: int | None = None

    def on(self) -> AbstractContextManager[object]:
        return self._entered()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self._owner = threading.get_ident()
        with torch.inference_mode():
            try:
                yield
            finally:
                self._owner = None

    def wait(self, mark: FakeMark) -> None:
        self._putting("wait")
        assert isinstance(mark, FakeMark), "no mark of this device"
        self._device.put_wait(self.stream, mark)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._putting("copy")
        assert target.shape == source.shape, "a copy call does not broadcast"
        self._device.put(self.stream, self._copied(target, source))

    def copy_each(self, pieces: Pieces) -> None:
        self.error = None
        try:
            eachcopy.copy_each(pieces, self._handle, self._device.memcpy)
        except Exception:
            if self.error is not None:
                raise self.error from None
            raise

    def copy_batch(self, pieces: Pieces) -> int:
        self._putting("copy")
        with self._device.lock:
            return batchcopy.copy_batch(pieces, self._handle, self._device.memcpy_batch)

    def _copied(self, target: torch.Tensor, source: torch.Tensor) -> Work:
        yield
        data = source.clone()
        yield
        target.copy_(data)
        self._device.num_bytes += data.nbytes

    def pack(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self._putting("pack")
        packed = _unwritten(len(index), tensor)

        def work() -> Work:
            torch.index_select(tensor, 0, index, out=packed)
            yield from ()

        self._device.put(self.stream, work())
        return packed

    def unpack(self, tensor: torch.Tensor, index: torch.Tensor, packed: torch.Tensor) -> None:
        self._putting("unpack")

        def work() -> Work:
            tensor.index_copy_(0, index, packed)
            yield from ()

        self._device.put(self.stream, work())

    def host_buffer(self, num_blocks: int, like: torch.Tensor) -> torch.Tensor:
        self._putting("buffer")
        return _unwritten(num_blocks, like)

    def mark(self) -> FakeMark:
        self._putting("mark")
        return self._device.record(self.stream)

    def _putting(self, what: str) -> None:
        assert self._owner == threading.get_ident(), f"{what} on a lane that was not entered"
        self._device.on_put(self, what)


def _unwritten(num_blocks: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((num_blocks, *like.shape[1:]), -77, dtype=like.dtype)


def numbers(address: int, count: int) -> list[int]:
    """An array of the driver's."""
    return list((ctypes.c_uint64 * count).from_address(address))


class FakeLocker:
    """The part of the driver that locks pages. Call `fail_at` (from 0) is refused with `code`, and so is
    more than `largest` at once; a page cannot be locked twice; `forgetful`: memory is taken and not
    locked."""

    def __init__(
        self,
        fail_at: int | None = None,
        code: int = 2,
        *,
        largest: int = 1 << 60,
        forgetful: bool = False,
    ) -> None:
        self.chunks: dict[int, int] = {}
        self.num_calls = 0
        self._fail_at = fail_at
        self._code = code
        self._largest = largest
        self._forgetful = forgetful

    def register(self, address: int, num_bytes: int) -> int:
        self.num_calls += 1
        if self.num_calls - 1 == self._fail_at or num_bytes > self._largest:
            return self._code
        first, end = address // 4096, -(-(address + num_bytes) // 4096)
        for start, length in self.chunks.items():
            if first < -(-(start + length) // 4096) and start // 4096 < end:
                return 712  # CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
        self.chunks[address] = num_bytes
        return 0

    def unregister(self, address: int) -> int:
        return 0 if self.chunks.pop(address, None) is not None else 713

    def is_locked(self, tensor: torch.Tensor) -> bool:
        begin = tensor.data_ptr()
        return not self._forgetful and any(
            start <= begin and begin + tensor.nbytes <= start + length
            for start, length in self.chunks.items()
        )
