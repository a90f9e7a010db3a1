"""npm @0gfoundation/0g-compute-ts-sdk, its command line `0g-compute-cli`: the walk of its documentation.

`python compute_cli.py walk` while the network is fresh, `python compute_cli.py refunds` after its lock time.
"""

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

from cells import Cells, run, wait_until

NETWORK = json.loads(Path(os.environ["INTEROP_NETWORK"]).read_text())
FIXTURES = Path(os.environ["INTEROP_FIXTURES"])
PROGRAM = ["node", os.environ["INTEROP_COMPUTE_CLI"]]
PACKAGE = "@0gfoundation/0g-compute-ts-sdk"
PROVIDER = NETWORK["provider_address"]
MODEL = "Qwen2.5-0.5B-Instruct"
DATASET = "training_data.jsonl"
TRAINING = "training_params.json"
# A run that is still there when it is cancelled.
LONG = "long.json"
CELLS = Cells("cli")
DOWN, ENTER = "\x1b[B", "\r"


class Failed(Exception):
    """A command ended with another status than 0."""


class User:
    """The command line with a home folder, so a profile, of its own."""

    def __init__(self, account):
        self.account = NETWORK["accounts"][account]
        self.home = Path.cwd() / f"home-{account}"
        self.home.mkdir(exist_ok=True)
        own = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home), "NO_COLOR": "1"}
        # Under continuous integration it would not read what `know_of_no_update` writes.
        self.environment = {**os.environ, **own}
        for name in ("CI", "CONTINUOUS_INTEGRATION", "NO_UPDATE_NOTIFIER"):
            self.environment.pop(name, None)

    def __call__(self, *arguments, given="", also=None):
        """Runs a command to its end and returns everything it printed."""
        self.know_of_no_update()
        result = subprocess.run(
            [*PROGRAM, *arguments],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env={**self.environment, **(also or {})},
            check=False,
        )
        if result.returncode != 0:
            raise Failed(f"{' '.join(arguments)} ended with {result.returncode}: {result.stdout[-1500:]}")
        return result.stdout

    def at_terminal(self, *arguments, keys):
        """Runs a command at a terminal: types each text of `keys` when its prompt has come."""
        self.know_of_no_update()
        process, terminal = pty.fork()
        if process == 0:
            os.execvpe(PROGRAM[0], [*PROGRAM, *arguments], self.environment)
        printed, deadline = "", time.monotonic() + 60
        try:
            for prompt, text in keys:
                seen = len(printed)
                while prompt not in printed[seen:]:
                    printed += read_some(terminal, deadline)
                time.sleep(0.2)
                os.write(terminal, text.encode())
            while True:
                try:
                    printed += read_some(terminal, deadline)
                except EOFError:
                    break
        finally:
            os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != 0:
            raise Failed(f"{' '.join(arguments)} ended with {status}: {printed}")
        return printed

    def know_of_no_update(self):
        """What a look for a newer version leaves behind for the next command; without it each command waits two seconds."""
        answer = {"latest": "0.9.0", "current": "0.9.0", "type": "latest", "name": PACKAGE}
        file = self.home / f"configstore/update-notifier-{PACKAGE}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"optOut": False, "lastUpdateCheck": int(time.time() * 1000), "update": answer}))

    def configure(self):
        """The profile that set-up and login write."""
        folder = self.home / ".0g-compute-cli"
        folder.mkdir(exist_ok=True)
        settings = {"rpcEndpoint": NETWORK["rpc_url"], "network": "custom", "privateKey": self.account["private_key"]}
        (folder / "config.json").write_text(json.dumps(settings))
        return self


def read_some(terminal, deadline):
    ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
    if not ready:
        raise TimeoutError("the prompt did not come")
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b""
    if not data:
        raise EOFError
    return data.decode("utf-8", "replace")


def walk():
    Path(DATASET).write_bytes((FIXTURES / "datasets/willow-farm.instruction.jsonl").read_bytes())
    Path(TRAINING).write_text(os.environ["INTEROP_TRAINING"])
    Path(LONG).write_text(json.dumps(json.loads(Path(TRAINING).read_text()) | {"max_steps": 5000, "num_train_epochs": 100}))
    Path("audit").mkdir(exist_ok=True)
    user = User(4)
    set_up(user)
    fund(user)
    discover(user)
    root = datasets(user)
    task = create(user, root)
    tasks(user, task, root)
    deliveries(user, task, root)
    adapters(user, task)
    inference(user)
    queue(user, root)
    owner(user)
    withdraw(user)


def set_up(user):
    CELLS.passes(
        "create a broker",
        lambda: user.at_terminal(
            "setup-network", keys=[("select a network", DOWN + DOWN + ENTER), ("custom RPC endpoint URL", NETWORK["rpc_url"] + ENTER)]
        ),
        lambda text: f"RPC: {NETWORK['rpc_url']}" in text,
    )
    CELLS.passes(
        "login",
        lambda: user.at_terminal("login", keys=[("private key", user.account["private_key"] + ENTER), ("Login with this wallet", "y")]),
        lambda text: "Successfully logged in" in text and user.account["private_key"] not in text,
    )
    CELLS.passes("status", lambda: user("status"), has(user.account["address"]))


def fund(user):
    CELLS.passes("ledger.add_ledger", lambda: user("add-account", "--amount", "3"), has("Account Created!"))
    CELLS.passes("ledger.deposit_fund", lambda: user("deposit", "--amount", "5"), has("Deposited funds: 5 0G"))
    CELLS.passes("ledger.get_ledger", lambda: user("get-account"), has("8.000000000000000000"))
    CELLS.passes(
        "ledger.transfer_fund", lambda: user("transfer-fund", "--provider", PROVIDER, "--amount", "1", "--service", "fine-tuning"),
        has("Successfully transferred 1 0G"),
    )
    CELLS.passes(
        "get_account_with_detail", lambda: user("get-sub-account", "--provider", PROVIDER, "--service", "fine-tuning"), has("1.000000000000000000")
    )
    CELLS.passes("ledger.get_ledger_with_detail", lambda: user("get-account"), has("Fine-tuning sub-accounts"))


def has(*texts):
    """Whether all texts were printed; addresses are in the one or the other spelling."""
    return lambda printed: all(text in printed or text in printed.lower() for text in texts)


def discover(user):
    CELLS.passes("list_service", lambda: user("fine-tuning", "list-providers"), has(PROVIDER, "✓", "Price Per Byte in Dataset (0G)"))
    CELLS.passes("list_model", lambda: user("fine-tuning", "list-models"), has("Predefined Model:", "mock-model", "Provider's Model:"))
    CELLS.passes(
        "verify_service", lambda: user("fine-tuning", "verify", "--provider", PROVIDER, "--output-dir", "audit"),
        has("Verification completed successfully", "✅ MATCH", "✅ PASSED"),
    )
    CELLS.passes(
        "model_usage", lambda: user("fine-tuning", "model-usage", "--provider", PROVIDER, "--model", MODEL, "--output", "usage.zip", "--rpc", NETWORK["rpc_url"]),
        lambda _: "README.md" in zipfile.ZipFile("usage.zip").namelist(),
    )


def datasets(user):
    printed = CELLS.passes("upload_dataset", lambda: user("fine-tuning", "upload", "--data-path", DATASET), lambda text: stored_root(text))
    root = stored_root(printed)
    CELLS.passes(
        "download_dataset",
        lambda: user("fine-tuning", "download", "--data-path", "again.jsonl", "--data-root", root, "--rpc", NETWORK["rpc_url"]),
        lambda _: Path("again.jsonl").read_bytes() == Path(DATASET).read_bytes(),
    )
    for method, arguments in {
        "calculate_token with the token counter": ["calculate-token", "--model", MODEL, "--dataset-path", DATASET],
        "download-counter": ["download-counter"],
    }.items():
        CELLS.needs_public_network(
            method,
            "Process exited with code",
            "fetches a program that is pinned by hash and exists on the public 0G Storage only",
            "`0g-compute-cli fine-tuning calculate-token` of ours",
            lambda arguments=arguments: user("fine-tuning", *arguments),
        )
    return root


def stored_root(printed):
    found = re.findall(r"root = (0x[0-9a-f]{64})", printed)
    return found[-1] if found else None


def create(user, root):
    """All three ways of naming the dataset; the first two tasks are cancelled at once."""
    dead = {"ZG_STORAGE_INDEXER_OVERRIDE": "http://127.0.0.1:9", "ZG_STORAGE_RPC_OVERRIDE": "http://127.0.0.1:9"}
    base = ["fine-tuning", "create-task", "--provider", PROVIDER, "--model", MODEL, "--config-path"]
    by_tee = CELLS.passes(
        "upload_dataset_to_tee", lambda: user(*base, LONG, "--dataset-path", DATASET, also=dead),
        has("Falling back to direct TEE upload...", "Dataset uploaded to TEE (fallback)", "Provider verified", "Created Task ID:"),
    )
    CELLS.passes(
        "cancel_task", lambda: user("fine-tuning", "cancel-task", "--provider", PROVIDER, "--task", task_id(by_tee)),
        has(f"task {task_id(by_tee)} cancelled"),
    )
    by_storage = CELLS.passes(
        "create_task on a stored dataset", lambda: user(*base, LONG, "--dataset-path", DATASET),
        has(f"Dataset uploaded to 0G Storage, root hash: {root}", "Created Task ID:"),
    )
    user("fine-tuning", "cancel-task", "--provider", PROVIDER, "--task", task_id(by_storage))
    return task_id(CELLS.passes("create_task", lambda: user(*base, TRAINING, "--dataset", root), has("Created Task ID:")))


def task_id(printed):
    return re.search(r"Created Task ID: ([0-9a-f-]{36})", printed)[1]


def tasks(user, task, root):
    CELLS.passes("get_task", lambda: user("fine-tuning", "get-task", "--provider", PROVIDER, "--task", task), has(task, "Fee (neuron)"))
    CELLS.passes("get_task, the latest", lambda: user("fine-tuning", "get-task", "--provider", PROVIDER), has(task))
    CELLS.passes("list_task", lambda: user("fine-tuning", "list-tasks", "--provider", PROVIDER), has(task, "Cancelled"))
    wait_for(user, task, "Delivered")
    CELLS.passes("create_task, one is unfinished", lambda: refusal(user, root), has("Failed to create task: ", task))
    CELLS.passes(
        "get_log", lambda: user("fine-tuning", "get-log", "--provider", PROVIDER, "--task", task),
        has("creating task", "Step: ", "completed successfully"),
    )


def refusal(user, root):
    base = ["fine-tuning", "create-task", "--provider", PROVIDER, "--model", MODEL, "--config-path", TRAINING]
    try:
        return user(*base, "--dataset", root)
    except Failed as error:
        return str(error)


def wait_for(user, task, state):
    """Asks the provider itself: a start of the command line takes seconds."""
    url = f"{NETWORK['provider_url']}/v1/user/{user.account['address']}/task/{task}"

    def look():
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)
        if found["progress"] in ("Failed", "Cancelled") and found["progress"] != state:
            raise RuntimeError(f"the task is {found['progress']}: {found.get('failureReason')}")
        return found["progress"] == state

    wait_until(f"{state} of {task}", 240, look)


def deliveries(user, task, root):
    acknowledge = ["fine-tuning", "acknowledge-model", "--provider", PROVIDER]
    CELLS.passes(
        "acknowledge_model, tee", lambda: user(*acknowledge, "--task-id", task, "--data-path", "tee.bin", "--download-method", "tee"),
        has("Acknowledged model", "LoRA model downloaded from TEE"),
    )
    wait_for(user, task, "Finished")
    CELLS.passes(
        "decrypt_model",
        lambda: user("fine-tuning", "decrypt-model", "--provider", PROVIDER, "--task-id", task, "--encrypted-model", "tee.bin", "--output", "model.zip"),
        lambda text: "Decrypted model" in text and is_adapter("model.zip"),
    )
    base = ["fine-tuning", "create-task", "--provider", PROVIDER, "--config-path", TRAINING, "--dataset", root, "--model"]
    second = task_id(user(*base, "mock-model"))
    wait_for(user, second, "Delivered")
    CELLS.passes(
        "acknowledge_model, 0g-storage",
        lambda: user(*acknowledge, "--task-id", second, "--data-path", "storage.bin", "--download-method", "0g-storage"),
        has("Acknowledged model"),
    )
    wait_for(user, second, "Finished")
    third = task_id(user(*base, MODEL))
    wait_for(user, third, "Delivered")
    CELLS.passes(
        "acknowledge_model, auto",
        lambda: user(*acknowledge, "--task-id", third, "--data-path", "auto.bin", "--deploy", "--model", MODEL),
        has("Acknowledged model", "Adapter name: ft-Qwen2-5-0-5B-Instruct-", "You can now chat with it."),
    )
    wait_for(user, third, "Finished")
    fourth = task_id(user(*base, MODEL))
    wait_for(user, fourth, "Delivered")
    CELLS.passes(
        "acknowledge_deliverable", lambda: user("fine-tuning", "acknowledge-deliverable", "--provider", PROVIDER, "--task-id", fourth),
        has("no model hash was verified by this call"),
    )
    wait_for(user, fourth, "Finished")


def is_adapter(path):
    names = zipfile.ZipFile(path).namelist()
    return {"output_model/adapter_config.json", "output_model/adapter_model.safetensors"} <= set(names)


def adapters(user, task):
    name = f"ft-Qwen2-5-0-5B-Instruct-{task[:12]}"
    CELLS.passes("lora.resolve_adapter_name", lambda: user("fine-tuning", "get-adapter-name", "--model", MODEL, "--task-id", task), has(name))
    deploy = ["fine-tuning", "deploy-adapter", "--provider", PROVIDER, "--wait"]
    CELLS.passes("lora.deploy_adapter", lambda: user(*deploy, "--model", MODEL, "--task-id", task), has(f"Adapter name: {name}", "Adapter state: "))
    CELLS.passes("lora.deploy_adapter_by_name", lambda: user(*deploy, "--adapter-name", name), has("Adapter is already deployed and active!"))
    CELLS.passes(
        "lora.chat", lambda: user("fine-tuning", "chat", "--provider", PROVIDER, "--model", MODEL, "--task-id", task, "--message", "Who are you?"),
        has(f"Adapter model name: {name}", "Assistant: ", " prompt + "),
    )


def inference(user):
    one = lambda *arguments: user("inference", *arguments)
    CELLS.passes("inference.list_service", lambda: one("list-providers"), has(PROVIDER, MODEL))
    CELLS.passes("inference.get_provider_models", lambda: one("get-models", "--provider", PROVIDER), has(MODEL))
    CELLS.passes("inference.acknowledge_provider_signer", lambda: one("acknowledge-provider", "--provider", PROVIDER))
    CELLS.passes("inference.get_account_with_detail", lambda: user("get-sub-account", "--provider", PROVIDER, "--service", "inference"), has("Inference"))
    CELLS.passes("inference.verify_service", lambda: one("verify", "--provider", PROVIDER, "--output-dir", "audit"), has("✅ MATCH", "✅ PASSED"))
    CELLS.passes(
        "inference.download_quote_report", lambda: one("download-report", "--provider", PROVIDER, "--output", "quote.json"),
        lambda _: "report_data" in json.loads(Path("quote.json").read_text()),
    )
    printed = CELLS.passes(
        "inference.get_secret", lambda: one("get-secret", "--provider", PROVIDER, "--token-id", "3", "--duration", "0"),
        lambda text: chat_status(secret(text)) == 200,
    )
    CELLS.passes(
        "inference.revoke_api_key", lambda: one("revoke-token", "--provider", PROVIDER, "--token-id", "3"),
        lambda _: wait_until("the revocation", 30, lambda: chat_status(secret(printed)) == 401),
    )
    CELLS.passes("inference serve", lambda: serve(user), lambda reply: reply["choices"][0]["message"]["content"] is not None)
    CELLS.passes("inference.revoke_all_tokens", lambda: one("revoke-all-tokens", "--provider", PROVIDER))
    CELLS.passes(
        "inference.get_request_headers after revoke_all_tokens",
        lambda: one("get-secret", "--provider", PROVIDER, "--token-id", "5", "--duration", "60000"),
        lambda text: chat_status(secret(text)) == 200,
    )


def secret(printed):
    return re.search(r"Authorization: Bearer (app-sk-[A-Za-z0-9+/=]+)", printed)[1]


def chat_status(token):
    return post(f"{NETWORK['provider_url']}/v1/proxy/chat/completions", {"Authorization": f"Bearer {token}"}).status


def post(url, headers):
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8})
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json", **headers})
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        return error


def serve(user):
    """The local OpenAI server of the command line, asked once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with open("serve.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [*PROGRAM, "inference", "serve", "--provider", PROVIDER, "--host", "127.0.0.1", "--port", port],
            env=user.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )

    def ask():
        if server.poll() is not None:
            raise Failed(f"the server ended: {Path('serve.log').read_text()}")
        try:
            reply = post(f"http://127.0.0.1:{port}/v1/chat/completions", {})
        except urllib.error.URLError:
            return None
        return json.load(reply)

    try:
        return wait_until("the local server", 60, ask)
    finally:
        server.kill()
        server.wait()


def queue(user, root):
    """While one user's task is unfinished, another is asked whether to queue, and both answers work."""
    other = User(1).configure()
    other("add-account", "--amount", "3")
    other("transfer-fund", "--provider", PROVIDER, "--amount", "1", "--service", "fine-tuning")
    base = ["fine-tuning", "create-task", "--provider", PROVIDER, "--model", MODEL, "--dataset", root, "--config-path", LONG]
    blocking = task_id(user(*base))
    cancel = ["fine-tuning", "cancel-task", "--provider", PROVIDER, "--task"]
    CELLS.passes(
        "create_task behind a queue", lambda: other(*base, given="yes\n"), has("There are 1 tasks in the queue.", "Created Task ID:")
    )
    queued = wait_until("the queued task", 30, lambda: latest(other))
    other(*cancel, queued)
    try:
        other(*base, given="no\n")
    except Failed as refused:
        assert "User opted not to continue" in str(refused), refused
    user(*cancel, blocking)


def latest(user):
    url = f"{NETWORK['provider_url']}/v1/user/{user.account['address']}/task?latest=true"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)
    return found and found[0]["id"]


def owner(user):
    """The two calls that the contracts give to their owner; the network's owner acknowledges again by itself."""
    own = User(0).configure()
    CELLS.passes("revoke_tee_signer_acknowledgement", lambda: own("fine-tuning", "revoke", "--provider", PROVIDER), has("revoked successfully"))
    wait_until("the service to be back", 30, lambda: has(PROVIDER)(user("fine-tuning", "list-providers")))
    CELLS.passes("acknowledge_tee_signer_by_owner", lambda: own("fine-tuning", "ack-provider", "--provider", PROVIDER), has("acknowledged successfully"))


def withdraw(user):
    for method, service in {"ledger.retrieve_fund": "fine-tuning", "ledger.retrieve_fund_from_provider": "inference"}.items():
        chosen = ["--provider", PROVIDER] if service == "inference" else []
        work = lambda service=service, chosen=chosen: (
            user("retrieve-fund", "--service", service, *chosen)
            if chosen
            else user.at_terminal("retrieve-fund", "--service", service, keys=[("Select provider", ENTER)])
        )
        CELLS.passes(method, work, has("Funds retrieved from"))


def refunds():
    """After the lock time: the money comes back into the ledger and out of it."""
    user = User(4).configure()
    before = available(user)
    CELLS.passes(
        "ledger.retrieve_fund after the lock time",
        lambda: [user("retrieve-fund", "--service", service, "--provider", PROVIDER) for service in ("fine-tuning", "inference")],
        lambda _: available(user) > before + 2.5,
    )
    CELLS.passes("ledger.refund", lambda: user("refund", "--amount", "2"), has("Refunded amount: 2 0G"))


def available(user):
    """0G in the ledger and not with a provider."""
    row = next(line for line in user("get-account").splitlines() if "Available for transfer" in line)
    return float(re.search(r"[0-9]+\.[0-9]+", row)[0])


run({"walk": walk, "refunds": refunds}[sys.argv[1]])
