"""What each alert fires at, and what it stays quiet at."""

from __future__ import annotations

from tests.monitoring.cases_processes import PROCESSES
from tests.monitoring.cases_resources import RESOURCES
from tests.monitoring.cases_traffic import TRAFFIC

CASES = [*TRAFFIC, *PROCESSES, *RESOURCES]
