"""Reading a bag at s3://: fetched whole and then read, or by ranges; from a server of this machine.

`python benchmarks/remote.py [--minutes 1] [--delay-ms 0]` puts the bag of `benchmarks/convert.py` into a
bucket of moto's server in a process of its own (pip install 'moto[server]', requirements-machines.txt) and
prints one JSON line:

- `local_s`: conversion of the bag in a folder; `remote_s`: of the bag at s3://, into a store there;
- `fetch_s`: of that, fetching it whole; `ranges_s`: the same bytes by one request for each chunk, one after
  the other, which is what reading with checksums by ranges would ask for, nothing parsed; `chunks`: how many;
- `image_ms`: one image by a request; `image_fetched_ms`: one of the bag once fetched, by pread.

Chunks and images stand there as objects of their own for that: moto's server takes as long for a range as
for the whole object. --delay-ms: added to every request in the client, as a store further away would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from convert import write_bag

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
IMAGES = 100


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, minutes: float, delay_s: float) -> dict[str, float]:
    import s3fs

    from recap_learner.data.episodes import convert_bags, load_episode
    from recap_station import storage
    from recap_station.mcap_scan import Scan

    fs = s3fs.S3FileSystem()
    fs.mkdir("lab")
    bag = folder / "bags" / "long"
    write_bag(bag, 60.0 * minutes)
    for file in bag.iterdir():
        fs.put_file(str(file), f"lab/bags/long/{file.name}")
    real = s3fs.S3FileSystem._call_s3

    async def further_away(*given: object, **named: object) -> object:
        import asyncio

        await asyncio.sleep(delay_s)
        return await real(*given, **named)

    s3fs.S3FileSystem._call_s3 = further_away
    [file] = bag.glob("*.mcap")
    there = f"lab/bags/long/{file.name}"
    result = {"local_s": seconds(lambda: convert_bags([bag], folder / "store"))}
    result["remote_s"] = seconds(
        lambda: convert_bags([storage.path("s3://lab/bags")], storage.path("s3://lab/store"))
    )
    result["fetch_s"] = seconds(lambda: os.fspath(storage.path("s3://lab/bags/long")))
    parts = [(part.start, part.end) for part in Scan(file)._layout.parts]
    places = load_episode(folder / "store/long.episode.parquet").image_at["base_camera"]
    images = [(int(at), int(size)) for _, _, at, size in places if size > 0]
    wanted = random.Random(0).choices(images, k=IMAGES)
    with open(file, "rb") as opened:
        for name, pieces in (("chunk", [(at, end - at) for at, end in parts]), ("image", wanted)):
            for number, (at, size) in enumerate(pieces):
                fs.pipe_file(f"lab/{name}/{number}", os.pread(opened.fileno(), size, at))
    result["ranges_s"] = seconds(lambda: [fs.cat_file(f"lab/chunk/{k}") for k in range(len(parts))])
    by_range = seconds(lambda: [fs.cat_file(f"lab/image/{k}") for k in range(IMAGES)])
    with open(storage.path(f"s3://{there}"), "rb", buffering=0) as fetched:
        by_pread = seconds(lambda: [os.pread(fetched.fileno(), size, at) for at, size in wanted])
    result |= {"image_ms": 1e3 * by_range / IMAGES, "image_fetched_ms": 1e3 * by_pread / IMAGES}
    return {**result, "chunks": len(parts), "bag_mb": file.stat().st_size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of recording")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="added to every request")
    given = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdin and server.stdout
    try:
        port = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as name:
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "RECAP_CACHE": f"{name}/cache",
            }
            found = measure(Path(name), given.minutes, given.delay_ms / 1e3)
    finally:
        server.stdin.close()
        server.wait(30)
    rounded = {key: round(value, 3) for key, value in found.items()}
    print(json.dumps({**rounded, "minutes": given.minutes, "delay_ms": given.delay_ms}))


if __name__ == "__main__":
    main()
