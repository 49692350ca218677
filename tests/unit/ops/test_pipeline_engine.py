"""Who walks through the history, as a pipeline's file and a command's options say it."""

from pathlib import Path

import click
import pytest

from ebbtide.featurestore.parts.processes import Processes
from ebbtide.featurestore.parts.spark import Spark
from ebbtide.ops.commands.options import engine_of
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.pipeline.config import load_config
from tests.support.factory import write_config


def test_a_master_alone_is_spark_with_its_defaults(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path)).engine == Processes(1)
    assert load_config(write_config(tmp_path, jobs=3)).engine == Processes(3)
    assert load_config(write_config(tmp_path, spark="local[2]")).engine == Spark("local[2]")


def test_an_option_changes_the_master_and_nothing_else(tmp_path: Path) -> None:
    said = {"master": "spark://host:7077", "parts": 40, "options": {"spark.executor.memory": "4g"}}
    config = load_config(write_config(tmp_path, spark=said))
    options = (("spark.executor.memory", "4g"),)
    assert config.engine == Spark("spark://host:7077", 40, options)
    assert config.on_spark("local[2]").engine == Spark("local[2]", 40, options)
    assert config.on_spark(None).engine == config.engine
    assert load_config(write_config(tmp_path, jobs=3)).on_spark("local").engine == Spark("local")


def test_processes_and_spark_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="jobs and spark are two answers"):
        load_config(write_config(tmp_path, jobs=2, spark="local[2]"))
    with pytest.raises(click.UsageError, match="two answers"):
        engine_of(2, "local[2]")
    assert engine_of(1, "local[2]") == Spark("local[2]")
    assert engine_of(2, None) == Processes(2)
