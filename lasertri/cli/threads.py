"""Threads that wait sleep, so that a shared machine is as fast as its free cores allow."""

import os


def wait_asleep() -> None:
    """Before torch is imported: OpenMP's threads otherwise spin while they wait, on cores that others work on."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
