"""Several processes that train one run, started by torchrun: who does what, and how they agree.

Rank r of N computes the places ⌊rB/N⌋ … ⌊(r+1)B/N⌋ - 1 of each global batch of B. Whatever is drawn
is a function of (seed, step, place), so all ranks together see what one process would see alone.
Rank 0, the first, is the one that reads and writes the run's folder, and speaks.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from typing_extensions import ParamSpec

from unraze.environment import are_several
from unraze.errors import Elsewhere, InputError, UnrazeError

__all__ = ["ALONE", "Ranks", "attempt", "joined", "launch"]

P = ParamSpec("P")
T = TypeVar("T")

BEAT = 5.0
"""Seconds between two signs of life of a rank."""
PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others in what all do at once: a step, a sum over them."""


@dataclass(frozen=True)
class Ranks:
    """Which of `count` processes this is: `number` of all, `local` of the `here` on this machine.

    `store` is where they write down what they know, for each other to read; None for one alone.
    `call` is a word that torchrun keeps for the first one from attempt to attempt; else empty.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    here: int = 1
    store: Store | None = None
    call: str = ""
    meetings: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reads, writes and speaks."""
        return self.number == 0

    def group(self) -> dist.ProcessGroup | None:
        """All ranks, by connections of its own: what is sent by it, from a thread of its own say,
        does not meet anything else. To be called by all at once."""
        return None if self.count == 1 else dist.new_group(backend="gloo")

    def share(self, total: int) -> range:
        """Which of 0 … total-1 are this rank's: all ranks have as many, or one more."""
        return range(self.number * total // self.count, (self.number + 1) * total // self.count)

    def first(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `make(…)` gives on the first rank, on all of them.

        Where it raises one of the package's errors there, all others raise `Elsewhere`.
        """
        if self.count == 1:
            return make(*args, **kwargs)
        told: list[Any] = [None, None]
        failure: UnrazeError | None = None
        if self.is_first:
            try:
                told[0] = make(*args, **kwargs)
            except UnrazeError as error:
                failure, told[1] = error, str(error)
        with _rather(failure):
            self._meet()
            dist.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise Elsewhere(told[1])
        made: T = told[0]
        return made

    def each(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives on each rank, in their order, on all of them.

        Where it raises one of the package's errors on one rank, all others raise `Elsewhere`.
        """
        if self.count == 1:
            return [make()]
        own: tuple[Any, str | None]
        failure: UnrazeError | None = None
        try:
            own = (make(), None)
        except UnrazeError as error:
            failure, own = error, (None, str(error))
        every: list[Any] = [None] * self.count
        with _rather(failure):
            self._meet()
            dist.all_gather_object(every, own)
        if failure is not None:
            raise failure
        for _, why in every:
            if why is not None:
                raise Elsewhere(why)
        return [value for value, _ in every]

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, on each machine made by one rank first, then by its others: what it
        keeps on disk is made once."""
        if self.count == 1:
            return make()
        made: list[T] = []

        def act() -> None:
            made.append(make())

        def wait() -> None:
            """Until the others have acted."""

        self.each(act if self.local == 0 else wait)
        self.each(wait if self.local == 0 else act)
        return made[0]

    def _meet(self) -> None:
        """Waits until all ranks have come here, for as long as one of them has something to do:
        reading a data set can take hours, more than what waits in gloo is given. Raises
        `UnrazeError` on the first rank where another has not been heard of for `PATIENCE`."""
        if self.store is None:
            return
        key, pause = f"meeting/{next(self.meetings)}", 0.001
        come, due = self.store.add(key, 1), time.monotonic() + BEAT
        heard: dict[int, tuple[int, float]] = {}
        while come < self.count:
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
            come, now = self.store.add(key, 0), time.monotonic()
            if not self.is_first or now < due:  # one is enough to end all
                continue
            due = now + BEAT
            self._require_life(self.store, heard, now)

    def _require_life(self, store: Store, heard: dict[int, tuple[int, float]], now: float) -> None:
        """Raises `UnrazeError` where a rank has not been heard of for `PATIENCE`; `heard` are the
        signs of life of each that were counted so far, and since when."""
        for other in range(1, self.count):
            beats = store.add(f"beat/{other}", 0)
            if heard.get(other, (-1, now))[0] != beats:
                heard[other] = beats, now
            elif now - heard[other][1] > PATIENCE.total_seconds():
                raise UnrazeError(
                    f"rank 0 of {self.count}: has not heard of rank {other} for {PATIENCE}: it is "
                    "stopped, or its machine is, or cut off"
                )

    def total(self, value: float) -> float:
        """The sum of `value` over the ranks, in float64, the same on all of them."""
        if self.count == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(summed)
        return float(summed)

    def any(self, value: bool) -> bool:
        """Whether it is so on one rank at least."""
        return self.total(float(value)) > 0

    def joint(self, part: Tensor, total: int) -> Tensor:
        """What each rank has of its share of `total` rows, all of them in order, on all ranks."""
        if self.count == 1:
            return part
        most = -(-total // self.count)
        padded = part.new_zeros(most, *part.shape[1:]).cpu()
        padded[: len(part)] = part.cpu()
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        shares = [Ranks(k, self.count).share(total) for k in range(self.count)]
        rows = torch.cat([part[: len(own)] for part, own in zip(parts, shares, strict=True)])
        return rows.to(part.device)


_LOST = ("Connection closed", "Connection reset", "Broken pipe")
"""What gloo, and the store, say where another process is gone."""
_IN_VAIN = ("Timed out", "timed out", "timeout")
"""What they say where it is there, or its machine is not, and nothing comes."""

ALONE = Ranks()
"""One process, as without torchrun."""


def attempt(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started these processes anew, after one of them failed."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)


def launch(call: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """A name of this call of torchrun, the same for each attempt; empty without torchrun.

    Its first line is the name that the call was given, `--rdzv-id`, which a later one may be given
    again; the second tells them apart: `Ranks.call`, or this machine's torchrun where that is not
    known.
    """
    name = environment.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return ""
    here = f"{socket.gethostname()}-{os.getppid()}"
    # "none" is what it is called where it was not given a name, which is on one machine alone
    return f"{here if name == 'none' else name}\n{call or here}"


def _told(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The rank that the environment says this is. Raises `InputError` where it says half of it."""
    found = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | dict(environment)
    for key in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_PORT",
        "MASTER_ADDR",
    ):
        said = found.get(key, "")
        if not (said if key == "MASTER_ADDR" else re.fullmatch("[0-9]{1,9}", said)):
            raise InputError(
                f"{key} = {said!r}: there are several processes, says WORLD_SIZE, and then each is "
                "to be told RANK, MASTER_ADDR and MASTER_PORT, and where several are on a machine "
                "LOCAL_RANK and LOCAL_WORLD_SIZE; start them by torchrun, or leave WORLD_SIZE out"
            )
    number, count = int(found["RANK"]), int(found["WORLD_SIZE"])
    return Ranks(number, count, int(found["LOCAL_RANK"]), int(found["LOCAL_WORLD_SIZE"]))


@contextmanager
def _rather(failure: UnrazeError | None) -> Iterator[None]:
    """Raises this failure, where there is one, rather than what comes of waiting for others."""
    try:
        yield
    except (RuntimeError, KeyboardInterrupt):
        if failure is not None:
            raise failure from None
        raise


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """The ranks that torchrun started, able to speak with each other; `ALONE` where it did not.

    Of several GPUs of one machine each rank has its own: "cuda" means that one from here on. CPU
    tensors go by gloo, those of GPUs by NCCL. Raises `InputError` where there are fewer GPUs than
    ranks here, or the device is one that all ranks would share, `UnrazeError` where the others are
    not found.
    """
    if not are_several():
        yield ALONE
        return
    ranks = _told()
    backend = "gloo"
    if device != "cpu":
        if device != "cuda":
            raise InputError(
                f"device = {device!r}: {ranks.count} ranks cannot share it; give cpu, or cuda, of "
                "which each rank takes one"
            )
        if (there := torch.cuda.device_count()) <= ranks.local:
            raise InputError(
                f"device = 'cuda': this machine has {there} GPUs for {ranks.local + 1} ranks or "
                "more; give torchrun a smaller --nproc-per-node"
            )
        torch.cuda.set_device(ranks.local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, call = _own_store(ranks)
        ranks = replace(ranks, store=store, call=call)
        dist.init_process_group(
            backend, store=store, rank=ranks.number, world_size=ranks.count, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise UnrazeError(
            f"rank {ranks.number} of {ranks.count}: does not find the others at {where} ({reason})"
        ) from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(ranks, ended), daemon=True)
    beating.start()
    try:
        yield ranks
    except RuntimeError as error:
        if any(words in str(error) for words in _LOST):
            why = "lost its connection to another, which ended"
        elif any(words in str(error) for words in _IN_VAIN):
            why = f"waited {PATIENCE} for another, from which nothing came"
        else:
            raise
        raise UnrazeError(f"rank {ranks.number} of {ranks.count}: {why}") from error
    finally:
        ended.set()
        beating.join(timeout=BEAT)
        dist.destroy_process_group()


def _beat(ranks: Ranks, ended: threading.Event) -> None:
    """Lets the first rank know, until the end, that this one is there."""
    assert ranks.store is not None
    store = ranks.store.clone()  # type: ignore[attr-defined]
    while not ended.wait(BEAT):
        try:
            store.add(f"beat/{ranks.number}", 1)
        except RuntimeError:  # the store went with who kept it
            return


def _own_store(ranks: Ranks) -> tuple[Store, str]:
    """A store of these processes alone, which the first one keeps, or a part of torchrun's; and
    `Ranks.call`.

    torchrun's outlives them, and where they are started anew it still has the addresses of those
    that were before. So the first rank writes down a word of its own, each other one answers it
    with one of its own, and takes it for the first's once that is answered in turn: a word of one
    that is gone never is.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = ranks.is_first and not is_torchruns
    store = TCPStore(address, port, is_master=keeps, timeout=PATIENCE)
    if not is_torchruns:
        return store, ""
    mine, deadline = secrets.token_hex(8), time.monotonic() + PATIENCE.total_seconds()
    if ranks.is_first:
        store.set("unraze/first", mine)
        for other in range(1, ranks.count):
            word = store.get(f"unraze/{mine}/{other}").decode()
            store.set(f"unraze/{mine}/{other}/{word}", "heard")
        call = store.compare_set("unraze/call", "", mine)  # the first attempt's stays
        return PrefixStore(mine, store), call.decode()
    while time.monotonic() < deadline:
        first = store.get("unraze/first").decode()
        store.set(f"unraze/{first}/{ranks.number}", mine)
        patience = time.monotonic() + 1
        while time.monotonic() < patience:
            if store.check([f"unraze/{first}/{ranks.number}/{mine}"]):
                return PrefixStore(first, store), ""
            time.sleep(0.02)
    raise RuntimeError(f"rank 0 did not answer in {PATIENCE}")
