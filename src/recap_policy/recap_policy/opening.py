"""Opening a policy wherever it is: a checkpoint's folder, or a policy server's address."""

from __future__ import annotations

from recap_policy.device import RuntimeConfig
from recap_policy.interface import LAYOUT, PolicyInterface, check_place, is_remote
from recap_policy.layout import load_layout
from recap_station.contract import ContractError, Station


def open_policy(
    place: str,
    station: Station,
    value: str = "",
    threads: int | None = None,
    layout: str = LAYOUT,
    runtime: RuntimeConfig | None = None,
) -> PolicyInterface:
    """A policy from a checkpoint's folder, or from the server at ws://host:port.

    value: folder of a value function, "" for none; layout: the server's names, see `recap_policy.layout`;
    runtime: where and how a checkpoint computes, None: "auto" (a server has settings of its own).
    Raises CheckpointError, RemoteError or ContractError.
    """
    if not is_remote(place):
        from recap_policy.runtime import Policy

        return Policy.load(place, value or None, station, threads=threads, runtime=runtime)
    check_place(place, value)
    try:
        from recap_policy.remote import RemotePolicy
    except ImportError as error:
        text = "a policy server wants msgpack and websockets 13 or later (requirements.txt)"
        raise ContractError(f"{place}: {text}: {error}") from error
    return RemotePolicy(place, station, load_layout(layout))
