import errno
import hashlib
import io
import json
import os
import threading

import pytest

from pytest_modelserve.artifacts import Store, digest_of
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.progress import progress_to

KEY = digest_of("entry")


def _writer(content=b"content", name="model.onnx"):
    """A builder, and the list of its calls."""
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / name).write_bytes(content)

    build.calls = calls
    return build


def _never(_):
    raise AssertionError("built again")


def _tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_result_is_built_once_and_found_without_a_lock(store):
    assert not store.root.exists()
    build = _writer()
    first = store.get_or_build(KEY, build, what="digits, trained with seed 0")
    assert _tree(store.root) == [
        ".gitignore",
        f"entries/{KEY}/files/model.onnx",
        f"entries/{KEY}/manifest.json",
        f"locks/{KEY}.lock",
    ]
    assert (store.root / ".gitignore").read_text() == "*\n"
    assert list((store.root / "building").iterdir()) == []
    assert json.loads((first.parent / "manifest.json").read_text()) == {
        "what": "digits, trained with seed 0",
        "files": {"model.onnx": {"sha256": hashlib.sha256(b"content").hexdigest(), "bytes": 7}},
    }
    lock = store.root / "locks" / f"{KEY}.lock"
    lock.unlink()
    assert store.get_or_build(KEY, _never, what="toy") == first
    assert not lock.exists()
    assert len(build.calls) == 1
    other = store.get_or_build(digest_of(2), _writer(b"2"), what="two")
    assert (first / "model.onnx").read_bytes() + (other / "model.onnx").read_bytes() == b"content2"


def test_a_store_stays_where_it_was_made_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("cache")
    monkeypatch.chdir("/")
    assert store.get_or_build(KEY, _writer(), what="toy").is_relative_to(tmp_path / "cache")


def _flip(entry):
    path = entry / "files" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda entry: (entry / "files" / "model.onnx").unlink(),
        lambda entry: os.truncate(entry / "files" / "model.onnx", 2),
        lambda entry: (entry / "files" / "more").write_bytes(b""),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("[]"),
        lambda entry: [path.unlink() for path in (entry / "manifest.json", entry / "files" / "model.onnx")],
    ],
    ids=["flipped", "removed", "truncated", "added", "unlisted", "cut-manifest", "other-manifest", "emptied"],
)
def test_a_damaged_entry_is_built_again(store, damage):
    folder = store.get_or_build(KEY, _writer(), what="toy")
    damage(folder.parent)
    build = _writer()
    assert store.get_or_build(KEY, build, what="toy") == folder
    assert len(build.calls) == 1
    assert store.get_or_build(KEY, _never, what="toy") == folder
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert list((store.root / "building").iterdir()) == []


@pytest.mark.parametrize(
    "error", [ValueError("no data"), KeyboardInterrupt(), FileNotFoundError(2, "gone", "data.csv")]
)
def test_what_the_builder_raises_passes_through_and_leaves_nothing(store, error):
    def build(folder):
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        store.get_or_build(KEY, build, what="toy")
    assert caught.value is error
    assert _tree(store.root) == [".gitignore", f"locks/{KEY}.lock"]
    assert store.get_or_build(KEY, _writer(), what="toy").is_dir()


def test_a_builder_that_writes_nothing_is_an_error(store):
    with pytest.raises(ArtifactError, match="the build of toy ended without writing a file"):
        store.get_or_build(KEY, lambda _: None, what="toy")


@pytest.mark.parametrize("key", ["", "../../etc", "A" * 64, "a" * 63, f"{'a' * 64}\n"])
def test_a_key_that_is_no_digest_is_refused(store, key):
    with pytest.raises(UsageError, match=r"is not a sha256 in lower-case hex: make keys with digest_of\(\.\.\.\)"):
        store.get_or_build(key, _never, what="toy")


def test_a_build_may_request_another_key_but_not_its_own(store):
    other = digest_of("other")

    def requests_another(folder):
        inner = store.get_or_build(other, _writer(), what="inner")
        (folder / "copy").write_bytes((inner / "model.onnx").read_bytes())

    assert (store.get_or_build(KEY, requests_another, what="toy") / "copy").read_bytes() == b"content"

    def requests_itself(_):
        store.get_or_build(digest_of("loop"), requests_itself, what="loop")

    with pytest.raises(UsageError, match=r"^the build of loop requests its own key from the store$"):
        store.get_or_build(digest_of("loop"), requests_itself, what="loop")


def test_threads_with_one_key_at_once_build_once(store):
    started = threading.Barrier(4)
    build = _writer()
    results = []

    def ask():
        started.wait()
        results.append(store.get_or_build(KEY, build, what="toy"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(build.calls) == 1
    assert len(set(results)) == 1
    assert len(results) == 4


def test_files_in_folders_are_part_of_an_entry(store):
    def build(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"w")

    folder = store.get_or_build(KEY, build, what="toy")
    (folder / "sub" / "weights").write_bytes(b"v")
    store.get_or_build(KEY, build, what="toy")
    assert (folder / "sub" / "weights").read_bytes() == b"w"


@pytest.mark.parametrize("where", ["cache", "cache/deeper", "cache/entries", "cache/locks", "cache/building"])
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path, where):
    # A file where a folder should be stops root too, whom permissions do not.
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_bytes(b"")
    root = tmp_path / where if "/" not in where or where.endswith("deeper") else tmp_path / "cache"
    root = root / "store" if where.endswith("deeper") else root
    with pytest.raises(ArtifactError) as caught:
        Store(root).get_or_build(KEY, _never, what="toy")
    message = str(caught.value)
    assert message.startswith(f"the cache folder {root} cannot be written: [Errno ")
    assert message.endswith(". Free space or grant permission there, or choose another folder with --modelserve-cache")
    assert (tmp_path / where).read_bytes() == b""


def test_a_disk_that_is_full_is_reported_wherever_in_the_builder_it_shows(store):
    def build(_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "weights.bin")
        except OSError as error:
            raise ArtifactError("cannot write the weights") from error

    with pytest.raises(ArtifactError, match=r"cannot be written: \[Errno 28\] No space left on device"):
        store.get_or_build(KEY, build, what="toy")
    assert _tree(store.root) == [".gitignore", f"locks/{KEY}.lock"]


def test_a_build_forces_each_file_and_the_manifest_onto_the_disk_and_no_more(store, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), fsync(handle)))

    def build(folder):
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")

    store.get_or_build(KEY, build, what="toy")
    assert len(synced) == 3
    store.get_or_build(KEY, _never, what="toy")
    assert len(synced) == 3


class _Terminal(io.StringIO):
    """A terminal that tells when something is shown."""

    def __init__(self):
        super().__init__()
        self.shows = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        self.shows.set()
        return super().write(text)


def test_wait_for_another_build_is_shown_with_its_name(store, caplog):
    pytest.importorskip("tqdm")
    inside, terminal = threading.Event(), _Terminal()

    def slow(folder):
        inside.set()
        assert terminal.shows.wait(60)
        _writer()(folder)

    builder = threading.Thread(target=store.get_or_build, args=(KEY, slow), kwargs={"what": "digits"})
    builder.start()
    assert inside.wait(60)
    with caplog.at_level("INFO"), progress_to(terminal):
        store.get_or_build(KEY, _never, what="digits")
    builder.join()
    assert caplog.messages == ["waiting for another process that builds digits"]
    assert "another process builds digits: " in terminal.getvalue()


def test_the_least_recently_used_entries_beyond_the_limit_are_deleted(tmp_path):
    store = Store(tmp_path, limit_bytes=25)
    keys = [digest_of(index) for index in range(4)]
    for hours, key in zip((3, 4, 2), keys, strict=False):
        folder = store.get_or_build(key, _writer(b"0123456789"), what=f"entry {hours}").parent
        used = folder.stat().st_mtime - 3600 * hours
        os.utime(folder, (used, used))
    store.get_or_build(keys[0], _never, what="entry 3")  # used now, so it is kept
    store.get_or_build(keys[3], _writer(b"0123456789"), what="entry 0")
    assert [entry.what for entry in store.entries()] == ["entry 3", "entry 0"]


def test_entries_of_the_last_hour_are_kept_beyond_the_limit_as_they_may_be_open(tmp_path):
    store = Store(tmp_path, limit_bytes=1)
    for index in range(3):
        store.get_or_build(digest_of(index), _writer(), what=str(index))
    assert len(store.entries()) == 3
    assert [entry.size for entry in store.clean()] == [7, 7, 7]
    assert store.entries() == []


@pytest.mark.parametrize("limit", ["", "ten", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, tmp_path, limit):
    monkeypatch.setenv("MODELSERVE_CACHE_GB", limit)
    with pytest.raises(UsageError, match="MODELSERVE_CACHE_GB must be a positive number of gigabytes; got '"):
        Store(tmp_path)
