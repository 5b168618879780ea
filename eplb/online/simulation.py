"""`eplb.simulate`: replays a history step by step under several replanning policies."""

from collections.abc import Sequence

from eplb.arguments.accepted import LoadLike, accepted_load, accepted_topology
from eplb.core.topology import Topology
from eplb.online.replay import POLICIES, Replay, Served
from eplb.online.replay import simulate as replayed
from eplb.online.settings import OnlineSettings


def simulate(  # noqa: PLR0913  # the public call: a history and the settings of its replay
    load: LoadLike,
    topology: Topology,
    policies: Sequence[str] = tuple(POLICIES),
    *,
    interval: int | None = None,
    settings: OnlineSettings | None = None,
    expert_bytes: float | None = None,
    seed: int = 0,
) -> tuple[Served, ...]:
    """Replay a history and replan every interval: balance, moves and stall of each policy.

    Parameters
    ----------
    load
        The history, one window a step, in order of time, in any form that `plan` takes.
    topology
        Ranks, nodes and slots.
    policies
        Names of `eplb.online.replay.POLICIES`.
    interval
        Steps between two replans of every policy; None: those of the settings, 20 by default.
    settings
        Of the policy `incremental`, but for `plan_steps`: a plan takes effect at once. Their dispatch rule and sources
        hold for every policy.
    expert_bytes
        Bytes of one expert of one layer; None: those of the settings, or of the recording.
    seed
        For randomised strategies.

    Raises
    ------
    InputError
        If the history is shorter than two intervals; UnknownNameError for a policy that there is not.

    Examples
    --------
    >>> import eplb
    >>> history = eplb.datasets.moe_435m_windows().select(slice(0, 60))
    >>> topology = eplb.Topology.for_experts(256, num_ranks=32, num_redundant=32)
    >>> never, full = eplb.simulate(history, topology, ["never", "full"])
    >>> never.moved_copies, full.moved_copies > 0
    (0, True)
    """
    online = OnlineSettings() if settings is None else settings
    replay = Replay(
        load=accepted_load(load),
        topology=accepted_topology(topology),
        interval=online.interval if interval is None else interval,
        online=online,
        expert_bytes=online.expert_bytes if expert_bytes is None else expert_bytes,
        seed=seed,
    )
    return replayed(replay, policies)
