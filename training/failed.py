"""Canaries that failed in services which may not write labels: told in Redis, to whoever may."""

from __future__ import annotations

from dataclasses import dataclass

from model.contract.labels import LabelError, LabelFile, Withdrawal
from model.contract.store import withdrawn_key
from store.blocking import Clients

# KEYS: withdrawn. ARGV: model, what was read. Gone, unless it is another one by now.
_DONE = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""


@dataclass(frozen=True)
class Failed:
    """What the services of a store tell. Everything raises RedisError."""

    clients: Clients
    prefix: str

    def withdraw(self, labels: LabelFile) -> Withdrawal | None:
        """Set the share of the canary that failed to 0; which, None where there is none or the
        labels have been changed since.

        Raises `LabelError` and OSError when the labels can't be read or changed; it is then still
        told.
        """
        key, model = withdrawn_key(self.prefix), labels.repository.name
        client = self.clients.of(key)
        told = client.hget(key, model)
        if told is None:
            return None
        try:
            withdrawal = Withdrawal.parse(told)
        except LabelError:
            client.eval(_DONE, 1, key, model, told)  # or it were met again for ever
            raise
        standing = withdrawal.of(labels.read())
        labels.withdraw(withdrawal)
        client.eval(_DONE, 1, key, model, told)
        return withdrawal if standing else None
