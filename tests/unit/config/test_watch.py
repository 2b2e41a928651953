"""Reloading: a good file replaces the catalog, a bad one changes nothing, and changes are noticed."""

import os

import pytest

from proxy.config.catalog import CatalogError
from proxy.config.settings import Settings
from proxy.config.watch import CatalogHolder


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "catalog.yaml"
    path.write_text("routes: {ocr: {linger_s: 1}}\n")
    return path


@pytest.fixture
def holder(path):
    return CatalogHolder(Settings(config=str(path)), {})


def linger_of(holder):
    return holder.current.rules("ocr").linger_s


def test_a_process_does_not_start_on_a_bad_file(path):
    """At start there is no older catalog to stay with."""
    path.write_text("nonsense: 1")
    with pytest.raises(CatalogError, match="there is no such key"):
        CatalogHolder(Settings(config=str(path)), {})


def test_a_changed_file_is_noticed_and_replaces_the_catalog(holder, path):
    """The new snapshot has the next generation; the old one is untouched."""
    old = holder.current
    assert holder.changed() is False
    path.write_text("routes: {ocr: {linger_s: 22}}\n")
    assert holder.changed() is True
    result = holder.reload()
    assert (result.ok, result.changed, result.generation) == (True, True, 2)
    assert (linger_of(holder), old.rules("ocr").linger_s) == (22.0, 1.0)
    assert holder.changed() is False
    assert (holder.reloads, holder.reload_failures, holder.last_reload_ok) == (1, 0, True)


def test_a_bad_file_keeps_the_catalog_and_is_tried_once(holder, path):
    """It is reported, counted, and not tried again before it changes again."""
    old = holder.current
    path.write_text("routes: {ocr: {lingers: 2}}\n")
    assert holder.changed() is True
    result = holder.reload()
    assert (result.ok, result.changed, result.generation) == (False, False, 1)
    assert "did you mean 'linger_s'?" in str(result.problems[0])
    assert old is holder.current
    assert holder.changed() is False
    assert (holder.reloads, holder.reload_failures, holder.last_reload_ok) == (0, 1, False)
    assert result.problems == holder.last_problems


def test_a_mended_file_ends_the_trouble(holder, path):
    """The last reload counts."""
    path.write_text("{")
    holder.reload()
    path.write_text("routes: {ocr: {linger_s: 5}}\n")
    assert holder.reload().ok
    assert (holder.last_reload_ok, holder.last_problems, linger_of(holder)) == (True, (), 5.0)


def test_a_file_that_says_the_same_keeps_the_generation(holder, path):
    """What is cached stays valid when nothing changed."""
    old = holder.current
    path.write_text("# the same\nroutes: {ocr: {linger_s: 1.0}}\n")
    assert holder.changed() is True
    result = holder.reload()
    assert (result.ok, result.changed, result.generation) == (True, False, 1)
    assert old is holder.current


def test_a_file_that_disappears_keeps_the_catalog_and_may_come_back(holder, path):
    """A swap that is caught half way is no reason to stop."""
    text = path.read_text()
    path.unlink()
    assert holder.changed() is True
    assert holder.reload().ok is False
    assert holder.changed() is False
    path.write_text(text.replace("1", "3"))
    assert holder.changed() is True
    assert holder.reload().ok
    assert linger_of(holder) == 3.0


def test_a_kubernetes_swap_is_noticed_though_size_and_time_are_the_same(tmp_path):
    """A mounted file is a symlink through ``..data``, which is what the kubelet swaps."""
    for name, linger in (("one", 1), ("two", 2)):
        folder = tmp_path / f"..{name}"
        folder.mkdir()
        (folder / "catalog.yaml").write_text(f"routes: {{ocr: {{linger_s: {linger}}}}}\n")
        os.utime(folder / "catalog.yaml", ns=(10**18, 10**18))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "catalog.yaml").symlink_to("..data/catalog.yaml")
    holder = CatalogHolder(Settings(config=str(tmp_path / "catalog.yaml")), {})
    (tmp_path / "..tmp").symlink_to("..two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert holder.changed() is True
    assert holder.reload().changed is True
    assert linger_of(holder) == 2.0


def test_a_file_replaced_by_rename_is_noticed_though_size_and_time_are_the_same(holder, path):
    """Careful editors write a new file and rename it; the inode tells."""
    about = path.stat()
    other = path.with_suffix(".new")
    other.write_text(path.read_text().replace("1", "4"))
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.rename(path)
    assert holder.changed() is True


def test_without_a_file_there_is_nothing_to_reload():
    """SIGHUP is harmless then."""
    holder = CatalogHolder(Settings(), {})
    assert holder.changed() is False
    result = holder.reload()
    assert (result.ok, result.changed, result.generation) == (True, False, 1)
