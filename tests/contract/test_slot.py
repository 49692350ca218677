"""Which version serves: the newest good one, or the pinned one; whatever is wrong with another changes nothing."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.errors import ModelDamaged, ModelError, ModelMissing
from ebbtide.model.graph.served import input_specs
from ebbtide.model.serving.folder import MANIFEST, pin, unpin
from ebbtide.model.serving.manifest import Manifest, read_manifest, sha256_of
from ebbtide.model.serving.scorer import Programs
from ebbtide.model.serving.slot import ScorerSlot
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.worker.compose import policy_of
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.policy import Policy
from tests.support.seams.models import TINY, publish, sample

LAYOUT = Layout(TINY)


PROGRAMS: Programs = {}
"""All versions here have one graph: it is compiled once."""


def slot_of(path: Path, settings: PolicySettings | None = None) -> ScorerSlot[Policy]:
    return ScorerSlot(path, LAYOUT, lambda m: policy_of(m, settings or PolicySettings()), programs=PROGRAMS)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good versions of other weights; a model's folder."""
    models = tmp_path_factory.mktemp("models")
    for seed in (0, 1, 2):
        publish(models, spec=TINY, seed=seed, sizes=(8,))
    return models / TINY.name


@pytest.fixture
def home(three: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(three, tmp_path / TINY.name))


def away(home: Path, *versions: int) -> list[Path]:
    """Take versions out of the folder, to bring them back later."""
    return [(home / str(version)).rename(home.parent / f"later-{version}") for version in versions]


def change(version: Path, /, **facts: object) -> None:
    """Another manifest over the same files."""
    manifest = read_manifest(version)
    (version / MANIFEST).write_text(manifest.model_copy(update=facts).model_dump_json())


def test_a_newer_version_takes_over_without_a_pause(home: Path) -> None:
    """
    version   1 serves    2 good    3 damaged: refused by name
    refresh   ├── 3: verify ──┼── 2: verify, load ──┤ swap
    scoring   ▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪    each batch wholly by 1 or wholly by 2
    """
    later = away(home, 2, 3)
    slot = slot_of(home)
    for number, path in zip((2, 3), later, strict=True):
        path.rename(home / str(number))
    (home / "3" / "saved_model.pb").write_bytes(b"garbage")
    few = sample(8, spec=TINY)
    before = slot.current.model.score(few.rows, few.as_of)
    swapped: list[bool] = []
    refreshing = threading.Thread(target=lambda: swapped.append(slot.refresh()))
    seen: list[tuple[int, bytes]] = []
    refreshing.start()
    while refreshing.is_alive():
        current = slot.current
        seen.append((current.version, current.model.score(few.rows, few.as_of).tobytes()))
        time.sleep(0.001)  # the next batch is being fetched
    after = slot.current.model.score(few.rows, few.as_of)
    assert swapped == [True]
    assert (slot.current.name, slot.current.version) == ("kiosk", 2)
    assert before.tobytes() != after.tobytes()
    assert set(seen) <= {(1, before.tobytes()), (2, after.tobytes())}
    assert len(seen) > 20, "scoring waited for the load"
    assert "kiosk/3: saved_model.pb" in slot.refused["3"]
    assert not slot.refresh()


def test_the_last_two_versions_are_there_with_their_policies(home: Path) -> None:
    later = away(home, 2, 3)
    change(later[0], enter=0.7)
    slot = slot_of(home)
    one = slot.current
    for number, path in zip((2, 3), later, strict=True):
        path.rename(home / str(number))
        assert slot.refresh()
        before = slot.by_version(number - 1)
        assert before is not None
        assert (before.version, before.policy.targets[0].enter) == (number - 1, {1: 0.6, 2: 0.7}[number - 1])
        assert slot.by_version(number) is slot.current
    assert slot.by_version(1) is None, "no version may be explained by another"
    assert one.policy.targets[0].enter == 0.6


def test_a_version_copied_by_hand_is_taken_once_it_is_whole(home: Path) -> None:
    """
    copying   manifest ── graph, in part ── all of it
    refresh           refused          refused    serves      once each, not at every look
    """
    later = away(home, 2, 3)
    slot, target = slot_of(home), home / "2"
    target.mkdir()
    shutil.copy(later[0] / MANIFEST, target)
    assert not slot.refresh()
    assert "lacks its file" in slot.refused["2"]
    slot.refused["2"] = "not looked at again"
    assert not slot.refresh()
    assert slot.refused["2"] == "not looked at again"
    shutil.copytree(later[0], target, dirs_exist_ok=True)
    (target / "saved_model.pb").write_bytes(b"half of")
    assert not slot.refresh()
    assert "saved_model.pb" in slot.refused["2"]
    shutil.copy(later[0] / "saved_model.pb", target)
    assert slot.refresh()
    assert slot.current.version == 2
    assert not slot.refused


def test_a_pin_on_what_is_not_there_stays_refused(home: Path) -> None:
    """Not at the first look alone: workers go on with another version than the one that they were told to serve."""
    slot = slot_of(home)
    pin(home, 7)
    for _ in range(3):
        assert not slot.refresh()
        assert "7" in slot.refused and slot.current.version == 3
    unpin(home)
    assert not slot.refresh() and not slot.refused
    pin(home, 7)
    assert not slot.refresh() and "7" in slot.refused


@pytest.mark.slow
def test_swaps_do_not_add_up_in_memory(three: Path, tmp_path: Path) -> None:
    """Eleven of one graph, as a trainer publishes them daily: no program is compiled twice, and versions go again."""
    home = tmp_path / TINY.name
    home.mkdir()
    process, rss = psutil.Process(), []
    slot: ScorerSlot[Policy] | None = None
    for number in range(1, 13):
        version = Path(shutil.copytree(three / str(number % 3 + 1), home / str(number)))
        change(version, version=number)
        if slot is None:
            slot = slot_of(home)
        else:
            assert slot.refresh()
        assert slot.current.version == number
        gc.collect()  # a version is full of circles, which Python lets lie for a while
        rss.append(process.memory_info().rss)
    # 7 MiB for each program that is compiled anew, 24 for a load whose gradients are registered.
    grown = rss[-1] - rss[1]
    print("MiB", [each >> 20 for each in rss])
    assert grown < 64 << 20
    assert len(PROGRAMS) <= 6


# -- whatever is wrong


def other_inputs(version: Path) -> None:
    """A graph that wants one input more than we have."""
    specs = input_specs(LAYOUT)

    def score(moon_phase: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        p = tf.cast(inputs["as_of"], tf.float32) * 0.0 + moon_phase
        return {"probability": p, "logit": p}

    concrete = tf.function(score).get_concrete_function(tf.TensorSpec((), tf.float32), **specs)
    replace_graph(version, tf.Module(), {"score": concrete, "explain": concrete})


def replace_graph(version: Path, module: tf.Module, signatures: dict[str, object]) -> None:
    """Another SavedModel in the place of a version's, with a manifest that its own writer would give it."""
    kept = version / "kept"
    (version / "assets.extra").rename(kept)
    for path in [path for path in version.iterdir() if path not in (kept, version / MANIFEST)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tf.saved_model.save(module, str(version), signatures=signatures)
    kept.rename(version / "assets.extra")
    reseal(version)


def reseal(version: Path) -> None:
    files = [p.relative_to(version).as_posix() for p in version.rglob("*") if p.is_file()]
    change(version, files={name: sha256_of(version / name) for name in files if name != MANIFEST})


def a_byte(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"x")


def no_rows(version: Path) -> None:
    (version / "assets.extra" / "warmup.npz").unlink()
    reseal(version)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte": (a_byte, "is not what was published"),
    "inputs": (other_inputs, "cannot be loaded"),
    "enter of zero": (lambda v: change(v, enter=0.0, exit=0.0), "does not fit the settings"),
    "no warm-up rows": (no_rows, "cannot be loaded"),
    "sizes": (lambda v: change(v, sizes=(40,)), "not a multiple"),
    "no manifest": (lambda v: (v / MANIFEST).unlink(), "has no manifest"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_version_is_refused_and_a_start_takes_the_next(home: Path, what: str) -> None:
    away(home, 2)
    spoil, says = WRONG[what]
    later = away(home, 3)[0]
    running = slot_of(home)
    later.rename(home / "3")
    spoil(home / "3")
    assert not running.refresh()
    assert says in running.refused["3"]
    starting = slot_of(home)
    assert starting.current.version == running.current.version == 1
    assert says in starting.refused["3"]


def test_a_start_without_a_good_version_says_why(home: Path) -> None:
    away(home, 1, 2)
    (home / "3" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ModelDamaged, match=r"kiosk/3: saved_model\.pb"):
        slot_of(home)
    shutil.rmtree(home / "3")
    with pytest.raises(ModelMissing, match="ebbtide train"):
        slot_of(home)


def test_a_policy_that_does_not_fit_the_settings_is_refused(home: Path) -> None:
    """`policy.exit` 0.4 in the settings; a version that opens episodes at 0.3 would end each as it begins."""
    later = away(home, 2, 3)
    slot = slot_of(home, PolicySettings(exit=0.4))
    change(later[0], enter=0.3, exit=0.2)
    later[0].rename(home / "2")
    assert not slot.refresh()
    assert "exit 0.4 must not be above enter 0.3" in slot.refused["2"]
    assert slot.current.policy == EpisodePolicy.of(
        enter=0.6, exit=0.4, cooldown_ms=slot.current.policy.targets[0].cooldown_ms
    )


def test_other_sizes_may_come(home: Path, tmp_path: Path) -> None:
    away(home, 2, 3)
    slot = slot_of(home)
    publish(tmp_path, spec=TINY, version=2, sizes=(32, 64))
    assert slot.refresh()
    assert slot.current.model.sizes == (32, 64)


def test_a_folder_that_only_looks_like_a_number_is_named(home: Path) -> None:
    """`mv 3 0003`: named and left out, and 2 is taken. A folder ² is no 2."""
    (home / "3").rename(home / "0003")
    (home / "²").mkdir()
    slot = slot_of(home)
    assert slot.current.version == 2
    assert set(slot.refused) == {"0003", "²"}
    assert "rename" in slot.refused["0003"]
    assert not slot.refresh()
    (home / "0003").rename(home / "3")
    assert slot.refresh()
    assert set(slot.refused) == {"²"}


UNREADABLE = """
import os, sys
from pathlib import Path
from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.worker.compose import policy_of
from ebbtide.model.serving.scorer import Programs
from ebbtide.model.serving.slot import ScorerSlot
from tests.support.seams.models import TINY

home = Path(sys.argv[1])
slot = ScorerSlot(home, Layout(TINY), lambda manifest: policy_of(manifest, PolicySettings()))
if os.getuid() == 0:
    os.seteuid(65534)
home.chmod(0)
print(slot.refresh(), "Permission denied" in slot.trouble, slot.current.version)
home.chmod(0o755)
print(slot.refresh(), repr(slot.trouble))
"""


def test_a_folder_that_cannot_be_read_keeps_the_running_one(three: Path) -> None:
    """`chmod 000` under a worker that is not root, and back; so does a volume that hiccups (ESTALE, EIO)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home = Path(shutil.copytree(three, Path(folder) / "kiosk"))
        if os.getuid() == 0:
            for path in (home, *home.rglob("*")):
                shutil.chown(path, 65534)
        done = subprocess.run(
            [sys.executable, "-c", UNREADABLE, str(home)], capture_output=True, text=True, check=False
        )
    assert done.stdout.split("\n")[:2] == ["False True 3", "False ''"], done.stderr


# -- pinned


def test_a_version_named_by_the_settings_is_never_swapped(home: Path) -> None:
    slot = slot_of(home / "1")
    assert not slot.refresh()
    pin(home, 2)
    assert not slot.refresh()
    assert slot.current.version == 1


def test_a_pin_goes_back_and_stays_until_it_is_taken_away(home: Path) -> None:
    """
    file      -     pinned: 1    -
    serves    3     1            3      1 is loaded; 3 is still there
    """
    slot = slot_of(home)
    three = slot.current
    assert three.version == 3
    pin(home, 1)
    assert slot.refresh()
    assert slot.current.version == 1
    assert not slot.refresh()
    assert slot_of(home).current.version == 1
    unpin(home)
    assert slot.refresh()
    assert slot.current is three


def test_a_bad_pin_changes_nothing_and_starts_nothing(home: Path) -> None:
    slot = slot_of(home)
    (home / "1" / "saved_model.pb").write_bytes(b"x")
    for said in ("1\n", "9\n", "latest\n", "²\n", "\xff" * 1_000):
        (home / "pinned").write_text(said, encoding="utf-8")
        assert not slot.refresh()
        assert slot.current.version == 3
        with pytest.raises(ModelError):
            slot_of(home)
    assert "kiosk/1" in slot.refused["1"]
    assert "names no version" in slot.trouble
    unpin(home)
    assert not slot.refresh()
    assert not slot.trouble


def test_facts_of_a_manifest_make_the_policy() -> None:
    """The settings' numbers win; an exit of the manifest that they leave above is brought down to enter."""
    manifest = Manifest.model_construct(enter=0.6, exit=0.4)
    assert policy_of(manifest, PolicySettings(enter=0.3)).targets[0].exit == 0.3
    assert policy_of(manifest, PolicySettings(exit=0.5)).targets[0].enter == 0.6
