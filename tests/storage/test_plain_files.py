"""Plain files, opened without waiting, and not out of their folder."""

import os
import threading

import pytest

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import below, open_plain, trusted_folder


def test_a_plain_file_is_opened_for_reading(tmp_path):
    (tmp_path / "a").write_bytes(b"words")
    (tmp_path / "b").symlink_to("a")
    for name in "ab":
        with open_plain(tmp_path / name, name) as file:
            assert file.read() == b"words"
            assert os.get_blocking(file.fileno())
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "c", "c")


def test_what_is_no_plain_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"^it: is {what}, expected a plain file$"):
            open_plain(path, "it")


def test_a_pipe_put_in_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look and the opening: what was opened is looked at again."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"words")
    real = os.open
    monkeypatch.setattr(os, "open", lambda _, flags: real(tmp_path / "pipe", flags))
    said = []

    def opened():
        try:
            open_plain(tmp_path / "a", "it")
        except InputError as error:
            said.append(str(error))

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    thread.join(10)
    assert said == ["it: is a pipe, expected a plain file"]


def test_links_lead_nowhere_but_the_folder(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (root / "a").write_bytes(b"words")
    (root / "own").symlink_to("a")
    (root / "out").symlink_to("../secret")
    (tmp_path / "named").symlink_to(root)
    within = trusted_folder(tmp_path / "named")
    assert within == root
    with open_plain(tmp_path / "named" / "own", "own", within) as file:
        assert file.read() == b"words"
    with pytest.raises(InputError, match="^out: links to a file outside of its folder"):
        open_plain(root / "out", "out", within)
    assert below(root / "own", within)
    assert not below(root / "out", within)
    assert not below(tmp_path / "rooted", within)


def test_a_snapshot_may_link_to_its_repository(tmp_path):
    snapshot = tmp_path / "hub" / "datasets--some--texts" / "snapshots" / "0123"
    assert trusted_folder(snapshot / "data") == tmp_path / "hub" / "datasets--some--texts"
    assert trusted_folder(tmp_path / "snapshots" / "0123") == tmp_path / "snapshots" / "0123"
