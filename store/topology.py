"""The topology: which Redis holds a key, as a Sentinel or a node of a cluster tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.crc import key_slot

from store.url import Address

SLOTS = 16384


class TopologyError(ValueError):
    """An answer that tells no topology."""


@dataclass(frozen=True)
class Topology:
    """``owners[slot]`` is the address of a slot's master, None where a slot has none; a single one
    holds all slots."""

    owners: Sequence[Address | None]

    def owner(self, key: str) -> Address | None:
        """Who holds a key."""
        return self.owners[key_slot(key.encode()) if len(self.owners) > 1 else 0]

    @property
    def addresses(self) -> frozenset[Address]:
        """All masters."""
        return frozenset(owner for owner in self.owners if owner is not None)

    @classmethod
    def of_master(cls, answer: Any, asked: Address) -> Topology:
        """From SENTINEL GET-MASTER-ADDR-BY-NAME. Raises `TopologyError`."""
        match answer:
            case [host, port]:
                return cls([_address(host, port, asked)])
        raise TopologyError("the Sentinel knows no such service")

    @classmethod
    def of_slots(cls, answer: Any, asked: Address) -> Topology:
        """From CLUSTER SLOTS, as a node ``asked`` says it. Raises `TopologyError`."""
        owners: list[Address | None] = [None] * SLOTS
        for each in answer if isinstance(answer, list) else []:
            match each:
                case [int(first), int(last), [host, port, *_], *_]:
                    owner = _address(host, port, asked)
                    owners[first : last + 1] = [owner] * (last + 1 - first)
        if len(owners) != SLOTS or not any(owners):
            raise TopologyError("the node knows no slots")
        return cls(owners)


def _address(host: Any, port: Any, asked: Address) -> Address:
    """A node that does not know its own name is called as it was asked."""
    name = host.decode() if isinstance(host, bytes) else host
    return name or asked[0], int(port)
