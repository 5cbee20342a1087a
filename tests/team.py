"""Several processes that share work in a test, and what each of them gives."""

import importlib
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def team(size, module, function, *arguments, timeout=240):
    """What `function(group, *arguments)` of a test module gives, or raises, in each of so many processes."""
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    given = pickle.dumps((module, function, arguments))
    members = [
        subprocess.Popen(
            [sys.executable, __file__],
            env=common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TESTS,
        )
        for rank in range(size)
    ]
    for member in members:
        member.stdin.write(given)
        member.stdin.close()
        member.stdin = None
    outputs = [member.communicate(timeout=timeout)[0] for member in members]
    return [pickle.loads(output) if output else None for output in outputs]


def free_port():
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _member():
    sys.path.insert(0, str(TESTS))
    import torch.distributed as dist

    stdout, sys.stdout = sys.stdout.buffer, sys.stderr
    module, function, arguments = pickle.load(sys.stdin.buffer)
    dist.init_process_group("gloo")
    try:
        found = getattr(importlib.import_module(module), function)(dist.group.WORLD, *arguments)
    except (ValueError, RuntimeError) as error:  # LasertriError among them
        found = error
    stdout.write(pickle.dumps(found))
    stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    _member()
