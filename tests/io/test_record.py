"""A record tells whether a result is still that of its request."""

import os
from pathlib import Path

from nnunet_softseg.io.results import (
    changed_keys,
    changed_outputs,
    describe_source,
    json_copy,
    load_record,
    output_hashes,
    source_changed,
    write_json,
)


def test_a_request_is_the_same_after_json() -> None:
    request = json_copy({"labels": (1, 2), 3: None})
    assert changed_keys({**request, "more": 1}, request) == []
    assert changed_keys({"labels": [1, 3]}, request) == ["labels", "3"]


def test_what_is_no_record_is_none(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    assert load_record(file) is None
    for broken in ("{", "[1]", "\xff"):
        file.write_bytes(broken.encode("latin-1"))
        assert load_record(file) is None
    write_json(file, {"request": {}})
    assert load_record(file, "request") == {"request": {}}
    assert load_record(file, "request", "outputs") is None


def test_outputs_that_are_missing_changed_or_unfinished_are_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file in files:
        file.write_text("1", encoding="utf-8")
    recorded = output_hashes(tmp_path, files)
    assert changed_outputs(tmp_path, recorded) == []
    files[0].unlink()
    files[1].write_text("2", encoding="utf-8")
    assert changed_outputs(tmp_path, {**recorded, "c": None}) == ["a", "b", "c"]
    assert changed_outputs(tmp_path, recorded, [files[2], tmp_path / "d"]) == ["d"]


def test_a_copied_source_is_the_same_a_changed_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1", encoding="utf-8")
    described = describe_source(file)
    os.utime(file, ns=(0, 0))
    assert not source_changed(file, described)
    file.write_text("2", encoding="utf-8")
    os.utime(file, ns=(0, 0))
    assert source_changed(file, described)
    file.unlink()
    assert source_changed(file, described)
