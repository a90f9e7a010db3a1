"""PyPI 0g-storage-sdk: files of every size that the storage protocol has a vector for, up and down again."""

import sys
from pathlib import Path

from core.file import ZgFile
from core.indexer import Indexer
from eth_account import Account

from cells import Cells, run
from storage_content import NETWORK, SHARED, VECTORS, content

CELLS = Cells("storage-python")
INDEXER = Indexer(NETWORK["indexer_url"])
ACCOUNT = Account.from_key(NETWORK["accounts"][3]["private_key"])
# Upload methods answer null, which this client takes for a failure and repeats after a pause of its own.
NO_PAUSE = {"TooManyDataRetries": 3, "Interval": 0}


def upload(path):
    options = {"tags": b"\x00", "finalityRequired": True, "expectedReplica": 1, "taskSize": 10, "account": ACCOUNT}
    file = ZgFile.from_file_path(path)
    try:
        result, error = INDEXER.upload(file, NETWORK["rpc_url"], ACCOUNT, options, NO_PAUSE)
    finally:
        file.close()
    if error is not None:
        raise error
    return result["rootHash"]


def upload_fragments():
    uploader, error = INDEXER.new_uploader_from_indexer_nodes(NETWORK["rpc_url"], ACCOUNT, 1)
    if error is not None:
        raise error
    options = {"tags": b"\x00", "finalityRequired": True, "expectedReplica": 1, "taskSize": 10, "account": ACCOUNT}
    options["fragmentSize"] = VECTORS["fragments"]["fragment_size"]
    result, error = uploader.splitable_upload(ZgFile.from_file_path("fragments"), options, NO_PAUSE)
    if error is not None:
        raise error
    return result


def download(root, path, proof):
    Path(path).unlink(missing_ok=True)
    error = INDEXER.download(root, path, proof)
    if error is not None:
        raise error
    return Path(path).read_bytes()


def round_trip(size, root):
    Path(f"up-{size}").write_bytes(content(size))
    found = upload(f"up-{size}")
    assert found == root, found
    again = download(root, f"down-{size}", size % 2 == 1)
    Path(f"down-{size}").unlink()
    return again


def walk():
    for vector in VECTORS["files"]:
        size, root = vector["size"], vector["root"]
        CELLS.passes(f"{size} bytes", lambda size=size, root=root: round_trip(size, root), lambda again, size=size: again == content(size))
    CELLS.passes("the same file again", lambda: upload("up-262145"))
    Path("fragments").write_bytes(content(VECTORS["fragments"]["size"]))
    CELLS.client_bug(
        "fragments",
        "attempted relative import|No module named|ImportError",
        "stops with an import error before anything is sent",
        "files below the fragment size (4 GiB), or the npm SDK",
        upload_fragments,
    )
    Path("empty").write_bytes(b"")
    CELLS.passes("an empty file is refused", lambda: refusal("empty"), lambda text: text is not None)


def refusal(path):
    try:
        upload(path)
    except Exception as error:
        return str(error)
    return None


def give():
    Path("given").write_bytes(content(VECTORS["shared"]["size"], VECTORS["shared"]["offsets"][CELLS.client]))
    (SHARED / CELLS.client).write_text(upload("given"))


def take():
    def all_of_them():
        for client, offset in VECTORS["shared"]["offsets"].items():
            again = download((SHARED / client).read_text(), f"taken-{client}", True)
            assert again == content(VECTORS["shared"]["size"], offset), client

    CELLS.passes("files that the other clients stored", all_of_them)


run({"walk": walk, "give": give, "take": take}[sys.argv[1]])
