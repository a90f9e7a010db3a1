"""A `0g-storage-client` executable, called as the official SDKs call it: `python storage_helper.py PHASE COLUMN PROGRAM`."""

import re
import subprocess
import sys
from pathlib import Path

from cells import Cells, run
from storage_content import NETWORK, SHARED, VECTORS, content

PHASE, COLUMN, PROGRAM = sys.argv[1:4]
CELLS = Cells(COLUMN)
KEY = NETWORK["accounts"][3]["private_key"]
SUCCESS = "Succeeded to validate the downloaded file"


def call(*arguments):
    result = subprocess.run([PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    printed = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"ended with {result.returncode}: {printed[-1500:]}")
    return printed


def upload(path, *more):
    printed = call(
        "upload", "--url", NETWORK["rpc_url"], "--key", KEY, "--indexer", NETWORK["indexer_url"], "--file", path,
        "--skip-tx=false", "--log-level=debug", *more,
    )
    assert KEY not in printed and KEY[2:] not in printed, "the key was printed"
    return printed


def root_of(printed):
    """As both SDKs look for it: the Python SDK takes the first match, the TypeScript SDK the last."""
    found = re.findall(r"root\s*=\s*(0x[0-9a-fA-F]+)", printed)
    assert len(set(found)) == 1, printed
    return found[0]


def download(roots, path):
    Path(path).unlink(missing_ok=True)
    printed = call("download", "--file", path, "--indexer", NETWORK["indexer_url"], "--roots", roots)
    assert printed.strip().endswith(SUCCESS), printed
    return Path(path).read_bytes()


def round_trip(size, root):
    Path(f"up-{size}").write_bytes(content(size))
    found = root_of(upload(f"up-{size}"))
    assert found == root, found
    again = download(root, f"down-{size}")
    Path(f"down-{size}").unlink()
    return again


def walk():
    for vector in VECTORS["files"]:
        size, root = vector["size"], vector["root"]
        CELLS.passes(f"{size} bytes", lambda size=size, root=root: round_trip(size, root), lambda again, size=size: again == content(size))
    CELLS.passes("the same file again", lambda: root_of(upload("up-262145")))
    CELLS.passes("an empty file is refused", lambda: refusal("empty"), lambda text: text is not None)
    CELLS.passes("fragments", fragments, lambda again: again == content(VECTORS["fragments"]["size"]))


def refusal(path):
    Path(path).write_bytes(b"")
    try:
        upload(path)
    except RuntimeError as error:
        return str(error)
    return None


def fragments():
    wanted = VECTORS["fragments"]
    Path("fragments").write_bytes(content(wanted["size"]))
    printed = upload("fragments", "--fragment-size", str(wanted["fragment_size"]))
    roots = re.search(r"roots = (0x[0-9a-f,x]+)", printed)[1]
    assert roots == ",".join(wanted["roots"]), printed
    return download(roots, "fragments-again")


def give():
    Path("given").write_bytes(content(VECTORS["shared"]["size"], VECTORS["shared"]["offsets"][COLUMN]))
    (SHARED / COLUMN).write_text(root_of(upload("given")))


def take():
    def all_of_them():
        for client, offset in VECTORS["shared"]["offsets"].items():
            again = download((SHARED / client).read_text(), f"taken-{client}")
            assert again == content(VECTORS["shared"]["size"], offset), client

    CELLS.passes("files that the other clients stored", all_of_them)


run({"walk": walk, "give": give, "take": take}[PHASE])
