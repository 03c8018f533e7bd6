"""Where things lie in Redis: the names of all keys.

================================== ============================================================
``PREFIX:{P}:USER:h:LAYOUT``       string: the history, records of `model.contract.history`
``PREFIX:{P}:USER:p``              string: the profile, a JSON object of the raw user fields
``PREFIX:{P}:USER:s``              string: keys of the user's last events, 8 bytes each
``PREFIX:{P}:USER:x``              string: when the user was erased, ms since 1970
``PREFIX:{P}:log``                 stream: what happened, see `model.contract.log`
``PREFIX:{P}:layouts``             hash: the fields of each LAYOUT that was written
``PREFIX:withdrawn``               hash: by model, the canary that failed in a service which may not
                                   write labels (`model.contract.labels.Withdrawal`)
================================== ============================================================

P is the partition of a user, 0 to 63. The braces put all keys of a partition in one slot of a
cluster, so one script can change a user's history and append to the log, and who reads a user sees
in the same round trip in which layouts there may be a history. Every key has a time to live.
"""

from __future__ import annotations

from model.contract.ids import key

PARTITIONS = 64
LAYOUTS_SECONDS = 400 * 24 * 3600
"""Time to live of what is known of layouts, unless histories live longer: then theirs."""


def partition(user: str) -> int:
    """The partition of a user."""
    return key(user) % PARTITIONS


def history_key(prefix: str, user: str, layout: str) -> str:
    return f"{_user(prefix, user)}:h:{layout}"


def profile_key(prefix: str, user: str) -> str:
    return f"{_user(prefix, user)}:p"


def seen_key(prefix: str, user: str) -> str:
    return f"{_user(prefix, user)}:s"


def erased_key(prefix: str, user: str) -> str:
    return f"{_user(prefix, user)}:x"


def log_key(prefix: str, partition: int) -> str:
    return f"{prefix}:{{{partition}}}:log"


def layouts_key(prefix: str, partition: int) -> str:
    return f"{prefix}:{{{partition}}}:layouts"


def withdrawn_key(prefix: str) -> str:
    return f"{prefix}:withdrawn"


def _user(prefix: str, user: str) -> str:
    return f"{prefix}:{{{partition(user)}}}:{user}"
