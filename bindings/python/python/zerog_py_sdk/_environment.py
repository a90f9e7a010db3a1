"""Settings from the environment and from a file in ``.env`` form."""

from __future__ import annotations

import os

from .exceptions import ConfigurationError


def read_settings(env_file: str) -> dict[str, str]:
    """The variables of the file, under those of the environment. A file that is not there is no error."""
    settings: dict[str, str] = {}
    try:
        with open(env_file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip().removeprefix("export ").strip()
                if not text or text.startswith("#"):
                    continue
                name, equals, value = text.partition("=")
                if not equals or not name.strip().isidentifier():
                    raise ConfigurationError(f"{env_file}:{number}: write NAME=value")
                settings[name.strip()] = _unquoted(value.strip())
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{env_file} cannot be read: {error}") from None
    settings.update(os.environ)
    return settings


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()
