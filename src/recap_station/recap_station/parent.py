"""Processes that must not outlive the one that started them: a cell never runs on unattended.

A bring-up that is interrupted ends its nodes itself; one that is killed cannot. The kernel then does it
(Linux, prctl(2) PR_SET_PDEATHSIG): it sends SIGINT, at which nodes close their bags and end.
"""

from __future__ import annotations

import ctypes
import os
import signal

from recap_station.contract import ContractError

STARTER = "RECAP_STARTED_BY"  # process id of the bring-up, in the environment of the nodes it starts

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: int = signal.SIGINT) -> None:
    """A signal to this process when its parent ends, however that ends. Lasts over exec; children do not
    inherit it. Fit for `subprocess.Popen(preexec_fn=...)`."""
    if _LIBC.prctl(_PR_SET_PDEATHSIG, number) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def end_with_starter() -> None:
    """As `end_with_parent` where a bring-up started this process; one started by hand goes on by itself.

    Raises ContractError where that bring-up has gone already.
    """
    starter = os.environ.get(STARTER, "")
    if not starter:
        return
    end_with_parent()
    try:
        os.kill(int(starter), 0)
    except (ValueError, ProcessLookupError):
        raise ContractError(f"bring-up {starter}, which started this node, is gone") from None
    except PermissionError:
        return  # it is there, under another user
