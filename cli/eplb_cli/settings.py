"""Reads the topology that eplb.toml and the variables EPLB_* describe, for options that were not typed.

The command line comes first, then the environment, then the file, then the default of the option. A value of the file
or the environment is a text that the option parses and checks as if it had been typed.
"""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Final, NamedTuple

CONFIG_FILE: Final = "eplb.toml"
CONFIG_VARIABLE: Final = "EPLB_CONFIG"

SETTINGS: Final = {
    "ranks": "R",
    "nodes": "N",
    "redundant": "K",
    "groups": "G",
    "engine": "E",
    "engine-option": "NAME=VALUE",
    "model": "NAME",
    "calibration": "GPU",
}
"""{key of the file: placeholder of the option --key in help}; with another one the option means something else."""

_TOPOLOGY: Final = ("ranks", "nodes", "redundant")
_ENGINE: Final = ("engine", "engine-option")
_TIME: Final = ("model", "calibration")

_NOT_WITH: Final[dict[str, tuple[str, ...]]] = {
    "--previous": (*_TOPOLOGY, "groups", *_TIME),
    "--mindie-config": _TOPOLOGY,
    "--pareto": _ENGINE,
    "--decode-load": ("groups",),
    "--plan": ("redundant",),
    "--engine": ("engine-option",),
    "--dispatch": _ENGINE,
    "--sources": _TIME,
}
"""{typed option: keys that are not used beside it}."""

_NEEDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "plan": dict.fromkeys(_TIME, ("--phase",)),
    "verify": dict.fromkeys(_TIME, ("--virtual",)),
    "replay": {"groups": ("--strategies",), "redundant": ("--strategies", "--online")},
}
"""{command: {key: options of which one has to be typed for it}}."""

_NEVER: Final[dict[str, tuple[str, ...]]] = {
    "diff": _TOPOLOGY,  # of two files, which may have different ranks
    "trace synth": ("groups",),
    "calibrate": _TIME,
}
"""{command: keys that it does not take}."""

_OTHERS: Final = ("EPLB_REGISTER", "EPLB_POLICY", CONFIG_VARIABLE)
"""Beginnings of the variables that are not settings."""


class Setting(NamedTuple):
    """A value that was not typed."""

    values: tuple[str, ...]
    """One, or one for each time that the option would be typed."""
    source: str
    """The file or variable."""


def read_settings(config: Path | None, environment: Mapping[str, str]) -> dict[str, Setting]:
    """{key: value} of the environment, then of the file: the given one, else eplb.toml where there is one.

    Raises
    ------
    FormatError
        For a file that is not TOML, an unknown key, or a value that is neither text, number nor a list of these.
    OSError
        If the given file cannot be read.
    """
    path = Path(CONFIG_FILE) if config is None and Path(CONFIG_FILE).is_file() else config
    found = {} if path is None else _of_file(path)
    for key in SETTINGS:
        name = variable(key)
        if environment.get(name):
            text = environment[name]
            found[key] = Setting(tuple(text.split(",")) if key == "engine-option" else (text,), name)
    return found


def variable(key: str) -> str:
    """The environment variable of a key."""
    return f"EPLB_{key.replace('-', '_').upper()}"


def misspelt_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """{variable that is not read: the one that was probably meant}."""
    known = [variable(key) for key in SETTINGS]
    unknown = [name for name in environment if name.startswith("EPLB_") and not name.startswith(_OTHERS)]
    close = {name: get_close_matches(name, known, n=1, cutoff=0.8) for name in unknown if name not in known}
    return {name: of[0] for name, of in close.items() if of}


def applicable(command: str, settings: Mapping[str, Setting], typed: Collection[str]) -> dict[str, Setting]:
    """The settings that a command uses beside the options that were typed."""
    left_out = {key for option in typed for key in _NOT_WITH.get(option, ())}
    left_out |= {key for key, options in _NEEDS.get(command, {}).items() if not set(options) & set(typed)}
    left_out |= {key for key in settings if f"--{key}" in typed or key in _NEVER.get(command, ())}
    used = {key: setting for key, setting in settings.items() if key not in left_out}
    known = {*used, *(name.removeprefix("--") for name in typed)}
    return {key: setting for key, setting in used.items() if key not in _TIME or known.issuperset(_TIME)}


def described(settings: Mapping[str, Setting]) -> list[str]:
    """A line for each source: "from eplb.toml: ranks = 32, nodes = 4"."""
    shown: dict[str, list[str]] = {}
    for key, setting in settings.items():
        shown.setdefault(setting.source, []).append(f"{key} = {','.join(setting.values)}")
    return [f"from {source}: {', '.join(parts)}" for source, parts in shown.items()]


def _of_file(path: Path) -> dict[str, Setting]:
    from eplb_cli.arguments.toml_file import read_toml

    found = {}
    for key, value in read_toml(path, SETTINGS).items():
        parts = value if isinstance(value, list) else [value]
        texts = tuple(_text(part, f"{path}: {key}") for part in parts)
        found[key] = Setting(texts if key == "engine-option" else (",".join(texts),), str(path))
    return found


def _text(value: object, place: str) -> str:
    from eplb.errors import FormatError

    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FormatError(f"{place} = {value!r}: expected a text or a number, or a list of them")
    return str(value)
