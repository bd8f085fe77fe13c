"""Who is let in, and who is not."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from unraze.studio import front
from unraze.studio.app import Studio
from unraze.studio.guard import POLICY, Keys, address_of

PAGE = front.PAGE


def test_without_a_session_nothing_is_told_but_the_page(stranger: TestClient) -> None:
    assert stranger.get("/").status_code == 200
    for address in ("/api/runs", "/api/about", "/api/jobs", "/api/openapi.json", "/api/none"):
        answer = stranger.get(address)
        assert answer.status_code == 401
        assert "printed in the terminal" in answer.json()["error"]


def test_the_token_buys_a_cookie_that_no_other_site_sends(
    stranger: TestClient, studio: Studio
) -> None:
    wrong = stranger.post("/api/session", json={"token": studio.keys.token + "x"})
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    assert stranger.get("/api/runs").status_code == 401

    right = stranger.post("/api/session", json={"token": studio.keys.token})
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"unraze-{studio.keys.port}=" in cookie
    assert studio.keys.token not in cookie
    assert stranger.get("/api/runs").status_code == 200


def test_a_studio_does_not_take_another_one_s_session(studio: Studio) -> None:
    other = Keys(studio.keys.port)
    assert not other.opens(f"{studio.keys.cookie}={studio.keys.session}")
    assert studio.keys.opens(f"a=b; {studio.keys.cookie}={studio.keys.session}; c=d")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8420",  # a name that was made to lead here
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1:8420@evil.example",
        "127.0.0.1.evil.example:8420",
        "",
        "[::1",
    ],
)
def test_a_host_that_was_not_meant_is_refused(browser: TestClient, host: str) -> None:
    answer = browser.get("/api/runs", headers={"Host": host})
    assert answer.status_code == 421
    assert browser.get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:8420"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_is_refused(browser: TestClient, headers: dict[str, str]) -> None:
    for send in (browser.get, browser.post, browser.delete):
        answer = send("/api/jobs", headers=headers)
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]


def test_the_page_s_own_requests_are_let_through(browser: TestClient) -> None:
    own = {"Origin": "http://127.0.0.1:8420", "Sec-Fetch-Site": "same-origin"}
    assert browser.get("/api/runs", headers=own).status_code == 200
    typed = {"Sec-Fetch-Site": "none"}
    assert browser.get("/api/runs", headers=typed).status_code == 200


def test_every_answer_keeps_the_browser_to_the_page_s_own_files(browser: TestClient) -> None:
    for address, headers in (("/", {}), ("/api/runs", {}), ("/api/runs", {"Host": "evil"})):
        answer = browser.get(address, headers=headers)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


def test_the_page_s_files_ask_for_nothing_elsewhere() -> None:
    names = [path for path in PAGE.rglob("*") if path.is_file()]
    assert any(path.name == "index.html" for path in names)
    for path in names:
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text))
        assert found <= {"http://www.w3.org", "//www.w3.org"}, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", text), path


def test_no_file_but_the_page_s_is_served(browser: TestClient, tmp_path: Path) -> None:
    for address in (
        "/../app.py",
        "/%2e%2e/app.py",
        "/..%2fapp.py",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/main.js%00.png",
    ):
        assert browser.get(address).status_code in (404, 405), address


def test_only_reading_is_possible_outside_of_the_interface(browser: TestClient) -> None:
    assert browser.post("/").status_code == 405
    assert browser.delete("/index.html").status_code == 405


def test_addresses_of_names_and_numbers() -> None:
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address_of("::1", 8420) == "http://[::1]:8420"
