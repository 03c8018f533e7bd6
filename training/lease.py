"""The lease: a lock with an owner and an expiry, kept in files, so that it holds over volumes that
several machines share and where ``flock`` does not.

::

    <folder>/<name>.<n>    JSON: owner, host, pid and expires, in seconds since 1970

The file with the highest n says who holds the lease, if it has not expired. To take it is to create
the file n + 1, which can be done once (O_EXCL), whoever else tries; so an expired lease has one new
owner. The holder puts off the expiry while it works. To release it is to let it expire at once: the
highest file is never removed, lower ones are by the next holder. The clocks of the machines
have to agree within a small part of the time that a lease lasts.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class LeaseError(RuntimeError):
    """The lease is someone else's: who holds it, or that it was lost."""


@dataclass(frozen=True)
class Lease:
    """A lease that ends ``seconds`` after it was last renewed; a thread renews it in time."""

    folder: Path
    name: str
    seconds: float = 300.0
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Hold it. Raises `LeaseError` at once where someone else does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = self._take()
        over = threading.Event()
        renewal = threading.Thread(target=self._renew_until, args=(number, over), daemon=True)
        renewal.start()
        try:
            yield self
        finally:
            over.set()
            renewal.join()
            if self._numbers()[-1:] == [number]:
                self._write(number, expires=0.0)

    def check(self) -> None:
        """Raises `LeaseError` when it is not ours any more, as after a sleep beyond its end."""
        found = self._holder(number) if (number := self._highest()) else {}
        if found.get("owner") != self.owner or found["expires"] <= time.time():
            raise LeaseError(f"{self.folder / self.name}: lost to {_who(found)}")

    def _take(self) -> int:
        number = self._highest()
        if number and (held := self._holder(number))["expires"] > time.time():
            left = held["expires"] - time.time()
            raise LeaseError(
                f"{self.folder / self.name}: held by {_who(held)}, for {left:.0f} s more at least"
            )
        number += 1
        try:
            with self._path(number).open("x", encoding="utf-8") as file:
                file.write(self._said(time.time() + self.seconds))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise LeaseError(f"{self.folder / self.name}: just taken by another") from None
        numbers = self._numbers()
        if numbers[-1] != number:  # what was the highest when we looked is long past
            self._path(number).unlink()
            raise LeaseError(f"{self.folder / self.name}: just taken by another")
        for older in numbers[:-1]:
            self._path(older).unlink(missing_ok=True)
        return number

    def _renew_until(self, number: int, over: threading.Event) -> None:
        while not over.wait(self.seconds / 3):
            if self._highest() != number:
                return  # taken over: `check` will say so
            self._write(number, time.time() + self.seconds)

    def _write(self, number: int, expires: float) -> None:
        """Replace our file as a whole."""
        beside = self.folder / f".{self.name}-{self.owner}"
        beside.write_text(self._said(expires), encoding="utf-8")
        os.replace(beside, self._path(number))

    def _said(self, expires: float) -> str:
        who = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({**who, "expires": expires}) + "\n"

    def _holder(self, number: int) -> dict[str, Any]:
        """What a file says. One that is not written yet is held by someone from then on."""
        path = self._path(number)
        try:
            found = json.loads(path.read_bytes())
            return {**found, "expires": float(found["expires"])}
        except (ValueError, KeyError, TypeError):
            return {"expires": path.stat().st_mtime + self.seconds}
        except FileNotFoundError:  # removed since it was listed: there is a higher one
            return {"expires": time.time() + self.seconds}

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        endings = [path.name.removeprefix(f"{self.name}.") for path in self.folder.iterdir()]
        return sorted(int(each) for each in endings if each.isascii() and each.isdigit())

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}.{number}"


def _who(found: dict[str, Any]) -> str:
    if "pid" not in found:
        return "another"
    return f"process {found['pid']} on {found['host']}"
