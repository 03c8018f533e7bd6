"""Readiness: whether requests should be sent to this process, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.batcher import Batcher
from service.drain import Drain
from service.features import BehaviourStore
from service.registry import Registry


@dataclass(frozen=True)
class Readiness:
    """What must be right. Redis must have answered once, unless ``without_redis``; that it is away
    later degrades answers, and would be no better elsewhere."""

    registry: Registry
    batcher: Batcher[Any, Any]
    store: BehaviourStore
    drain: Drain
    without_redis: bool

    @property
    def trouble(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.drain.begun:
            return "It is about to end"
        if self.registry.current is None:
            return f"No model is served: {self.registry.trouble}"
        if not self.batcher.alive:
            return "The batcher does not run"
        if not (self.store.answered or self.without_redis):
            return f"Redis has not answered yet: {self.store.trouble}"
        return ""
