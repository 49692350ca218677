"""Who is at risk and what is known of them: the same answers over HTTP and by command, with no worker at work.

The state is written by the pipeline itself, under the event's clock, so what is listed is what commits listed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import dump_spec, parse_spec
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.featurestore.target import Target
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.serving.manifest import HeadFacts, Manifest
from ebbtide.ops.asking.at_risk import at_risk
from ebbtide.ops.asking.customer import coming_silence, find, view
from ebbtide.ops.asking.show import bar, curve_line, episodes_words
from ebbtide.ops.asking.words import describe
from ebbtide.ops.cli import run
from ebbtide.ops.commands.at_risk import floors_of
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.stream.decision.episodes import CLOSED, HELD_OUT
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.outputs.at_risk import at_risk as listed_by
from tests.support.seams.answering import answering
from tests.support.seams.models import FACTS, publish
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel

pytestmark = pytest.mark.redis
DAY_MS = 86_400_000
T0 = 1_700_000_000_000
PARTITIONS = 3
LIVES = {"ann": (0, 3), "bob": (0, 1, 2), "cleo": (0,), "dan": (2, 3)}
"""Days of visits; each second one is a purchase of so many hundreds as the name has letters."""


async def filled(store: Store, at_day: float = 14) -> None:
    """Everybody in partition 1, decided as of `at_day` by the arithmetic model; those with p >= .45 are listed."""
    names = list(LIVES)
    events = [
        (i, T0 + day * DAY_MS, n % 2) for i, name in enumerate(names) for n, day in enumerate(LIVES[name])
    ]
    events.sort(key=lambda event: event[1])
    customer, time, kind = (np.array(column) for column in zip(*events, strict=True))
    value = np.where(kind == 1, [100.0 * len(names[i]) for i in customer], np.nan)
    batch = EventBatch(
        names, customer.astype(np.int32), kind.astype(np.uint8), time.astype(np.int64), value,
        np.zeros(len(events), np.uint64), np.arange(len(events)),
    )  # fmt: skip
    rows, _ = Folder(LAYOUT).fold(LAYOUT.empty(len(names)), batch)
    as_of = np.full(len(names), T0 + round(at_day * DAY_MS), np.int64)
    rows["score"] = ArithmeticModel().score(rows, as_of)[:, None]
    rows["scored_at"] = rows["row_watermark"] = as_of
    head = Checkpoint(len(events), 1, 0, LAYOUT.id, PARTITIONS)
    due = Folder(LAYOUT).due(rows)
    await store.apply(Commit(1, None, head, names, rows, due, at_risk=listed_by(rows, [0.45])))


@asynccontextmanager
async def stored(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, LAYOUT.dtype, "clicks", PARTITIONS, prefix="asked:")
    try:
        await filled(store)
        yield store
    finally:
        await store.close()


def names_of(data: dict[str, object]) -> list[str]:
    customers = data["customers"]
    assert isinstance(customers, list)
    return [each["customer"] for each in customers]


async def test_who_is_at_risk_is_ordered_by_p_or_by_what_is_at_stake(stack_redis: LocalValkey) -> None:
    async with stored(stack_redis.url) as store:
        by_p = await at_risk(store, LAYOUT)
        # cleo has been silent for 14 days, bob for 12; dan, whose visits are two, for as long as ann: 11.
        assert names_of(by_p) == ["cleo", "bob", "ann", "dan"] or names_of(by_p) == [
            "cleo",
            "bob",
            "dan",
            "ann",
        ]
        cleo, bob = by_p["customers"][:2]
        assert cleo["probability"] == pytest.approx(1 - 1 / 3 - 0.01, abs=1e-6)
        assert cleo["as_of"].startswith("2023-11-28") and cleo["value"] == 0.0 and bob["value"] == 300.0
        assert (by_p["listed"], by_p["complete_from"], by_p["target"]) == (4, None, "activity")
        by_value = await at_risk(store, LAYOUT, order="value", limit=3)
        assert names_of(by_value)[-1] in ("ann", "dan", "bob") and "cleo" not in names_of(by_value)
        assert by_value["value"] == "total value of purchases in the last 30d"
        assert len(names_of(await at_risk(store, LAYOUT, p_min=cleo["probability"] - 1e-6))) == 1


async def test_whoever_is_held_out_is_marked_in_the_list(stack_redis: LocalValkey) -> None:
    """Also who has no episode, or none that was held back: whoever works through the list would contact them."""
    everybody = Holdout(0.999999)
    async with stored(stack_redis.url) as store:
        assert {each["held_out"] for each in (await at_risk(store, LAYOUT))["customers"]} == {False}
        found = await at_risk(store, LAYOUT, holdout=everybody)
        assert {each["held_out"] for each in found["customers"]} == {True}


async def test_a_list_says_every_targets_p_beside_its_own() -> None:
    """Who asks for the list of a target that there is not is refused, and is not given another one instead."""
    spec = SPEC.model_copy(
        update={
            "targets": (
                Target(name="coming", kinds=("visit", "purchase")),
                Target(name="buying", kinds=("purchase",)),
            )
        }
    )
    layout = Layout(spec)
    store = MemoryStore(layout.dtype, PARTITIONS)
    rows = layout.empty(1)
    rows["event_time"] = rows["scored_at"] = rows["last_seen"] = T0
    rows["score"], rows["episode_state"] = [[0.8, 0.6]], [[CLOSED, HELD_OUT]]
    head = Checkpoint(1, 1, 0, layout.id, PARTITIONS)
    await store.apply(
        Commit(1, None, head, ["ann"], rows, np.full(1, T0 + DAY_MS), at_risk=listed_by(rows, [0.45, 0.45]))
    )
    found = await at_risk(store, layout, target="coming")
    (ann,) = found["customers"]
    assert found["target"] == "coming" and ann["held_out"] and ann["probability"] == pytest.approx(0.8)
    assert ann["targets"] == {
        "coming": {"probability": pytest.approx(0.8), "episode": "closed"},
        "buying": {"probability": pytest.approx(0.6), "episode": "open"},
    }
    (ann,) = (await at_risk(store, layout, target="buying"))["customers"]
    assert ann["probability"] == pytest.approx(0.6) and ann["episode"] == "open"
    with pytest.raises(ValueError, match="no target 'bying'"):
        await at_risk(store, layout, target="bying")


async def test_a_customers_answer_tells_every_targets_episode() -> None:
    """Who buys no more may be in an open episode of that alone: it is said which, and whether they are held out."""
    targets = [{"name": name, "kinds": [name]} for name in ("visit", "purchase")]
    layout = Layout(parse_spec(dump_spec(SPEC) | {"targets": targets}))
    row = layout.empty(1)[0]
    row["event_time"] = row["last_seen"] = row["first_seen"] = T0
    row["episode_state"], row["episode_opened_at"] = [CLOSED, HELD_OUT], [0, T0]
    state = describe(row, layout)
    found = {name: (each["state"], each["held_out"]) for name, each in state["episodes"].items()}
    assert found == {"visit": ("closed", False), "purchase": ("open", True)}
    assert state["episode"] == state["episodes"]["visit"]
    assert (
        episodes_words(state["episodes"]) == "visit: closed\npurchase: open, held out since 2023-11-14 22:13"
    )
    assert episodes_words({"activity": state["episode"]}) == "closed"


async def test_of_several_targets_each_has_its_own_list() -> None:
    """Whoever is at risk by any is listed, and comes with the p of the target that was asked about."""
    targets = [{"name": name, "kinds": [name]} for name in ("visit", "purchase")]
    layout = Layout(parse_spec(dump_spec(SPEC) | {"targets": targets}))
    p = {
        "both": (0.9, 0.6),
        "visit": (0.8, 0.1),
        "purchase": (0.2, 0.7),
        "low": (0.4, 0.5),
        "gone": (0.9, 0.9),
    }
    rows, names, store = layout.empty(len(p)), list(p), MemoryStore(layout.dtype, PARTITIONS)
    rows["score"] = np.array(list(p.values()), np.float32)
    rows["scored_at"] = rows["event_time"] = rows["last_seen"] = T0
    rows["terminated_at"][names.index("gone")] = T0
    floors = (0.45, 0.55)
    head, due = Checkpoint(1, 1, 0, layout.id, PARTITIONS), Folder(layout).due(rows)
    await store.apply(Commit(1, None, head, names, rows, due, at_risk=listed_by(rows, floors)))
    assert {name: p for p, _, name in (await store.at_risk(0.0, 9)).entries} == pytest.approx(
        {"both": 0.9, "visit": 0.8, "purchase": 0.7}
    )
    by_visit = await at_risk(store, layout, floors=floors)
    assert names_of(by_visit) == ["both", "visit"] and by_visit["target"] == "visit"
    by_purchase = await at_risk(store, layout, floors=floors, target="purchase")
    assert names_of(by_purchase) == ["purchase", "both"] and by_purchase["target"] == "purchase"
    assert by_purchase["customers"][0]["probability"] == pytest.approx(0.7)
    assert names_of(await at_risk(store, layout, target="purchase")) == ["purchase", "both", "visit"]
    assert names_of(await at_risk(store, layout, floors=floors, target="purchase", limit=1)) == ["purchase"]
    with pytest.raises(ValueError, match="no target 'mail': it has visit, purchase"):
        await at_risk(store, layout, target="mail")


def test_a_command_lists_from_where_the_version_would(tmp_path: Path) -> None:
    """Of several targets; where no version is there, or it is of other targets, nobody knows."""
    several = parse_spec(
        dump_spec(SPEC) | {"targets": [{"name": n, "kinds": [n]} for n in ("visit", "purchase")]}
    )
    settings = Settings(model=tmp_path / "shop")
    assert floors_of(settings, several) == ()
    heads = [
        HeadFacts(
            name=name, churn=name, churn_when="absent", calibrator=Calibrator(), enter=0.8, exit=leave, alert_rate=0.1
        )
        for name, leave in (("visit", 0.4), ("purchase", 0.7))
    ]  # fmt: skip
    manifest = Manifest(
        **FACTS.model_dump(exclude={"heads"}), heads=tuple(heads), name="shop", version=3, layout_id="", horizon_ms=1,
        sizes=(8,), features=(), calibrator=Calibrator(), libraries={}, spec=dump_spec(several), files={},
    )  # fmt: skip
    (tmp_path / "shop" / "3").mkdir(parents=True)
    (tmp_path / "shop" / "3" / "manifest.json").write_text(manifest.model_dump_json())
    assert floors_of(settings, several) == (FACTS.exit, 0.7)
    assert floors_of(settings.model_copy(update={"at_risk_from": 0.2}), several) == (0.2, 0.2)
    policy = PolicySettings.model_validate({"targets": {"purchase": {"exit": 0.5}}})
    assert floors_of(settings.model_copy(update={"policy": policy}), several) == (FACTS.exit, 0.5)
    assert floors_of(settings, SPEC) == ()


async def test_a_score_curve_is_what_would_be_said_at_each_time() -> None:
    """One question to the model, of one customer at many times: the decision points to come are among them."""
    store, model, calls = MemoryStore(LAYOUT.dtype, PARTITIONS), ArithmeticModel(), list[int]()
    await filled(store, at_day=3)
    found = await find(store, LAYOUT.spec, "ann")
    assert found is not None and found.partition == 1
    inner = answering(model)

    async def ask(rows, as_of):  # type: ignore[no-untyped-def]  # as `Ask`
        calls.append(len(rows))
        return await inner(rows, as_of)

    as_of = T0 + 3 * DAY_MS
    data = await view("ann", found, LAYOUT, ask, as_of)
    curve = data["silence_curve"]
    assert calls == [len(curve)] and len(curve) <= 32
    days = [round(each["days"], 6) for each in curve]
    assert days[0] == 0 and days == sorted(set(days))
    assert {1.0, 2.0, 4.0, 8.0, 14.0} <= set(days)  # the spec's silences
    p = [each["probability"] for each in curve]
    assert p == sorted(p) and p[0] == data["probability"]
    rows = np.array([found.row], LAYOUT.dtype)
    for each, day in zip(curve, days, strict=True):
        then = np.array([as_of + round(day * DAY_MS)])
        assert each["probability"] == pytest.approx(float(model.score(rows, then)[0]), abs=1e-6)
    assert [each["kind"] for each in data["timeline"]["recent"]] == ["visit", "purchase"]
    assert data["timeline"]["recent"][-1]["at"] == data["state"]["last_seen"]
    assert {each["noun"]: each["count"] for each in data["timeline"]["kinds"]} == {
        "visits": 1,
        "purchases": 1,
    }


def test_a_curve_ends_where_the_record_is_forgotten() -> None:
    last = T0
    times = coming_silence(last, last, LAYOUT, last + 55 * DAY_MS)
    assert times and max(times) <= last + SPEC.memory_ms
    assert coming_silence(last, last, LAYOUT, last + SPEC.memory_ms) == []


@pytest.mark.parametrize(("p", "drawn"), [(0.0, ""), (0.5, "██"), (0.53, "██▏"), (1.0, "████")])
def test_a_bar_has_eighths(p: float, drawn: str) -> None:
    assert bar(p, 4) == drawn


def test_a_curve_is_drawn_with_gaps_where_nobody_is_judged() -> None:
    curve = [{"days": d, "probability": p} for d, p in ((0, 0.0), (1, 0.5), (2, 1.0), (3, None))]
    line = curve_line(curve)
    assert line[0] == "▁" and line[39] == "█" and line[-1] == " " and len(line) == 60


def config(tmp_path: Path, url: str, **more: object) -> Path:
    """A file of settings, as an operator has one: no Kafka in it."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(dump_spec(SPEC), sort_keys=False), encoding="utf-8")
    path = tmp_path / "settings.yaml"
    data = {
        "spec": str(spec),
        "kafka": {"topic": "clicks"},
        "redis": {"url": url, "prefix": "asked:"},
        **more,
    }
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def told(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = run(list(arguments))
    said = capsys.readouterr()
    return code, said.out + said.err


def test_commands_answer_from_redis_alone(
    stack_redis: LocalValkey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No Kafka, no worker; for a customer the model's folder. And without a state they say so."""
    settings = config(tmp_path, stack_redis.url, model=str(tmp_path / "models"))
    code, said = told(["at-risk", "--config", str(settings)], capsys)
    assert code == 1 and "there is no state of 'clicks' under 'asked:'" in said

    async def fill() -> None:
        async with stored(stack_redis.url):
            pass

    asyncio.run(fill())
    code, said = told(["customers", "--count", "--config", str(settings)], capsys)
    assert (code, said.strip()) == (0, "4")
    report = tmp_path / "risk.json"
    code, said = told(
        ["at-risk", "--sort", "value", "--config", str(settings), "--json", str(report)], capsys
    )
    assert code == 0 and "4 of 4 at risk, by value; target: activity" in said and "█" in said
    assert set(names_of(json.loads(report.read_text()))) == set(LIVES)
    code, said = told(["at-risk", "--target", "purchase", "--config", str(settings)], capsys)
    assert code == 1 and "no target 'purchase'" in said
    code, said = told(["customer", "nobody", "--config", str(settings)], capsys)
    assert code == 1 and "nothing is known" in said

    publish(tmp_path / "models", spec=SPEC, sizes=(8, 32))
    report = tmp_path / "ann.json"
    code, said = told(
        ["customer", "ann", "--as-of", "2023-12-01", "--config", str(settings), "--json", str(report)], capsys
    )
    assert code == 0, said
    assert "if silent" in said and "speaks most" in said and "1 purchase, last" in said
    data = json.loads(report.read_text())
    assert (
        data["customer"] == "ann"
        and data["state"]["activities"] == 2
        and data["features"]["silence"]["words"]
    )
