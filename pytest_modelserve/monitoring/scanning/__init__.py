"""Profiles of rows that stay where they are: of Polars queries, DuckDB relations and PySpark frames, one way for all.

The engine counts, through narwhals, and what comes back is small: a few numbers a column, and how many values lie in
each of some ten thousand cells of its range.
"""

from pytest_modelserve.monitoring.scanning.profiling import Beside as Beside, scan as scan, scan_beside as scan_beside
