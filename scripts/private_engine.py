"""Run one command with a private Docker Engine and Compose v2, on Debian, as root, without an image registry.

`python scripts/private_engine.py COMMAND...` sets DOCKER_HOST, BASE_IMAGE and UV_FIND_LINKS, which the
Compose files read, and OUTSIDE_HOST, which answers on port 80. It exits with the command's exit code.

Debian's packages are unpacked and not installed. The engine, the command and all containers run in their
own network, mount and process namespaces. The kernel therefore ends all of them with this process, however
it ends, and the machine's network, mounts and packages are never touched. The packages and the base image
(Debian with Python) are kept in .venv/containers; images, containers and volumes are not.

Tried: the container tests, on Debian 12 as root. Not tried: any other system, and GPUs in containers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from environments import VENVS, SetupError, end_with_parent, find_links, say

KEPT = VENVS.resolve() / "containers"  # runc refuses a root file system behind a symbolic link
ROOTFS, BASE, ENGINE = KEPT / "root", KEPT / "base.tar", KEPT / "engine"
BASE_IMAGE = "python:3.11-slim-bookworm"
RELEASE, COMPOSE_RELEASE = "bookworm", "trixie"
# Bookworm's own engine has only Compose v1. These packages need nothing else from trixie.
NEWER = ("docker.io", "docker-cli", "docker-compose", "docker-buildx")
PACKAGES = (*NEWER, "containerd", "debootstrap", "iptables", "runc", "slirp4netns", "tini")
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
INSIDE = "--inside"
T = TypeVar("T")
# Only the base image gets the settings with which this machine reaches its package index.
INDEX_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX",
                  "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES_INSIDE = Path("/etc/ssl/this-machine.crt")  # a file name that no package overwrites
BRIDGE, WHEELS_PORT, CGROUP = "172.31.0.1", 3141, "finechat-test"
MIN_FREE_GIB = 30


def why_not() -> str | None:
    """Return why this machine cannot run an engine, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    if f"VERSION_CODENAME={RELEASE}" not in Path("/etc/os-release").read_text():
        return f"it needs Debian {RELEASE}"
    if not Path("/dev/net/tun").exists():
        return "it needs /dev/net/tun"
    unshared = subprocess.run([*UNSHARE, "true"], capture_output=True)
    return None if unshared.returncode == 0 else "it needs namespaces of its own (unshare)"


def main(command: Sequence[str]) -> int:
    """Run the command with an engine and return its exit code. Raises: SetupError."""
    if problem := why_not():
        raise SetupError(f"a private container engine cannot run here: {problem}")
    KEPT.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(ENGINE, ignore_errors=True)
    if (free_gib := shutil.disk_usage(KEPT).free / 2**30) < MIN_FREE_GIB:
        raise SetupError(f"{free_gib:.1f} GiB are free under {KEPT}, {MIN_FREE_GIB} are needed for images")
    _once(ROOTFS, _unpack)
    space = subprocess.Popen(
        [*UNSHARE, sys.executable, __file__, INSIDE, *command], preexec_fn=end_with_parent
    )
    network = None
    try:
        network = subprocess.Popen(
            [
                str(ROOTFS / "usr/bin/slirp4netns"),
                "--configure",
                "--mtu=65520",
                "--disable-host-loopback",
                _first_of(space),
                "tap0",
            ],
            env={**os.environ, "LD_LIBRARY_PATH": str(ROOTFS / "usr/lib/x86_64-linux-gnu")},
            preexec_fn=end_with_parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return space.wait()
    finally:
        for process in (space, network):
            if process:
                process.kill()
                process.wait()
        _remove_traces()


def _first_of(space: subprocess.Popen[bytes]) -> str:
    """Return the process that `unshare` has started in the new namespaces."""
    children = Path(f"/proc/{space.pid}/task/{space.pid}/children")
    found = _wait("the namespaces", lambda: children.read_text().split())
    return found[0]


def _unpack(root: Path) -> None:
    """Download Debian's packages into `root`, with separate lists and pins for apt."""
    sources = [f"deb [signed-by={KEYRING}] {_mirror()} {r} main\n" for r in (RELEASE, COMPOSE_RELEASE)]
    apt = KEPT / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text("".join(sources))
    (apt / "preferences").write_text(
        f"Package: {' '.join(NEWER)}\nPin: release n={COMPOSE_RELEASE}\nPin-Priority: 990\n\n"
        f"Package: *\nPin: release n={COMPOSE_RELEASE}\nPin-Priority: -1\n"
    )
    options = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": apt / "preferences",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in options.items())]
    _must([*command, "update"])
    _must([*command, "install", "--download-only", "--reinstall", "--no-install-recommends", *PACKAGES])
    for package in sorted((apt / "archives").glob("*.deb")):
        _must(["dpkg-deb", "--extract", str(package), str(root)])
    for name in ("iptables", "ip6tables"):  # update-alternatives would have made this link
        (root / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    shutil.rmtree(apt)


def _mirror() -> str:
    """Return the source of this machine's Debian packages."""
    targets = _must(["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)"])
    places = [line.split()[2] for line in targets.splitlines() if line.startswith(f"{RELEASE} main ")]
    if not places:
        raise SetupError(f"apt has no source of Debian {RELEASE} main")
    return places[0]


def _inside(command: Sequence[str]) -> int:
    """Mount the packages over /usr in the new namespaces, start the engine and run the command."""
    _must(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={ROOTFS}/usr:/usr", "/usr"])
    _must(["ip", "link", "set", "lo", "up"])
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ["PATH"]
    _wait("the network", lambda: _must(["ip", "route", "show", "default"]))
    _once(BASE, _make_base)
    ENGINE.mkdir()
    os.environ["DOCKER_HOST"] = f"unix://{ENGINE}/socket"
    with (ENGINE / "dockerd.log").open("wb") as log:
        engine = subprocess.Popen(
            ["dockerd", "--data-root", str(ENGINE / "data"), "--exec-root", str(ENGINE / "exec"),
             "--pidfile", str(ENGINE / "pid"), "--host", os.environ["DOCKER_HOST"],
             "--bip", f"{BRIDGE}/24", "--cgroup-parent", CGROUP],
            stdout=log, stderr=log,
        )  # fmt: skip
    _wait("the engine", lambda: engine.poll() is None and _run(["docker", "info"]).returncode == 0)
    changes = [f"--change=ENV {name}={value}" for name, value in _index_settings().items()]
    _must(["docker", "import", *changes, str(BASE), BASE_IMAGE])
    environment = {
        **os.environ,
        "BASE_IMAGE": BASE_IMAGE,
        "UV_FIND_LINKS": _serve_wheels(),
        "OUTSIDE_HOST": str(urlsplit(_mirror()).hostname),
    }
    code = subprocess.run(command, env=environment).returncode
    for container in _must(["docker", "ps", "--quiet", "--all"]).split():
        _run(["docker", "rm", "--force", container])
    engine.terminate()
    engine.wait(30)
    return code


def _make_base(tar: Path) -> None:
    """Make a tar of a small Debian with Python, which stands in for the official Python image."""
    system = KEPT / "base"
    system.mkdir(exist_ok=True)
    _must(["mount", "-t", "tmpfs", "tmpfs", str(system)])
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    _must(["debootstrap", "--variant=minbase", f"--include={packages}", RELEASE, str(system), _mirror()])
    next(system.glob("usr/lib/python3*/EXTERNALLY-MANAGED")).unlink()
    (system / "usr/bin/python").symlink_to("python3")
    shutil.copy(CERTIFICATES, system / CERTIFICATES_INSIDE.relative_to("/"))
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(system / folder)
        (system / folder / "partial").mkdir(parents=True)
    _must(["tar", "--create", "--directory", str(system), "--file", str(tar), "."])
    _must(["umount", str(system)])
    system.rmdir()


def _index_settings() -> dict[str, str]:
    certificates = {name: str(CERTIFICATES_INSIDE) for name in ("SSL_CERT_FILE", "PIP_CERT")}
    return certificates | {name: os.environ[name] for name in INDEX_SETTINGS if os.environ.get(name)}


def _serve_wheels() -> str:
    """Return a page with this machine's own wheels that builds can read, or an empty string."""
    places = find_links()
    if not places or not Path(places[0]).is_dir():
        return places[0] if places else ""
    subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", BRIDGE, "--directory", places[0], str(WHEELS_PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return f"http://{BRIDGE}:{WHEELS_PORT}/"


def _remove_traces() -> None:
    shutil.rmtree(ENGINE, ignore_errors=True)
    for group in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"):
        for folder in sorted((p for p in (group, *group.rglob("*")) if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _once(path: Path, make: Callable[[Path], None]) -> None:
    """Make `path` unless it exists, completely or not at all."""
    if path.exists():
        return
    say(f"   container engine: making {path.name}")
    scratch = path.with_name(f"{path.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    make(scratch)
    scratch.rename(path)


def _wait(what: str, ready: Callable[[], T]) -> T:
    deadline = time.monotonic() + 60
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise SetupError(f"{what} did not come up; see {ENGINE / 'dockerd.log'}")
        time.sleep(0.1)
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _must(command: Sequence[str]) -> str:
    done = _run(command)
    if done.returncode != 0:
        raise SetupError(f"`{' '.join(command[:2])}` failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


if __name__ == "__main__":
    inside, arguments = sys.argv[1:2] == [INSIDE], sys.argv[1:]
    try:
        raise SystemExit(_inside(arguments[1:]) if inside else main(arguments))
    except SetupError as error:
        sys.exit(f"private engine: {error}")
