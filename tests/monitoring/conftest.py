"""Fixtures of the monitoring tests."""

import shutil
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "fixtures" / "data"


@pytest.fixture
def people():
    """Rows of five columns of every kind, drawn from one distribution; `shift` moves the age in standard deviations."""

    def draw(rows, seed, *, shift=0.0):
        rng = np.random.default_rng(seed)
        return {
            "age": rng.normal(40 + 12 * shift, 12, rows),
            "children": rng.poisson(1.4, rows),
            "member": rng.random(rows) < 0.3,
            "city": rng.choice(["Bern", "Graz", "Linz"], rows, p=[0.5, 0.3, 0.2]),
            "street": np.array([f"street {number}" for number in rng.geometric(0.01, rows)]),
        }

    return draw


@pytest.fixture(scope="session")
def data_folder():
    return DATA


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """One local session for all tests, which listens on 127.0.0.1 alone and ends with them."""
    if shutil.which("java") is None:
        pytest.skip("PySpark needs Java, which is not installed")
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # as for the next one
        "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than these few rows
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(folder),
        "spark.local.dir": str(folder),
        "spark.driver.memory": "512m",
        "spark.log.level": "ERROR",
    }
    builder = SparkSession.builder.master("local[2]").appName("tests")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(params=["polars", "duckdb", "pyspark"])
def engine(request, tmp_path):
    """The three engines, each asked by the same code."""
    if request.param == "polars":
        return lambda rows: rows.lazy()
    path = tmp_path / "rows.parquet"
    if request.param == "duckdb":
        import duckdb

        def relation(rows):
            rows.write_parquet(path)
            return duckdb.connect().read_parquet(str(path))

        return relation
    session = request.getfixturevalue("spark")

    def frame(rows):
        rows.write_parquet(path)
        return session.read.parquet(str(path))

    return frame
