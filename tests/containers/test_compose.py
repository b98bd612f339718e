"""`docker compose up` as a person runs it, without a GPU.

Each test brings the stack to where it needs it. In the order of this file that trains once.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support import ROOT
from tests.support.containers import ADMIN_KEY, KEY, Stack, docker

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
KILL_THE_API = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{pid}/cmdline").read().startswith("python\\0-m\\0api\\0"):
        os.kill(int(pid), signal.SIGKILL)
"""
CURRENT = "import os; print(os.readlink('/artifacts/models/current'))"
REACH_OUT = "import socket; socket.create_connection(('{}', 80), 3)"
SERVICES = ("trainer", "api", "frontend")


def test_a_missing_variable_is_named(stack: Stack) -> None:
    done = stack.try_compose("config", API_KEY_FILE="")
    assert done.returncode != 0 and "set API_KEY_FILE to" in done.stderr


def test_a_trainer_that_fails_keeps_the_api_from_starting_and_says_why(stack: Stack) -> None:
    stack.compose("down", "--volumes")
    failing = {"PROFILE": "nobody", "COMPOSE_FILE": "docker-compose.yml:docker-compose.cpu.yml"}
    assert stack.try_compose("up", "--detach", "--wait", **failing).returncode != 0
    assert "llama-3.2-3b, quickstart" in stack.logs()
    assert stack.inspect("api")["State"]["Status"] == "created"
    stack.compose("down", "--volumes")


def test_a_disk_that_is_too_small_is_reported(stack: Stack) -> None:
    """Before the merge by both sizes; the whole quickstart fills it while it trains."""
    stack.compose("down", "--volumes")
    small = {"COMPOSE_FILE": f"{stack.environment['COMPOSE_FILE']}:tests/containers/small.yml"}
    try:
        assert stack.try_compose("up", "--detach", "--wait", **small).returncode != 0
        found = stack.try_compose("logs", "--no-log-prefix", "trainer", **small).stdout
        sizes = r"needs [\d.]+ GiB on the disk of /artifacts.* and [\d.]+ GiB are free"
        assert re.search(rf"{sizes}|the disk under /artifacts is full", found), found
        assert "Traceback" not in found and "RuntimeError" not in found
        assert stack.inspect("api")["State"]["Status"] == "created"
    finally:
        stack.compose("down", "--volumes", **small)


def test_an_interrupted_start_continues_and_a_later_one_trains_nothing(stack: Stack) -> None:
    """The life of an installation: first start, interrupted while it trains; use; down; second start."""
    stack.compose("down", "--volumes")
    stack.compose("up", "--detach", "trainer")
    deadline = time.monotonic() + 120
    while "[3/7] sweep" not in stack.logs():
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.2)
    stack.compose("down")
    stack.up("first start, after an interruption")
    assert "[7/7] publish" in stack.logs()
    assert stack.inspect("trainer")["State"]["ExitCode"] == 0

    _measure(stack)
    model = stack.in_api(CURRENT)
    usage = stack.compose("exec", "-T", "api", "python", "-m", "api", "usage")
    assert "default  requests=" in usage
    stack.compose("down")
    stack.up("second start")
    assert stack.seconds["second start"] < stack.seconds["first start, after an interruption"]
    assert stack.logs().count("skipped") == 5
    assert stack.in_api(CURRENT) == model
    assert stack.compose("exec", "-T", "api", "python", "-m", "api", "usage") == usage


def test_a_port_that_is_taken_is_named(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = stack.try_compose("up", "--detach", "--no-deps", "frontend", FRONTEND_PORT=port)
    assert done.returncode != 0 and f"127.0.0.1:{port}" in done.stderr, done.stderr
    stack.compose("up", "--detach", "--wait")


def test_images_are_small(stack: Stack) -> None:
    sizes = {name: int(docker("image", "inspect", "--format", "{{.Size}}", name)) / 1e6
             for name in ("finechat-page", "finechat-api:cpu", "finechat-trainer:cpu")}  # fmt: skip
    print(sizes)
    assert sizes["finechat-page"] < 700
    if not os.environ["UV_FIND_LINKS"]:
        pytest.skip("PIP_FIND_LINKS names no folder with the CPU build of torch")
    assert sizes["finechat-api:cpu"] < 3500


@pytest.fixture
def running(stack: Stack) -> Stack:
    """The stack with everything healthy; the first to ask waits for the training."""
    stack.compose("up", "--detach", "--wait")
    return stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield found
        found.close()


def test_a_person_chats_through_the_page_and_continues_after_the_api_was_killed(
    running: Stack, browser: Browser
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.goto(running.page_url)
    _say(page, "Name a color.", 1)
    running.try_compose("exec", "-T", "api", "python", "-c", KILL_THE_API)
    deadline = time.monotonic() + 180
    while (state := running.inspect("api"))["RestartCount"] == 0 or state["State"]["Health"][
        "Status"
    ] != "healthy":
        assert time.monotonic() < deadline, state["State"]
        time.sleep(0.5)
    assert state["RestartCount"] == 1
    expect(page.locator("#banner")).not_to_be_visible(timeout=30_000)
    _say(page, "And another one.", 2)
    page.close()


def _say(page: Page, text: str, count: int) -> None:
    """One turn, to the note that ends it."""
    expect(page.locator("#model input")).not_to_have_value("", timeout=30_000)
    expect(page.locator("#send")).to_be_visible(timeout=10_000)
    page.locator("#chat-input textarea").fill(text)
    page.locator("#send").click()
    expect(page.locator("#chatbot .note")).to_have_count(count, timeout=60_000)
    answers = page.locator("#chatbot .bot-row:not(:has(.note, .notice)) [data-testid=bot]")
    expect(answers).to_have_count(count)
    expect(answers.last).to_have_text(re.compile(r"\w"))


def test_containers_may_do_no_more_than_they_need(running: Stack) -> None:
    for service in SERVICES:
        found = running.inspect(service)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Init"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert found["Config"]["User"] not in ("", "root", "0")
        assert 0 < host["Memory"] and 0 < host["PidsLimit"] and host["LogConfig"]["Config"]["max-size"]
        assert KEY not in json.dumps(found) and ADMIN_KEY not in json.dumps(found)
        for ports in (found["NetworkSettings"]["Ports"] or {}).values():
            assert all(port["HostIp"] == "127.0.0.1" for port in ports or [])
    assert running.in_api("import os; print(os.getuid(), *sorted(os.listdir('/run/secrets')))").split() == [
        "1000", "api_admin_key", "api_key"]  # fmt: skip
    names = json.loads(running.compose("config", "--format", "json", COMPOSE_FILE="docker-compose.yml"))
    with_token = {name for name, service in names["services"].items()
                  if "hf_token" in {secret["source"] for secret in service.get("secrets", [])}}  # fmt: skip
    assert with_token == {"trainer"}


def test_api_and_page_cannot_call_out(running: Stack) -> None:
    reach_out = REACH_OUT.format(os.environ["OUTSIDE_HOST"])
    trainer = ("run", "--rm", "--no-deps", "--entrypoint", "python", "trainer", "-c", reach_out)
    assert running.try_compose(*trainer).returncode == 0, "else this proves nothing"
    for service in ("api", "frontend"):
        assert running.try_compose("exec", "-T", service, "python", "-c", reach_out).returncode != 0


def test_the_operators_port_answers_inside(running: Stack) -> None:
    curl = 'curl -sf -H "Authorization: Bearer $(cat /run/secrets/api_admin_key)" 127.0.0.1:9000/admin/status'
    assert json.loads(running.compose("exec", "-T", "api", "sh", "-c", curl))["state"] == "ready"


def test_the_bench_measures_the_api(running: Stack) -> None:
    assert _measure(running)["output_tokens_per_s"] > 0


def _measure(stack: Stack) -> dict[str, float]:
    few = ("--requests", "4", "--streams", "2", "--words", "20", "--tokens", "8")
    measured: dict[str, float] = json.loads(stack.compose("run", "--rm", "--no-deps", "bench", *few))
    return measured


@pytest.mark.parametrize("service", SERVICES)
def test_a_change_of_the_code_rebuilds_only_the_last_layer(stack: Stack, service: str) -> None:
    changed = next(stack.tree.joinpath(service).glob("errors.py"))
    changed.write_text(changed.read_text() + "\n# changed\n")
    image = json.loads(stack.compose("config", "--format", "json"))["services"][service]["image"]
    before = docker("image", "inspect", "--format", "{{.Id}}", image)
    begun = time.monotonic()
    stack.compose("build", service)
    took = time.monotonic() - begun
    assert docker("image", "inspect", "--format", "{{.Id}}", image) != before
    print(f"rebuild of {service}: {took:.1f} s", flush=True)
    assert took < stack.seconds["build"] / 2, "the requirements were not installed again"


def test_the_gpu_file_asks_for_a_gpu_and_says_so_where_there_is_none(running: Stack) -> None:
    """The images are built on this engine's base, with the requirements that need no GPU."""
    for service in ("api", "trainer"):
        locked = (running.tree / service / "requirements.txt").read_text()
        without_vllm = re.sub(r"^vllm.*\n( +--hash.*\n)*", "", locked, flags=re.MULTILINE)
        (running.tree / service / "requirements-cuda.txt").write_text(without_vllm)
    gpu = {"COMPOSE_FILE": "docker-compose.yml", "GPU_BASE_IMAGE": os.environ["BASE_IMAGE"]}
    config = json.loads(running.compose("config", "--format", "json", **gpu))
    for service in ("trainer", "api"):
        [device] = config["services"][service]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    running.compose("build", "trainer", "api", **gpu)
    assert "prepare" in docker("run", "--rm", "--read-only", "finechat-trainer:gpu", "--help")
    volume = f"{running.inspect('api')['Config']['Labels']['com.docker.compose.project']}_artifacts"
    given = ["--tmpfs", "/tmp", "--volume", "/cache", "--volume", f"{volume}:/artifacts:ro"]  # as in compose
    checked = docker(
        "run", "--rm", "--read-only", "--env", f"API_KEY={KEY}", *given, "finechat-api:gpu", "check"
    )
    assert checked.startswith("ok: ")
    refused = running.try_compose("up", "--detach", "trainer", **gpu)
    assert refused.returncode != 0 and 'could not select device driver "nvidia"' in refused.stderr


@pytest.mark.parametrize("service", ["trainer", "api"])
def test_the_locks_for_gpus_resolve(stack: Stack, service: str) -> None:
    base = f"BASE_IMAGE={os.environ['BASE_IMAGE']}"
    docker("build", "--quiet", "--file", f"{stack.tree}/Dockerfile.gpu", "--target", "tools",
           "--build-arg", base, "--tag", "finechat-tools", str(stack.tree))  # fmt: skip
    excludes = ["--excludes", "/lock/excludes-cuda.txt"] if service == "trainer" else []
    lock = (ROOT / service / "requirements-cuda.txt").read_text()
    command = ["uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", *excludes,
               "--python-platform", "x86_64-manylinux_2_28", "/lock/requirements-cuda.txt"]  # fmt: skip
    mounted = ("--volume", f"{ROOT / service}:/lock:ro", "--env", "PATH=/opt/tools/bin:/usr/bin:/bin")
    found = docker("run", "--rm", *mounted, "finechat-tools", *command)
    assert set(found.splitlines()) == set(re.findall(r"^[^\s#]+==[^\s\\]+", lock, re.MULTILINE))
