"""The demo: what it shows of a stock command under way, and of one that fails."""

import json
import os
from pathlib import Path

import pytest

from nnunet_softseg.errors import UserError
from nnunet_softseg.phantom import demo

TELLS = r"^.*: (epoch \d+/\d+, .*)$"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> demo.Demo:
    """A stock command that says how far it is, and fails if its argument is 1."""
    command = tmp_path / "nnUNetv2_stand_in"
    command.write_text(
        "#!/bin/sh\necho started\necho\necho '2026: epoch 3/10, about 4 min to go'\necho last line\nexit $1\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "logs").mkdir()
    return demo.Demo(tmp_path, 1)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_a_command_shows_how_far_it_is_and_no_empty_bar(here: demo.Demo, capsys, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(demo.tqdm, "set_description_str", lambda _, text: shown.append(text))
    demo._nnunet(here, "train", "nnUNetv2_stand_in", ["0"], tells=TELLS)
    assert shown == ["train: epoch 3/10, about 4 min to go"]
    assert "|" not in capsys.readouterr().err
    assert (here.output / "logs" / "train.txt").read_text().splitlines()[-1] == "last line"


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_of_a_command_that_does_not_say_how_far_it_is_nothing_is_shown(here: demo.Demo, monkeypatch) -> None:
    """It prints an empty line, as nnU-Net's planner does."""
    shown = []
    monkeypatch.setattr(demo.tqdm, "set_description_str", lambda _, text: shown.append(text))
    demo._nnunet(here, "plan", "nnUNetv2_stand_in", ["0"])
    assert not shown


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_a_command_that_fails_is_told_with_its_last_line(here: demo.Demo) -> None:
    with pytest.raises(UserError, match=r"stand_in failed \(exit code 1\): last line; see .*train.txt"):
        demo._nnunet(here, "train", "nnUNetv2_stand_in", ["1"], tells=TELLS)


def test_a_demo_of_another_seed_or_version_does_not_pass_for_that_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: demo.Demo) -> None:
        raise KeyError("begun")

    demo._once(demo.Demo(tmp_path, 1, seed=3), "phantom", "phantom", lambda: None)
    monkeypatch.setattr(demo, "_steps", begin)
    stamps = tmp_path / "steps_done.json"
    record = stamps.read_bytes()
    with pytest.raises(KeyError, match="begun"):
        demo.demo(tmp_path, seed=3)
    told = r"a demo of seed 3 of version (\S+), expected one of seed 7 of version \1: choose another folder"
    with pytest.raises(UserError, match=told):
        demo.demo(tmp_path, seed=7)
    monkeypatch.setattr(demo, "__version__", "99")
    with pytest.raises(UserError, match="expected one of seed 3 of version 99"):
        demo.demo(tmp_path, seed=3)
    stamps.write_text(json.dumps({"phantom": {"seconds": 1, "version": "99"}}))
    with pytest.raises(UserError, match="holds a demo of seed unknown of version 99"):
        demo.demo(tmp_path, seed=3)
    assert json.loads(record)["phantom"].keys() == {"seconds", "seed", "version"}


def test_the_trainers_print_the_line_that_the_demo_shows(tmp_path: Path) -> None:
    import re

    from nnunet_softseg.training.training_log import progress_line

    line = f"2026-11-28 22:13:20.869907: {progress_line([0.0, 60.0], [60.0, 120.0], 10)}"
    match = re.match(TELLS, line)
    assert match
    assert match[1] == "epoch 2/10, about 8 min to go"
    assert TELLS in Path(demo.__file__).read_text()
