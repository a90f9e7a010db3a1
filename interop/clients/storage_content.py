"""The content of the storage vectors, for the clients that are driven from Python."""

import json
import os
from pathlib import Path

VECTORS = json.loads(Path(os.environ["INTEROP_VECTORS"]).read_text())
NETWORK = json.loads(Path(os.environ["INTEROP_NETWORK"]).read_text())
SHARED = Path(os.environ.get("INTEROP_SHARED", "."))


def content(size, offset=0):
    period = bytes((i * 31 + 7) % 251 ^ offset for i in range(251))
    return (period * (size // 251 + 1))[:size]
