"""Files that are replaced whole or not at all."""

import pytest
from etils import epath

from scaling import durable

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("synced", [False, True])
def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch, synced):
    path = tmp_path / "state.json"
    durable.replace_text(path, "old", synced=synced)
    half = type(epath.Path(path)).write_text

    def fails(self, text):
        half(self, text[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left") as found:
        patched.setattr(type(epath.Path(path)), "write_text", fails)
        durable.replace_text(path, "new text", synced=synced)
    assert found.value.filename == str(path)
    assert path.read_text() == "old"
    durable.replace_text(path, "new text", synced=synced)
    assert path.read_text() == "new text" and list(tmp_path.iterdir()) == [path]


def test_bytes_are_synced_before_the_new_name_and_the_name_after_it(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("scaling.durable._fsync", lambda path: done.append((path, (tmp_path / "a").exists())))
    durable.replace_text(tmp_path / "a", "text", synced=True)
    assert done == [(epath.Path(tmp_path / "a.partial"), False), (epath.Path(tmp_path), True)]


def test_several_writers_do_not_share_what_is_half_written(tmp_path):
    (tmp_path / "a.1.partial").write_text("of another one")
    durable.replace_text(tmp_path / "a", "mine", writer="2")
    assert (tmp_path / "a").read_text() == "mine" and (tmp_path / "a.1.partial").exists()


def test_a_folder_is_tried_by_writing(tmp_path):
    durable.try_to_write(tmp_path / "new", 0)
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        durable.try_to_write(tmp_path / "file", 0)


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "run").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="link to gone"):
        durable.try_to_write(tmp_path / "run", 0)
    (tmp_path / "gone").mkdir()
    durable.try_to_write(tmp_path / "run", 0)
