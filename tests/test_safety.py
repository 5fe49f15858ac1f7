"""Data runs no code, a run writes into its own folders only and opens no connection."""

import ast
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import generate
import pytest
from conftest import ROOT, checksums, write_raw
from packaging.requirements import Requirement

from siam_bids import cli
from siam_bids.support.atomic_files import SCRATCH

PACKAGE = ROOT / "siam_bids"
MODULES = sorted(PACKAGE.rglob("*.py"))


def named(module: Path) -> str:
    """`slurm`, `cli/slurm`: the module's place in the package."""
    return module.relative_to(PACKAGE).with_suffix("").as_posix()


def calls(module: Path) -> list[tuple[str, dict[str, str]]]:
    """Every call in a module: what is called, and its keywords, as they are written."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return [
        (ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def imported(module: Path) -> set[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_nothing_that_is_read_can_be_code(module):
    runners = {"yaml", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess"}
    assert not imported(module) & runners
    for name, words in calls(module):
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
        assert not re.fullmatch(r"pickle\.\w+|pd\.(read_pickle|eval)|importlib\.import\w+", name)
        if name.endswith("torch.load"):
            assert words["weights_only"] == "True"
        if name.endswith("np.load"):
            assert "allow_pickle" not in words
        if (
            name.endswith("Environment") and named(module) != "pipelines/slurm"
        ):  # it writes shell scripts
            assert words["autoescape"] == "True"


def test_only_the_store_can_reach_the_network():
    talkers = {"urllib", "http", "socket", "ssl", "ftplib", "requests", "httpx", "aiohttp"}
    found = {named(module): imported(module) & talkers for module in MODULES}
    assert {name: used for name, used in found.items() if used} == {
        "bids/description": {"urllib"},  # takes file:// addresses apart
        "models/download": {"http", "urllib"},
        "support/signals": {"socket"},  # a pair within the process, to hear of signals
    }


@pytest.fixture
def traced(tmp_path, head, tiny_model):
    """System calls of both levels, with results asked for beside the data."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    bids = write_raw(tmp_path / "bids", head, "sub-01_T1w")
    before = checksums(tmp_path / "bids"), checksums(tiny_model)
    common = [str(bids), str(tmp_path / "out")]
    options = ["--model", str(tiny_model), "-w", str(tmp_path / "work"), "--device", "cpu"]
    code = (
        "import sys; from siam_bids import cli\n"
        f"sys.exit(cli.main({[*common, 'participant', *options]}) or "
        f"cli.main({[*common, 'group', *options]}))"
    )
    log = tmp_path / "strace"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", str(log), "-e"]
    done = subprocess.run(
        [*strace, "trace=%file,%network,execve,flock,fcntl", sys.executable, "-B", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert (checksums(bids), checksums(tiny_model)) == before
    return tmp_path, log.read_text(errors="replace").splitlines()


WRITES = re.compile(
    r"^\d+ +(?:openat?\(.*(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC)"
    r"|(?:mkdir|rmdir|rename|unlink|link|symlink|truncate|chmod|chown|mknod|utime|setxattr)\w*\()"
)

ASKING = {"sh", "hostname", "uname", "ldconfig", "fc-list"}
"""Programs that libraries start to learn of this host and its fonts."""


def written(line: str) -> list[str]:
    """The paths that a traced call would change; links and renames have two."""
    folder = re.search(r"\((?:AT_FDCWD|\d+)<([^>]*)>", line)
    names = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    return [str(Path(folder[1] if folder else "/") / name) for name in names]


def test_a_run_writes_nowhere_else_locks_nothing_and_connects_to_nobody(traced):
    place, lines = traced
    failed = re.compile(r"= -1 E")
    own = (str(place / "out"), str(place / "work"), "/dev/null", "/dev/shm/", "/proc/")
    changes = [
        path
        for line in lines
        if WRITES.search(line) and not failed.search(line)
        for path in written(line)
    ]
    assert any(path.endswith("dataset_description.json") for path in changes)
    assert [path for path in changes if not path.startswith(own)] == []
    # On NFS, locks may be absent and a write may be seen half done: there is only the renaming.
    assert [line for line in lines if re.search(r"flock\(|F_(OFD_)?SETLK", line)] == []
    opened = [
        Path(path).name
        for line in lines
        if re.search(r" openat?\(.*(O_WRONLY|O_RDWR|O_CREAT)", line) and not failed.search(line)
        for path in written(line)
        if path.startswith(str(place / "out"))
    ]
    assert len(opened) > 20
    assert [name for name in opened if not name.startswith(SCRATCH)] == []
    talk = [line for line in lines if re.search(r"(connect|sendto|bind)\(", line)]
    assert [line for line in talk if "AF_INET" in line] == []
    programs = {
        Path(re.search(r'execve\("([^"]+)', line)[1]).name
        for line in lines
        if "execve(" in line and not failed.search(line)
    }
    assert programs <= {Path(sys.executable).name, *ASKING}


def test_values_of_tables_are_text_on_pages_and_in_nothing_run(study, tmp_path):
    """Template, script and formula-like content of participants.tsv stays what it is."""
    raw, out = study(tmp_path)
    path = raw / "participants.tsv"
    evil = "{{ 7 * 7 }}<script>alert(1)</script>"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{lines[0]}\tnote", *(f"{line}\t{evil}" for line in lines[1:])]))
    assert cli.main([str(raw), str(out), "group"]) == 0
    page = (out / "group.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    table = (out / "group_desc-wide_volumes.tsv").read_text(encoding="utf-8")
    assert table.count("{{ 7 * 7 }}") == 12


OSV = "https://api.osv.dev/v1/query"


def audited(tools, service: str) -> subprocess.CompletedProcess[str]:
    """What `make audit` says, with the answers of that service."""
    command = ["make", "-o", ".venv-tools/ready", "audit", f"OSV={service}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_audit_asks_about_every_pinned_package_and_names_the_vulnerable_one(tools, server):
    server.vulnerable["jinja2"] = {"id": "PYSEC-0", "summary": "Bad.", "affected": []}
    done = audited(tools, server.url)
    assert done.returncode != 0
    assert re.findall(r"^(\S+) +[\d.]+ +PYSEC", done.stdout, re.MULTILINE) == ["jinja2"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    here = {pin.name for pin in pinned if not pin.marker or pin.marker.evaluate()}
    assert here == set(server.asked)


def test_no_pinned_package_has_a_known_vulnerability(tools):
    question = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}}).encode()
    try:
        urllib.request.urlopen(OSV, question, timeout=5).close()
    except OSError as error:
        pytest.skip(f"{OSV} does not answer here: {error}")
    done = audited(tools, OSV)
    assert done.returncode == 0, done.stdout


SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}|\bxox[abprs]-\w{10}"
    r"|\bhf_\w{34}\b|\bpypi-AgE\w{20}|\bglpat-\w{20}"
)


def test_no_secret_lies_in_the_repository():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    for name in listed.stdout.decode().splitlines():
        content = (ROOT / name).read_bytes().decode("latin1")
        assert not SECRETS.search(content), name


def test_the_page_of_licences_names_all_that_is_installed_with_the_app():
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (.+?) \|$", page, re.MULTILINE))
    found = generate.licences_of_packages()
    assert set(found) <= set(listed)
    assert {name: listed[name] for name in found} == found
    strong = {name for name, terms in found.items() if re.search(r"(?<![Ll])GPL", terms)}
    assert strong == set()
    assert not [name for name, terms in found.items() if terms == generate.UNKNOWN]
