"""The interface as it describes itself, asked what nobody expects: no answer is a server's error.

`schemathesis` reads /api/openapi.json and makes requests of it, right and wrong ones.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from unraze.studio.app import Studio, app_of

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = "/api/events"
"""A stream does not end: test_events.py and test_load.py have it."""


@pytest.fixture
def quiet(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """A studio that starts and stops no process, whatever it is asked."""
    for name in ("_begin", "stop", "resume"):
        monkeypatch.setattr(studio.trainings, name, lambda *args: None)
    return studio


def ask_all(studio: Studio, ids: dict[str, str], examples: int) -> set[str]:
    """Asks each route so many right and so many wrong requests; the routes.

    Half of the runs that are asked for are there, which chance would hardly find.
    """
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app_of(studio))
    names = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.full_path == ENDLESS:
            continue
        names.add(operation.label)
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

        @settings(
            max_examples=2 * examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases, known=st.booleans())
        def ask(case: Any, known: bool) -> None:
            if known and "/runs/{name}" in case.path:
                case.path_parameters["name"] = ids["run"]
            if known and isinstance(case.body, dict) and "run" in case.body:
                case.body["run"] = ids["run"]
            case.call_and_validate(checks=CHECKS)
            for job in studio.queue.all():
                made = studio.queue.get(job.id)
                if made is not None:
                    studio.queue.end(made)

        ask()
    return names


def test_no_request_is_answered_by_an_error_of_the_server(
    quiet: Studio, ids: dict[str, str]
) -> None:
    routes = ask_all(quiet, ids, 4)
    assert {"GET /api/runs", "POST /api/jobs/sample", "POST /api/runs/{name}/destroy"} <= routes
    assert len(routes) >= 30


@pytest.mark.slow
def test_no_request_of_many_is_either(quiet: Studio, ids: dict[str, str]) -> None:
    ask_all(quiet, ids, 100)
