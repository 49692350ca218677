"""The manifest of a model: what a published version is, and whether what lies there is still that.

It knows names, numbers and checksums; it runs no model, writes no file and needs no TensorFlow. Whoever loads a version
asks `verify` first, which reads every byte again and refuses by name: what is served is what was published, for
the layout it was made for, and nothing besides. A version may come from somebody who means harm, so nothing outside its
folder is read, whatever the manifest says, and nothing that has no end.
"""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import fold_of
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.errors import ModelDamaged, ModelForeign, ModelMissing, ModelUntrusted
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.judging.evaluate import Evaluation
from ebbtide.model.serving import signature
from ebbtide.model.serving.folder import MANIFEST, version_of

MANIFEST_BYTES_MAX = 16 << 20
"""A manifest is some 20 KB; what is more is no manifest."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class HeadFacts(BaseModel):
    """What a manifest says of a head. name: its target's, as alerts carry it; churn: in words. loss: what it was fitted
    by. horizons_ms: at which its survival is told, () where it is not. enter, exit, alert_rate, evaluation: as those of
    the model, which are the first head's."""

    name: str
    churn: str
    churn_when: Literal["absent", "present"]
    loss: Literal["binary_crossentropy"] = "binary_crossentropy"
    calibrator: Calibrator
    horizons_ms: tuple[int, ...] = ()
    enter: Probability
    exit: Probability
    alert_rate: Probability
    evaluation: Evaluation | None = None
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Facts(BaseModel):
    """What only the trainer knows about a model.

    p >= enter opens an episode, p < exit ends it; `alert_rate`: the share of customers that `enter` was chosen to
    alert, on the last horizon of the log. `data_hash`: of the examples it learned from. `train_config`: how it was
    trained; `labels_until`: until when what it learned from was known (without `refit` where the test slice begins);
    `evaluation`: of the recipe, on the test slice. The last three are None for a model that was not trained. `heads`:
    one a target of the spec, () for a model that was not trained or by a release that knew one target. `refusals`: what
    the gate said against a model published by force. No figure is NaN or infinite: such facts do not validate.
    """

    created: AwareDatetime
    enter: Probability
    exit: Probability
    alert_rate: Probability
    data_hash: str
    train_config: TrainConfig | None = None
    labels_until: AwareDatetime | None = None
    evaluation: Evaluation | None = None
    heads: tuple[HeadFacts, ...] = ()
    refusals: tuple[str, ...] = ()
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.exit > self.enter:
            raise ValueError("exit must not lie above enter: an episode would end as it begins")
        return self

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.evaluation and self.evaluation.unknown:
            raise ValueError(f"no finite number: {', '.join(self.evaluation.unknown)}")
        return self


class Manifest(Facts):
    """What a version is. `files`: path below the version's folder -> sha256, hex; every file but the manifest."""

    name: str
    version: Annotated[int, Field(ge=1)]
    layout_id: str
    horizon_ms: int
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    features: tuple[str, ...]
    calibrator: Calibrator
    libraries: dict[str, str]
    spec: dict[str, Any]
    files: dict[str, str]

    @property
    def training(self) -> TrainConfig:
        """How it was trained; the defaults of a model that was not."""
        return self.train_config or TrainConfig()

    @property
    def title(self) -> str:
        """How messages call it: name/version."""
        return f"{self.name}/{self.version}"

    def thresholds_of(self, target: int) -> tuple[float, float]:
        """`enter` and `exit` of a target, by its index in the spec."""
        if target == 0 or not self.heads:
            return self.enter, self.exit
        return self.heads[target].enter, self.heads[target].exit

    def parsed_spec(self) -> Spec:
        """The spec the model was trained with."""
        return parse_spec(self.spec, source=f"the spec of model {self.title}")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a version's folder. Raises ModelMissing or ModelDamaged; checks no other file."""
    return _parsed(_read(path), _title(path))


def verify(path: Path, layout_id: str | None = None, key: str | None = None) -> Manifest:
    """Check that a version's folder is what was published, byte for byte, and for this layout. Returns its manifest.

    `key`: signs manifests; None asks for no signature.
    Raises ModelMissing (a file is gone), ModelDamaged (a checksum or its number differs), ModelForeign (other layout),
    ModelUntrusted (no good signature; a file too many, or one that lies elsewhere).
    """
    text = _read(path)
    if key is not None:
        signature.check(path, text, key, _title(path))
    manifest = _parsed(text, _title(path))
    # A model reads the fold's section alone: another policy section is nothing to it.
    if layout_id is not None and fold_of(manifest.layout_id) != fold_of(layout_id):
        raise ModelForeign(
            f"model {manifest.title} was trained for record layout {manifest.layout_id}, not for {layout_id}",
            hint="serve it with the spec it was trained with, or train one with this spec",
        )
    if version_of(path.name) not in (None, manifest.version):
        raise ModelDamaged(
            f"model {_title(path)} calls itself {manifest.title}",
            hint="versions are not renamed: publish it again, or copy it under its own number",
        )
    for name in manifest.files:
        if not _is_below(name):
            raise ModelUntrusted(
                f"the manifest of model {_title(path)} names a file outside its folder: {name!r}",
                hint="this is no version that `ebbtide train` has published: remove it",
            )
    for name in sorted(set(files_of(path)) - {*manifest.files, MANIFEST, signature.SIGNATURE}):
        raise ModelUntrusted(
            f"model {manifest.title} holds {name}, which its manifest does not list",
            hint="remove the file, or publish the version again",
        )
    for name, expected in manifest.files.items():
        _check_file(path / name, expected, f"model {manifest.title}", name)
    try:
        listed = tuple(feature.name for feature in features(manifest.parsed_spec()))
    except EbbtideError as error:
        raise ModelDamaged(
            f"model {manifest.title}: {error}", hint="publish it again with this release"
        ) from None
    if listed != manifest.features:
        raise ModelForeign(
            f"model {manifest.title} lists other features than this release computes", hint="train it again"
        )
    return manifest


def files_of(path: Path) -> Iterator[str]:
    """Everything below a version's folder that is no folder, by its name there: files, links, pipes and devices."""
    for found in path.rglob("*"):
        if found.is_symlink() or not found.is_dir():
            yield found.relative_to(path).as_posix()


def _read(path: Path) -> bytes:
    title = _title(path)
    try:
        if not stat.S_ISREG((path / MANIFEST).lstat().st_mode):
            raise OSError("it is no regular file")
        with (path / MANIFEST).open("rb") as file:
            text = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ModelMissing(
            f"model {title} has no {MANIFEST}", hint="publish it again with `ebbtide train`"
        ) from None
    except OSError as error:
        raise ModelDamaged(
            f"the manifest of model {title} cannot be read: {error}", hint="publish it again"
        ) from None
    if len(text) > MANIFEST_BYTES_MAX:
        raise ModelDamaged(f"the manifest of model {title} is too large for one", hint="publish it again")
    return text


def _parsed(text: bytes, title: str) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(text))
    # UnicodeDecodeError is a ValueError, as the other two are.
    except (ValidationError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise ModelDamaged(
            f"the manifest of model {title} is no manifest: {first}", hint="publish it again"
        ) from None


def _is_below(name: str) -> bool:
    """Whether a file's name in a manifest means a file in the version's folder, and says so plainly."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name != "."


def _check_file(file: Path, expected: str, title: str, name: str) -> None:
    try:
        mode = file.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelMissing(f"{title} lacks its file {name}", hint="publish it again") from None
    if not stat.S_ISREG(mode):
        raise ModelUntrusted(
            f"{title}: {name} is no regular file", hint="copy the files themselves, not links to them"
        )
    if sha256_of(file) != expected:
        raise ModelDamaged(f"{title}: {name} is not what was published", hint="publish it again")


def _title(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
