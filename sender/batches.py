"""Work that comes piece by piece and is cheaper done together: what has come while the last batch was done
is the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Piece = TypeVar("Piece")
Done = TypeVar("Done")
MOST = 256  # at a time


class Batches(Generic[Piece, Done]):
    """`work` gives for each piece what came of it, or the exception that its caller is to get."""

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Piece]], Sequence[Done | Exception]],
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Without `threads` it has one of its own, so that it waits for nothing else.

        `before` is awaited ahead of each batch, which has all that has come by its end.
        """
        self._work, self._before = work, before
        self._threads = threads or ThreadPoolExecutor(1, name)
        self._waiting: list[tuple[Piece, asyncio.Future[Done]]] = []
        self._task: asyncio.Task[None] | None = None

    async def do(self, piece: Piece) -> Done:
        """Have this done with the next batch.

        Raises:
            Exception: what `work` says of the piece, or raises itself.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Done] = loop.create_future()
        self._waiting.append((piece, done))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="batches")
        return await done

    def cancel(self) -> None:
        """Begin no batch any more; who waits for one is to be cancelled as well."""
        if self._task is not None:
            self._task.cancel()

    def _together(self, pieces: Sequence[Piece]) -> Sequence[Done | Exception]:
        """One piece that breaks the work must not take its neighbours with it: then each is done alone."""
        try:
            return self._work(pieces)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is its caller's
            if len(pieces) == 1:
                return [error]
        return [self._together([piece])[0] for piece in pieces]

    async def _prepare(self) -> Exception | None:
        try:
            if self._before is not None:
                await self._before()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is its callers'
            return error
        return None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            failed = await self._prepare()
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            pieces = [piece for piece, _ in batch]
            outcomes: Sequence[Done | Exception] = (
                await loop.run_in_executor(self._threads, self._together, pieces)
                if failed is None
                else [failed] * len(pieces)
            )
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if done.done():
                    continue  # its caller has gone
                if isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)
