"""A place in an object store (`s3://bucket/...`), with what of `pathlib.Path` is used of bags and stores.

`recap_station.storage` says what stands behind it; nothing else needs to know of this module.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, cast

INSTALL = ".venv/bin/pip install --no-deps -r requirements-machines.txt"
CACHE = "RECAP_CACHE"  # folder of what is fetched; it may be deleted while nobody is at work
_SPARE_BYTES = 1 << 30  # left free on the disk that is fetched to
_TRIES = 3  # for an object that others replace meanwhile


class StorageError(OSError):
    """A remote place cannot be read or written. One readable line."""


class RemotePath(os.PathLike[str]):
    """A place in an object store, with what of `pathlib.Path` is used of bags and stores. Folders are there
    as long as something is in them."""

    def __init__(self, protocol: str, full: str, tree: Mapping[str, Any] | None = None):
        self.protocol = protocol
        self.full = os.path.normpath(full.strip("/")) if full.strip("/") else ""
        if not self.full or self.full.startswith(".."):
            raise StorageError(f"{protocol}://{full}: wanted {protocol}://BUCKET/..., found no bucket")
        self.bucket, _, self.key = self.full.partition("/")
        self._tree = tree
        self._pure = PurePosixPath("/" + self.full)
        self.name, self.stem, self.suffix = self._pure.name, self._pure.stem, self._pure.suffix

    # --- as a value -----------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.protocol}://{self.full}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __reduce__(self) -> Any:
        return RemotePath, (self.protocol, self.full)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: object) -> bool:
        return str(self) < str(other)

    def __truediv__(self, other: str | os.PathLike[str]) -> RemotePath:
        return RemotePath(self.protocol, f"{self.full}/{other}", self._tree)

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.protocol, str(self._pure.parent))

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def is_absolute(self) -> bool:
        return True

    # --- what is there --------------------------------------------------------------------------------

    @property
    def fs(self) -> Any:
        try:
            import fsspec

            return fsspec.filesystem(self.protocol, use_listings_cache=False)
        except ImportError as error:
            raise StorageError(f"{self}: {error}; {INSTALL}") from error

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns what a store's library raises into one line that says what to do."""
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise StorageError(f"{self}: there is no bucket {self.bucket!r}") from error
            raise
        except Exception as error:
            kind = type(error).__name__
            if kind == "NoCredentialsError":
                hint = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or aws configure"
                raise StorageError(f"{self}: {hint}") from error
            if isinstance(error, FileExistsError):
                raise
            what = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise StorageError(f"{self}: {kind}: {what}".replace("\n", " ")) from error

    def _info(self) -> dict[str, Any] | None:
        """What the store says of the object; None where there is none."""
        if self._tree is not None:
            return self._tree.get(self.full)
        with suppress(FileNotFoundError), self.told():
            info = self.fs.info(self.full)
            return info if info["type"] == "file" else None
        return None

    def is_file(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        return not self.is_file() and any(True for _ in self.iterdir())

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in a folder; nothing where there is no such folder."""
        if self._tree is None:
            with suppress(FileNotFoundError), self.told():
                listed = self.fs.ls(self.full, detail=True)
                known = {one["name"].strip("/"): one for one in listed if one["type"] == "file"}
                for one in listed:
                    name = one["name"].strip("/")
                    if name != self.full:
                        tree = known if name in known else None
                        yield RemotePath(self.protocol, name, tree)
            return
        begin = self.full + "/"
        below = {key[len(begin) :].partition("/")[0]: None for key in self._tree if key.startswith(begin)}
        yield from (self / name for name in below if name)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files and folders by a pattern whose every part fits within one name."""
        first, _, rest = pattern.partition("/")
        for one in sorted(self.iterdir()):
            if fnmatchcase(one.name, first):
                if rest:
                    yield from RemotePath(self.protocol, one.full).glob(rest)
                else:
                    yield one

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Files anywhere below, by name."""
        whole = self.surveyed()
        for key in whole._tree or {}:
            if fnmatchcase(key.rpartition("/")[2], pattern):
                yield RemotePath(self.protocol, key, whole._tree)

    def surveyed(self) -> RemotePath:
        """This place with a list of everything below it, by which questions about it are answered."""
        with self.told():
            found = self.fs.find(self.full, detail=True)
        return RemotePath(self.protocol, self.full, {key.strip("/"): one for key, one in found.items()})

    def stat(self) -> os.stat_result:
        """st_size; st_mtime and st_mtime_ns to the second; st_ino: a number that changes with the content.
        A folder is as new as the newest in it. Raises FileNotFoundError."""
        info = self._info()
        if info is None:
            inside = [one.stat() for one in self.iterdir() if one.is_file()]
            if not inside:
                raise FileNotFoundError(f"{self}: there is no such object or folder")
            return max(inside, key=lambda stat: stat.st_mtime_ns)
        changed = next((info[key] for key in ("LastModified", "updated", "created") if info.get(key)), 0)
        seconds = int(changed.timestamp() if hasattr(changed, "timestamp") else 0)
        number = int(_digest([_version(info)])[:14], 16)
        times = {"st_mtime": float(seconds), "st_mtime_ns": seconds * 10**9}
        found = SimpleNamespace(st_size=int(info["size"]), st_ino=number, **times)
        return cast(os.stat_result, found)

    # --- reading --------------------------------------------------------------------------------------

    def __fspath__(self) -> str:
        """Its copy on this machine, fetched where it is not there in this version: for reading alone."""
        folder = os.environ.get(CACHE) or Path.home() / ".cache" / "recap"
        return str(self.fetch(Path(folder)))

    def fetch(self, cache: Path) -> Path:
        """Copy the object, or the objects of a folder, into a cache → where. Files that have not changed are
        not fetched again. Raises FileNotFoundError, StorageError."""
        for _ in range(_TRIES):
            own = RemotePath(self.protocol, self.full)
            files = [own] if own.is_file() else [one for one in own.iterdir() if one.is_file()]
            if not files:
                raise FileNotFoundError(f"{self}: there is no such object or folder")
            stats = {file: file.stat() for file in files}
            tree = cache / "trees" / _digest(sorted(_mark(*one) for one in stats.items()))
            if (tree / own.name).exists():
                return tree / own.name
            blobs = {file: file._blob(stat, cache / "blobs") for file, stat in stats.items()}
            if all(blobs.values()):
                break
        else:
            raise StorageError(f"{self}: it is being changed all the time")
        (cache / "trees").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / "trees", prefix=".new-") as building:
            new = Path(building) / "tree" / own.name
            (new.parent if files == [own] else new).mkdir(parents=True)
            for file, blob in blobs.items():
                os.link(cast(Path, blob), new if file == own else new / file.name)
            with suppress(OSError):  # another was faster: then that one's is as good
                os.replace(new.parent, tree)
        return tree / own.name

    def _blob(self, stat: os.stat_result, blobs: Path) -> Path | None:
        """The object's bytes in the version that `stat` is of; None where that is there no more."""
        blob = blobs / _digest([_mark(self, stat)])
        if blob.exists():
            return blob
        blobs.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(blobs).free < stat.st_size + _SPARE_BYTES:
            raise StorageError(f"{self}: no room for its {stat.st_size >> 20} MiB in {blobs} (${CACHE})")
        handle, temporary = tempfile.mkstemp(dir=blobs, prefix=".new-")
        os.close(handle)
        try:
            with self.told():
                self.fs.get_file(self.full, temporary)
            now = RemotePath(self.protocol, self.full).stat()
            if (now.st_size, now.st_ino) != (stat.st_size, stat.st_ino):
                return None
            os.chmod(temporary, 0o444)
            os.replace(temporary, blob)
            return blob
        except FileNotFoundError:
            return None
        finally:
            Path(temporary).unlink(missing_ok=True)

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        """Its copy on this machine, to be read."""
        if set(mode) - set("rbt"):
            raise StorageError(f"{self}: objects are put in place whole, not opened for writing")
        return open(self, mode, *arguments, **options)

    def read_bytes(self) -> bytes:
        with self.told():
            return bytes(self.fs.cat_file(self.full))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_versioned(self) -> tuple[bytes, str]:
        """Its bytes and their version, for `replace_if`; none and "" where there is no such object."""
        for _ in range(_TRIES):
            own = RemotePath(self.protocol, self.full)
            info = own._info()
            if info is None:
                return b"", ""
            data = own.read_bytes()
            if own._info() == info:
                return data, _version(info)
        raise StorageError(f"{self}: it is being changed all the time")

    # --- writing --------------------------------------------------------------------------------------

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Folders need not be made; buckets are not made here."""

    def replace_by(self, write: Callable[[Path], Any]) -> None:
        """Let `write` fill a file of this machine, then put it in place in one step."""
        with tempfile.TemporaryDirectory(prefix="recap-put-") as folder:
            temporary = Path(folder) / self.name
            write(temporary)
            with self.told():
                self.fs.put_file(str(temporary), self.full)

    def replace_if(self, data: bytes, found: str) -> bool:
        """Put bytes in place of the version that was read ("": of nothing) → whether it was still that.

        Raises StorageError where the store has no conditional PUT.
        """
        if not hasattr(self.fs, "call_s3"):
            raise StorageError(f"{self}: wanted s3, whose PUT can be conditional, for what two may write")
        condition = {"IfMatch": found} if found else {"IfNoneMatch": "*"}
        try:
            self.fs.call_s3("put_object", Bucket=self.bucket, Key=self.key, Body=data, **condition)
        except FileExistsError:
            return False
        except OSError as error:
            if "pre-condition" in str(error):
                return False
            with self.told():
                raise
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        if not self.is_file():
            if not missing_ok:
                raise FileNotFoundError(f"{self}: there is no such object")
            return
        with self.told():
            self.fs.rm_file(self.full)


def _version(info: Mapping[str, Any]) -> str:
    """An object's version: its ETag where it has one, else when it was written."""
    return str(next((info[k] for k in ("ETag", "etag", "updated", "created") if info.get(k)), info["size"]))


def _mark(where: RemotePath, stat: os.stat_result) -> str:
    return f"{where} {stat.st_size} {stat.st_ino}"


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
