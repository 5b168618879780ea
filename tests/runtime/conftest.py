"""The runtime is the room that needs torch: without it none of its tests is collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
