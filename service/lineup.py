"""The lineup: the versions in service at one moment, and who gets which.

A user's side depends on nothing but the user's id, so it is the same in every process, on every
machine and for every canary; a user who is a canary's at a small share is so at a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from service.verify import Version

_WHOLE = 2**64
# Hashed with the id, so that sides have nothing to do with what else hashes ids.
_CANARY, _SHADOW = "dinserve canary:", "dinserve shadow:"


@dataclass(frozen=True, eq=False)
class Lineup:
    """The stable version, and those beside it with their shares, 0 to 1.

    ``canary_since`` tells a canary that is started again from what it was before.
    """

    stable: Version
    canary: Version | None = None
    canary_share: float = 0.0
    canary_since: str = ""
    shadow: Version | None = None
    shadow_share: float = 0.0

    def pick(self, user: str) -> Version:
        """The version that answers a user."""
        if self.canary is not None and place(_CANARY, user) < self.canary_share:
            return self.canary
        return self.stable

    def shadow_for(self, request_id: str) -> Version | None:
        """The version that is to score a request beside the stable one, if any."""
        if self.shadow is not None and place(_SHADOW, request_id) < self.shadow_share:
            return self.shadow
        return None

    def versions(self) -> list[Version]:
        """All of them, the stable one first."""
        several = (self.stable, self.canary, self.shadow)
        return [version for version in several if version is not None]

    def same(self, other: Lineup | None) -> bool:
        """Whether nothing differs, the loaded versions themselves among it."""
        return (
            other is not None
            and all(
                getattr(self, name) is getattr(other, name)
                for name in ("stable", "canary", "shadow")
            )
            and all(
                getattr(self, name) == getattr(other, name)
                for name in ("canary_share", "canary_since", "shadow_share")
            )
        )


def place(salt: str, text: str) -> float:
    """Where a text falls from 0 to below 1, evenly."""
    return xxh3_64_intdigest((salt + text).encode()) / _WHOLE
