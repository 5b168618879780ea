"""Gives a command the fields of a dataclass as options."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import get_type_hints

Command = Callable[..., None]


def takes(name: str, group: type) -> Callable[[Command], Command]:
    """Give a command an option for each field of `group` in place of its keyword parameter `name`, before `as_json`."""
    types = get_type_hints(group, include_extras=True)
    fields = dataclasses.fields(group)
    added = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
        )
        for field in fields
    ]

    def with_group(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != name
        ]
        last = [parameter for parameter in own if parameter.name == "as_json"]
        parameters = [*(parameter for parameter in own if parameter not in last), *added, *last]

        @wraps(command)
        def with_options(**typed: object) -> None:  # as typer calls it: every option by name
            command(**{name: group(**{field.name: typed.pop(field.name) for field in fields})}, **typed)

        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        with_options.__dict__["__signature__"] = signature.replace(parameters=parameters)
        return with_options

    return with_group
