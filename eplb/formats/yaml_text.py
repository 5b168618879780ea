"""Parses YAML text as PyYAML's safe loader does; duplicate keys are refused, of which that loader keeps the last.

libyaml, the fast parser of PyYAML, comes first where it is built in and the text is plain; everything else is read by
the parser in Python, which engines use.
"""

import re
from contextlib import suppress

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from eplb.errors import FormatError

# Both parsers take quadratic time or all of the stack for collections nested thousands deep.
_MAX_DEPTH = 100
_DEEP_BLOCK = re.compile(rf"(?:[-?] +){{{_MAX_DEPTH},}}")
# With other characters, as tabs, tags and directives, libyaml accepts texts that the parser in Python refuses.
_PLAIN = re.compile(r"[A-Za-z0-9_+.,:#'\"\[\]{}\n -]*")
_INTEGER = "tag:yaml.org,2002:int"
_BRACKET = re.compile(r"[\[\]{}]")


class _UniqueKeys(SafeConstructor):
    """Refuses a mapping that has a key twice, before merge keys (``<<``) add others."""

    def construct_document(self, node: yaml.Node) -> object:
        visited: set[int] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if id(one) in visited or not isinstance(one, yaml.CollectionNode):
                continue
            visited.add(id(one))
            if isinstance(one, yaml.MappingNode):
                self._check_keys(one)
                waiting += [part for pair in one.value for part in pair]
            else:
                waiting += one.value
        return super().construct_document(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConstructorError(None, None, f"key {key!r} is given twice in one mapping", key_node.start_mark)
            seen.add(key)


class _PythonLoader(_UniqueKeys, yaml.SafeLoader):
    pass


if yaml.__with_libyaml__:

    class _FastLoader(_UniqueKeys, yaml.CSafeLoader):
        """Decides once for each text whether a scalar is an integer, and which: a file repeats few ids many times."""

        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._tag_of: dict[tuple[object, object, object], str] = {}
            self._integer_of: dict[str, object] = {}

        def resolve(self, kind: type[yaml.Node], value: str | None, implicit: object) -> str:
            key = (kind, value, implicit)
            if key not in self._tag_of:
                self._tag_of[key] = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
            return self._tag_of[key]

        def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
            if node.tag != _INTEGER or not isinstance(node, yaml.ScalarNode):
                return super().construct_object(node, deep)
            if node.value not in self._integer_of:
                self._integer_of[node.value] = super().construct_object(node, deep)
            return self._integer_of[node.value]

else:
    _FastLoader = _PythonLoader  # type: ignore[assignment,misc,unused-ignore]


def parse_yaml(text: str, place: str) -> object:
    """The value of the one YAML document in a text: dicts, lists, strings, numbers, booleans, dates and None.

    Raises
    ------
    FormatError
        With line and column of what is not YAML, or of a key that is given twice.
    """
    _check_depth(text, place)
    try:
        with suppress(yaml.YAMLError):
            if _PLAIN.fullmatch(text):
                return yaml.load(text, _FastLoader)
        return yaml.load(text, _PythonLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1} column {mark.column + 1}"
        raise FormatError(f"{place}: not YAML{where}: {error.problem}") from error
    except Exception as error:  # PyYAML's constructors pass on what int() or a dictionary raises for a wrong tag
        raise FormatError(f"{place}: not YAML: {str(error).splitlines()[0] if str(error) else 'no value'}") from error


def _check_depth(text: str, place: str) -> None:
    depth, is_deep = 0, _DEEP_BLOCK.search(text) is not None
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        is_deep |= depth > _MAX_DEPTH
    if is_deep:
        raise FormatError(f"{place}: collections nested more than {_MAX_DEPTH} deep: expected a list under each layer")
