"""The operator's console with what is recorded: `recap_teleop`'s node, the learner's episodes and runs."""

from __future__ import annotations

from pathlib import Path

from recap.console_archive import StoreArchive
from recap_station.nodes.base import run
from recap_teleop.console.archive import Archive
from recap_teleop.nodes import console_node


class ConsoleNode(console_node.ConsoleNode):
    def archive(self) -> Archive:
        folders = (Path(self.param(name)).expanduser() for name in ("episode_dir", "bag_dir", "runs_dir"))
        return StoreArchive(*folders)


def main() -> None:
    run(ConsoleNode)


if __name__ == "__main__":
    main()
