"""A checkpoint is whole or not there: damage is found by hash, the previous one is used, nothing is executed."""

import errno
import json
import os
import pickle

import pytest
import torch

from qfml.engine import checkpoint
from qfml.engine.checkpoint import read_checkpoint, write_checkpoint
from qfml.errors import CheckpointError


def write(folder, *values):
    for value in values:
        write_checkpoint(folder, {"w": torch.full((4, 3), float(value))}, {"value": value, "loss": 0.1 + 0.2})


def test_round_trip_is_exact_and_two_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3)
    tensors, state = read_checkpoint(tmp_path)
    assert state == {"value": 3, "loss": 0.1 + 0.2}
    assert torch.equal(tensors["w"], torch.full((4, 3), 3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000002", "checkpoint-00000003"]


def damage_truncate(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def damage_flip(folder):
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def damage_state(folder):
    path = folder / "state.json"
    path.write_text(path.read_text().replace("2", "3"))


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("a", "b", 1))


def damage_missing(folder):
    (folder / "state.json").unlink()


def damage_empty_manifest(folder):
    (folder / "manifest.json").write_bytes(b"")


def damage_list_manifest(folder):
    (folder / "manifest.json").write_text("[1, 2]")


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_falls_back_to_the_previous_and_says_so(tmp_path, damage):
    write(tmp_path, 1, 2)
    damage(tmp_path / "checkpoint-00000002")
    with pytest.warns(UserWarning, match=r"checkpoint-00000002 is damaged.*using checkpoint-00000001 instead"):
        _, state = read_checkpoint(tmp_path)
    assert state["value"] == 1


def test_all_damaged_or_none_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*start it anew"):
        read_checkpoint(tmp_path / "nothing")
    write(tmp_path, 1)
    damage_flip(tmp_path / "checkpoint-00000001")
    with pytest.raises(CheckpointError, match="is whole: checkpoint-00000001 is damaged"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path, monkeypatch, step):
    write(tmp_path, 1)

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr("pathlib.Path.open", full)
        else:
            patch.setattr(checkpoint.os, step, full)
        with pytest.raises(CheckpointError, match="No space left on device; the previous checkpoint is intact"):
            write(tmp_path, 2)
    assert read_checkpoint(tmp_path)[1]["value"] == 1
    assert not list(tmp_path.glob(".writing-*"))
    write(tmp_path, 3)
    assert read_checkpoint(tmp_path)[1]["value"] == 3


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_hostile_files_are_refused_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c", 1, 2)
    newest = tmp_path / "c" / "checkpoint-00000002"
    (newest / "tensors.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.warns(UserWarning, match="does not match its SHA-256"):
        read_checkpoint(tmp_path / "c")
    rehash(newest)
    with pytest.warns(UserWarning, match="checkpoint-00000002 is damaged: SafetensorError"):
        assert read_checkpoint(tmp_path / "c")[1]["value"] == 1
    (newest / "tensors.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")  # a huge header
    rehash(newest)
    with pytest.warns(UserWarning, match="checkpoint-00000002 is damaged: SafetensorError"):
        read_checkpoint(tmp_path / "c")
    rehash(newest, extra="../../outside")
    with pytest.warns(UserWarning, match="lists files that are not a checkpoint's"):
        read_checkpoint(tmp_path / "c")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("linked", ["state.json", "tensors.safetensors", "manifest.json", "."])
def test_links_are_not_followed(tmp_path, linked):
    write(tmp_path / "c", 1, 2)
    newest, aside = tmp_path / "c" / "checkpoint-00000002", tmp_path / "aside"
    target = newest if linked == "." else newest / linked
    target.rename(aside)
    target.symlink_to(aside)
    with pytest.warns(UserWarning, match="checkpoint-00000002 is damaged"):
        assert read_checkpoint(tmp_path / "c")[1]["value"] == 1
    assert aside.exists()
    write(tmp_path / "c", 3, 4)  # what is pruned is the link, never what it leads to
    assert aside.exists()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoint-00000002" / "state.json").unlink()
    os.mkfifo(tmp_path / "checkpoint-00000002" / "state.json")
    with pytest.warns(UserWarning, match="state.json is not a plain file"):
        assert read_checkpoint(tmp_path)[1]["value"] == 1


def test_text_of_ten_gigabytes_is_refused_before_it_is_read(tmp_path):
    write(tmp_path, 1, 2)
    for name in ("state.json", "manifest.json"):
        with (tmp_path / "checkpoint-00000002" / name).open("r+b") as file:
            file.truncate(10 * 2**30)  # sparse: it takes no room
        with pytest.warns(UserWarning, match=rf"{name} has 10,737,418,240 bytes, more than any of ours"):
            assert read_checkpoint(tmp_path)[1]["value"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[" * 200_000, "RecursionError"), ("[1, 2]", "holds no object"), ('{"a": ', "JSONDecodeError")],
)
def test_text_that_was_made_up_is_refused(tmp_path, text, reason):
    write(tmp_path, 1, 2)
    newest = tmp_path / "checkpoint-00000002"
    (newest / "state.json").write_text(text)
    rehash(newest)
    with pytest.warns(UserWarning, match=f"checkpoint-00000002 is damaged: .*{reason}"):
        assert read_checkpoint(tmp_path)[1]["value"] == 1


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header(w={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),  # claims 4 TB
        header(w={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}) + b"0000",
        header(w={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + b"0000",
        header(w={"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}) + b"0000",
        header() + b"more than the header tells of",
        (100).to_bytes(8, "little") + b"[" * 100,
        b"",
    ],
)
def test_tensor_files_that_were_made_up_are_refused(tmp_path, content):
    write(tmp_path, 1, 2)
    newest = tmp_path / "checkpoint-00000002"
    (newest / "tensors.safetensors").write_bytes(content)
    rehash(newest)
    with pytest.warns(UserWarning, match="checkpoint-00000002 is damaged: SafetensorError"):
        assert read_checkpoint(tmp_path)[1]["value"] == 1


def test_a_disk_that_loses_what_was_written_is_found_out_at_once(tmp_path, monkeypatch):
    write(tmp_path, 1)
    replace = os.replace

    def decaying(source, target):
        replace(source, target)
        damage_flip(target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", decaying)
        with pytest.raises(CheckpointError, match=r"does not return what was written to tensors\.safetensors"):
            write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    write(tmp_path, 1, 2, 3)
    damage_flip(tmp_path / "checkpoint-00000003")
    with pytest.warns(UserWarning, match="checkpoint-00000003 is damaged"):
        _, state, damaged = checkpoint.newest_whole(tmp_path)
    assert (state["value"], damaged) == (2, [3])
    write_checkpoint(tmp_path, {}, {"value": 4}, damaged=damaged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000002", "checkpoint-00000004"]


def rehash(folder, extra=None):
    """Make the manifest agree with the files again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    for name in ("state.json", "tensors.safetensors"):
        manifest["files"][name] = checkpoint.hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if extra:
        manifest["files"][extra] = "0" * 64
    manifest["sha256"] = checkpoint._hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_name_that_was_planted_hides_no_later_checkpoint(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "checkpoint-99999999").mkdir()
    write(tmp_path, 2)
    assert read_checkpoint(tmp_path)[1]["value"] == 2


def test_leftovers_of_a_killed_write_are_ignored_and_cleared(tmp_path):
    write(tmp_path, 1)
    leftover = tmp_path / ".writing-abc"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert read_checkpoint(tmp_path)[1]["value"] == 1
    write(tmp_path, 2)
    assert not leftover.exists()
