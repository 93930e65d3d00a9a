"""Where datasets come from: order of the sources, and downloads that never leave a broken file in place."""
import functools
import http.server
import os
import shutil
import threading
import time

import h5py
import pytest

from osrl_unlearn import resources
from osrl_unlearn.data import dataset
from osrl_unlearn.errors import DataError
from osrl_unlearn.files import locked

SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")
TASK = "OfflineBallCircle-v0"


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges; ``break_after`` cuts a connection once."""
    break_after = None
    ranges = []

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            content = file.read()
        asked = self.headers.get("Range")
        start = int(asked[len("bytes="):-1]) if asked else 0
        type(self).ranges.append(start)
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", "bytes */{}".format(len(content)))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body, cut = content[start:], type(self).break_after
        type(self).break_after = None
        self.wfile.write(body[:cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(SHIPPED, str(folder / "data.hdf5"))
    (folder / "junk.hdf5").write_bytes(b"<html>the server is down</html>")
    Server.ranges, Server.break_after = [], None
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:{}/".format(instance.server_address[1])
    instance.shutdown()
    instance.server_close()


def same(path):
    with open(path, "rb") as one, open(SHIPPED, "rb") as other:
        return one.read() == other.read()


def test_a_broken_download_is_resumed_and_put_in_place_only_when_complete(server, tmp_path):
    path = str(tmp_path / "cache" / "data.hdf5")
    Server.break_after = 1_000_000
    with pytest.raises((OSError, EOFError)):
        dataset.download(server + "data.hdf5", path)
    assert not os.path.exists(path) and os.path.getsize(path + ".part") == 1_000_000
    dataset.download(server + "data.hdf5", path)
    assert Server.ranges == [0, 1_000_000] and same(path) and not os.path.exists(path + ".part")


def test_a_download_that_is_no_dataset_is_not_kept(server, tmp_path):
    path = str(tmp_path / "data.hdf5")
    with pytest.raises(DataError, match="junk.hdf5 is not a readable HDF5 file"):
        dataset.download(server + "junk.hdf5", path)
    assert sorted(os.listdir(str(tmp_path))) == ["data.hdf5.lock", "served"]


def test_what_is_there_of_a_download_is_kept_only_if_it_is_the_whole_file_or_its_beginning(server, tmp_path):
    path = str(tmp_path / "data.hdf5")
    shutil.copy(SHIPPED, path + ".part")
    dataset.download(server + "data.hdf5", path)
    assert Server.ranges == [os.path.getsize(SHIPPED)] and same(path)
    shutil.move(path, path + ".part")
    with open(path + ".part", "ab") as file:
        file.write(b"more")
    dataset.download(server + "data.hdf5", path)
    assert Server.ranges[1:] == [os.path.getsize(SHIPPED) + 4, 0] and same(path)


def test_of_two_that_want_a_file_one_fetches_it(server, tmp_path):
    path, fetched = str(tmp_path / "data.hdf5"), []
    with locked(path):
        others = [threading.Thread(target=lambda: fetched.append(dataset.download(server + "data.hdf5", path)))
                  for _ in range(2)]
        for other in others:
            other.start()
        time.sleep(0.2)
        assert Server.ranges == []
    for other in others:
        other.join()
    assert sorted(fetched) == [False, True] and Server.ranges == [0] and same(path)


def test_a_file_that_is_broken_inside(tmp_path):
    path = shutil.copy(SHIPPED, str(tmp_path / "data.hdf5"))
    with h5py.File(path, "r") as file:
        header = h5py.h5o.get_info(file["costs"].id).addr
    with open(path, "r+b") as file:
        file.seek(header)
        file.write(bytes(16))
    with pytest.raises(DataError, match="is not a readable HDF5 file"):
        dataset.check_file(path)


def test_the_sources_in_their_order(server, tmp_path, monkeypatch, capfd):
    cached = str(tmp_path / "cache" / "data.hdf5")
    monkeypatch.setattr(dataset, "MIRROR", server)
    dead = server + "nowhere/"
    assert dataset.resolve(TASK, dead + "data.hdf5", cached, SHIPPED) == os.path.abspath(SHIPPED)
    assert "given or recorded" in capfd.readouterr().err
    assert dataset.resolve(TASK, dead + "data.hdf5", cached) == cached and same(cached)
    assert "downloaded from " + server + "data.hdf5" in capfd.readouterr().err
    assert dataset.resolve(TASK, dead + "data.hdf5", cached) == cached
    assert "DSRL's dataset folder" in capfd.readouterr().err
    os.unlink(cached)
    monkeypatch.setattr(dataset, "MIRROR", dead)
    assert dataset.resolve(TASK, dead + "data.hdf5", cached) == SHIPPED
    assert "shipped with osrl-unlearn" in capfd.readouterr().err
    with pytest.raises(DataError, match="--dataset FILE.*osrl-unlearn collect --task OfflineCarRun-v0"):
        dataset.resolve("OfflineCarRun-v0", dead + "data.hdf5", cached)
