"""Lists input devices, or prints the keys of one as they are pressed. See the package's text."""

from __future__ import annotations

import sys

from recap_station.contract import ContractError
from recap_teleop.devices import PedalLost
from recap_teleop.devices.event_device import INPUT, list_devices, watch


def main(words: list[str]) -> int:
    if len(words) > 1 or words[:1] in (["-h"], ["--help"]):
        print("usage: python -m recap_teleop.devices [PATH]   (PATH: show its keys as they are pressed)")
        return 0 if len(words) == 1 else 2
    if words:
        try:
            watch(words[0])
        except (ContractError, PedalLost) as error:
            print(getattr(error, "strerror", None) or error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
    devices = list_devices()
    for device in devices:
        keys = ", ".join(device.keys[:12]) + (
            f", … {len(device.keys)} in all" if len(device.keys) > 12 else ""
        )
        print(f"{device.path}\n    {device.problem or f'{device.name}: {keys}'}")
    if not devices:
        print(f"no input device with keys in {INPUT}", file=sys.stderr)
    return 0 if devices else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
