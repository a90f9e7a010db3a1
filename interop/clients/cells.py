"""One line of JSON for every method that a client ran: what happened, and whose doing it was if it did not work."""

import json
import os
import re
import sys
import time
import traceback


class Stop(Exception):
    """A step failed that everything after it rests on."""


class Cells:
    """The column of one client in the table."""

    def __init__(self, client):
        self.client = client
        self._file = open(os.environ["INTEROP_RESULTS"], "a", encoding="utf-8")

    def passes_prepared(self, method, why, instead, work, check):
        """As `passes`, for what works only after a preparation that is no part of the client: `why` names it."""
        return self.passes(method, work, check, result="pass with preparation", reason=why, instead=instead)

    def passes(self, method, work, check=None, result="pass", **note):
        """Runs `work`, which must not raise, and `check` on its value; returns the value."""
        started = time.monotonic()
        try:
            value = work()
            if check is not None:
                if not check(value):
                    raise AssertionError(f"unexpected value: {value!r}")
        except Exception as error:
            traceback.print_exc()
            self._write(method, "fail", started, reason=describe(error))
            raise Stop(method) from error
        self._write(method, result, started, **note)
        return value

    def client_bug(self, method, expected, why, instead, work):
        """Runs `work`, which must fail with `expected` because of the client itself.

        A client that suddenly works here fails the suite, so that the table never blames it wrongly.
        """
        self._must_fail(method, "client bug", expected, why, instead, work)

    def needs_public_network(self, method, expected, why, instead, work):
        """Runs `work`, which must fail with `expected` because it goes to a machine of the public network."""
        self._must_fail(method, "needs a public network", expected, why, instead, work)

    def _must_fail(self, method, result, expected, why, instead, work):
        started = time.monotonic()
        try:
            value = work()
        except Exception as error:
            if re.search(expected, describe(error), re.DOTALL):
                self._write(method, result, started, reason=why, instead=instead)
                return
            traceback.print_exc()
            self._write(method, "fail", started, reason=f"expected /{expected}/, got {describe(error)}")
            raise Stop(method) from error
        self._write(method, "fail", started, reason=f"expected /{expected}/, but it worked: {value!r}")
        raise Stop(method)

    def _write(self, method, result, started, **more):
        cell = {"client": self.client, "method": method, "result": result, **more}
        cell["seconds"] = round(time.monotonic() - started, 2)
        print(json.dumps(cell), file=self._file, flush=True)
        print(f"{cell['seconds']:7.2f} s  {result:8} {method}", flush=True)


def describe(error):
    """An error's text with the texts of what caused it."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " ← ".join(texts)[:2000]


def run(walk):
    """Ends the process with 1 when a step failed that others rest on."""
    try:
        walk()
    except Stop as stop:
        sys.exit(f"stopped at {stop}")


def wait_until(what, timeout, attempt, interval=0.5):
    """Polls `attempt` until it gives something true."""
    deadline = time.monotonic() + timeout
    while True:
        value = attempt()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(interval)
