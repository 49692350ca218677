"""History on a server that speaks S3: moto's, a process of its own on loopback, asked by Arrow's own client."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.files.remote import listed, mirrored
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.watch import look
from tests.support.factory import SPEC, runner, write_config, write_events

MOTO = "moto[server,s3]==5.1.22"
"""In an environment of its own (uv makes it): it wants an older python-dateutil than we do."""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("uv"), "tool", "run", "--from", MOTO, "moto_server", "-H", "127.0.0.1", "-p",
            str(port),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if process.poll() is not None:
                pytest.fail("no S3 server: uv could not get moto")
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path) -> Iterator[tuple[str, fs.S3FileSystem]]:
    """A URL of ours and a client to write with. The environment says who we are, as it does in production."""
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    name = f"bucket-{tmp_path.name}".replace("_", "-").lower()[:60]
    client = fs.S3FileSystem(
        endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    client.create_dir(name)
    yield f"s3://{name}/history?endpoint_override={endpoint}&scheme=http&region=us-east-1", client
    for key, value in before.items():
        if value is None:
            os.environ.pop(key)
        else:
            os.environ[key] = value


def upload(client: fs.S3FileSystem, url: str, folder: Path) -> None:
    root = url.removeprefix("s3://").split("?")[0]
    for path in folder.rglob("*"):
        if path.is_file():
            with client.open_output_stream(f"{root}/{path.relative_to(folder)}", compression=None) as out:
                out.write(path.read_bytes())


def test_a_bucket_reads_as_its_folder(bucket: tuple[str, fs.S3FileSystem], tmp_path: Path) -> None:
    """The same columns; Hive partitions in the keys; and nothing is copied twice."""
    url, client = bucket
    write_events(tmp_path / "events", customers=30)
    upload(client, url, tmp_path / "events")
    place = mirrored(url, tmp_path / "mirror")
    spec = load_spec(SPEC)
    here, there = read_log(tmp_path / "events", spec), read_log(place, spec)
    assert here.to_arrow().equals(there.to_arrow())
    assert [each.path for each in listed(url)] == [f"part={n}/events.csv.gz" for n in range(3)]
    nodes = {path: path.stat().st_ino for path in place.rglob("*.gz")}
    (tmp_path / "events" / "part=1" / "events.csv.gz").write_bytes(
        b"user_id,event_id,type,ts,value,properties.plan\n"
    )
    upload(client, url, tmp_path / "events")
    client.delete_file(f"{url.removeprefix('s3://').split('?')[0]}/part=2/events.csv.gz")
    mirrored(url, tmp_path / "mirror")
    after = {path: path.stat().st_ino for path in place.rglob("*.gz")}
    assert {path.parent.name for path in after} == {"part=0", "part=1"}, "what has gone there is gone here"
    assert len(nodes) == 3


def test_a_pipeline_reads_from_a_bucket(bucket: tuple[str, fs.S3FileSystem], tmp_path: Path) -> None:
    url, client = bucket
    write_events(tmp_path / "made", customers=30)
    upload(client, url, tmp_path / "made")
    file = write_config(tmp_path, events=url)
    config = load_config(file)
    seen = look(file, config)
    first, again = (runner(file).run(["example_gen"])["stages"]["example_gen"] for _ in range(2))
    assert again["key"] == first["key"]
    assert look(file, config) == seen
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "more.csv").write_text("user_id,event_id,type,ts,value,properties.plan\n")
    upload(client, url, tmp_path / "more")
    assert look(file, config) != seen, "a new object is seen"


def test_a_bucket_that_refuses_is_named_with_its_stage(
    bucket: tuple[str, fs.S3FileSystem], tmp_path: Path
) -> None:
    url, _ = bucket
    nothing = load_config(write_config(tmp_path, events=url))
    with pytest.raises(SpecError, match=r"stage example_gen: (no file lies under|cannot read) s3://bucket-"):
        nothing.plan()
    absent = load_config(write_config(tmp_path, events=url.replace("s3://bucket-", "s3://absent-")))
    with pytest.raises(SpecError, match=r"stage example_gen: cannot read s3://absent-") as caught:
        absent.plan()
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_url_holds_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"s3://\*\*\*@b/x holds credentials") as caught:
        mirrored("s3://key:hunter2@b/x", tmp_path)
    assert "hunter2" not in str(caught.value)
