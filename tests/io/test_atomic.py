"""Files are whole or not there, whoever dies and whoever writes at the same time."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.io import results


@pytest.mark.parametrize("name", ["case.b2nd", "case_0001.nii.gz", "a.b.json", "bare"])
def test_new_content_takes_the_place_of_the_old(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    with results.replacing(path) as aside:
        aside.write_text("new")
        assert aside.parent == tmp_path
        assert aside.name.endswith("".join(path.suffixes[-2:]) if name.endswith(".gz") else path.suffix)
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_failure_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text("old")

    def write() -> None:
        with results.replacing(path) as aside:
            aside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk full, found .* MB free"), (errno.EROFS, "Read-only file system; check")],
)
def test_failed_write_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=f"cannot write .*case.b2nd: .*{message}"):
        results.write_bytes(tmp_path / "case.b2nd", b"content")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*gone"):
        results.write_json(tmp_path / "gone" / "report.json", {"a": 1})


def test_json_is_readable(tmp_path: Path) -> None:
    results.write_json(tmp_path / "report.json", {"kept": [1.0, None]})
    assert json.loads((tmp_path / "report.json").read_text()) == {"kept": [1.0, None]}


DYING = """
import os, sys
from pathlib import Path
from nnunet_softseg.io.results import replacing
with replacing(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    print(aside.name, flush=True)
    if sys.argv[2] == "die":
        os._exit(9)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="on Windows, only the age tells a dead process's file")
def test_only_leftovers_of_the_dead_are_removed(tmp_path: Path) -> None:
    def start(what: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", DYING, str(tmp_path / "case.b2nd"), what]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start("wait") as living:
        assert living.stdout is not None
        being_written = living.stdout.readline().strip()
        left = start("die").communicate(timeout=60)[0].strip()  # later: the living would remove it
        for name in (".hidden", "other.b2nd", ".case.1234-abcdef01.b2nd"):
            (tmp_path / name).touch()
        assert [file.name for file in results.remove_abandoned(tmp_path)] == [left]
        assert (tmp_path / being_written).exists()
    assert (tmp_path / "case.b2nd").read_text() == "half"
    assert (tmp_path / ".hidden").exists()


@pytest.mark.skipif(os.name == "nt", reason="on Windows, only the age tells a dead process's file")
def test_whoever_writes_next_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DYING, str(tmp_path / "case.b2nd"), "die"]
    dead = subprocess.run(command, capture_output=True, text=True, input="", timeout=60, check=False)
    left = tmp_path / dead.stdout.strip()
    assert left.is_file()
    results.write_json(tmp_path / "another.json", {})
    assert not left.exists()


def test_files_of_other_machines_are_judged_by_their_age(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        dead = process.pid  # here; there, it may well be alive
    young, old = (tmp_path / f".case.elsewhere@{dead}-0000000{index}.b2nd" for index in (1, 2))
    young.touch()
    old.touch()
    os.utime(old, (0, time.time() - results.ABANDONED_AFTER_S - 60))
    assert results.remove_abandoned(tmp_path) == [old]
    assert young.exists()


def test_missing_folder_has_no_leftovers(tmp_path: Path) -> None:
    assert results.remove_abandoned(tmp_path / "gone") == []


# Folders


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dataset"
    with results.new_folder(folder) as aside:
        (aside / "file").write_text("content")
        assert aside.parent == folder.parent
        assert not folder.exists()
    assert (folder / "file").read_text() == "content"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("name", [".", "link", "empty"])
def test_an_empty_folder_is_filled_and_stays_the_one_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is named; the shell that stands in it sees the files."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    before = folder.stat().st_ino
    monkeypatch.chdir(folder if name == "." else tmp_path)
    with results.new_folder(Path(name)) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").write_text("content")
        (aside / "table").write_text("content")
        assert [path for path in folder.iterdir() if not path.name.startswith(".")] == []
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "inner", "table"]
    assert folder.stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def test_a_folder_with_something_in_it_is_refused_at_once_and_one_filled_meanwhile_is_kept(
    tmp_path: Path,
) -> None:
    def write(folder: Path) -> None:
        with results.new_folder(folder) as aside:
            (aside / "file").write_text("mine")
            (folder / "other").write_text("theirs")

    with pytest.raises(UserError, match=r"cannot write the folder .*: Directory not empty"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for there in (tmp_path, tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="expected a new or empty folder, found something in it"):
            write(there)


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with results.new_folder(tmp_path / "dataset") as aside:
            (aside / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_a_folder_that_fails_is_told_by_the_name_it_would_have(tmp_path: Path) -> None:
    file = tmp_path / "dataset" / "file.json"

    def write() -> None:
        with results.new_folder(file.parent) as aside, results.replacing(aside / file.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=f"^{re.escape(f'cannot write {file}: disk full, found ')}"):
        write()


def test_a_folder_that_somebody_else_made_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with results.new_folder(tmp_path / "dataset") as aside:
            (aside / "file").write_text("mine")
            (tmp_path / "dataset").mkdir()
            (tmp_path / "dataset" / "file").write_text("theirs")

    with pytest.raises(UserError, match=r"cannot write the folder .*dataset"):
        write()
    assert [path.read_text() for path in tmp_path.rglob("file")] == ["theirs"]


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive, other = (
        tmp_path / f".{name}.{results._host()}@{pid}-0123abcd"
        for name, pid in (("dataset", dead.pid), ("dataset", os.getpid()), ("dataset2", dead.pid))
    )
    for folder in (left, alive, other):
        folder.mkdir()
        (folder / "file").write_text("half")
    with results.new_folder(tmp_path / "dataset"):
        assert {path for path in (left, alive, other) if path.exists()} == {alive, other}


def test_an_empty_folder_may_hold_what_the_dead_left_of_filling_it(tmp_path: Path) -> None:
    with results.new_folder(tmp_path) as aside:
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / aside.name.replace(f"@{os.getpid()}-", f"@{dead.pid}-")
    left.mkdir()
    with results.new_folder(tmp_path) as aside:
        assert not left.exists()
        (aside / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = (
        "import sys; from pathlib import Path; from nnunet_softseg.io.results import only_one\n"
        "with only_one(Path(sys.argv[1]), 'busy'): print('alone')"
    )

    def another_process() -> str:
        ended = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True, text=True)
        return (ended.stdout + ended.stderr).splitlines()[-1]

    with results.only_one(lock, "busy"):
        assert another_process().endswith("UserError: busy")
    assert another_process() == "alone"


def test_a_lock_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write .*\.lock: "),
        results.only_one(tmp_path / "file" / ".lock", "busy"),
    ):
        pass
