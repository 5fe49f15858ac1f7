"""The scripts for SLURM: their content and, where it is installed, a real SLURM of one node."""

import json
import os
import pwd
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import run_program, write_raw

from siam_bids import cli
from siam_bids.bids.names import finished_scans
from siam_bids.cli import slurm as slurm_command
from siam_bids.models.registry import registry
from siam_bids.support.atomic_files import sha256

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin")]


@pytest.fixture
def study(tmp_path, head) -> Path:
    """Four participants, two of them with two sessions."""
    scans = ("sub-a", "sub-b", "sub-c_ses-1", "sub-c_ses-2", "sub-d_ses-1")
    return write_raw(tmp_path / "study", head, *(f"{scan}_T1w" for scan in scans))


def write(study, out, model, *words) -> Path:
    command = [str(study), str(out), "--model", str(model), *words]
    assert slurm_command.main(command) == 0
    return out / "code" / "slurm"


def directives(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script.read_text(), re.MULTILINE))


def test_an_array_covers_each_participant_once_and_is_sized(study, tmp_path, tiny_model):
    folder = write(study, tmp_path / "out", tiny_model, "--per-task", "2", "--throttle", "9")
    assert (folder / "jobs.txt").read_text().splitlines() == [
        "--participant-label a b",
        "--participant-label c d",
    ]
    asked = directives(folder / "participant.sbatch")
    assert asked["array"] == "1-2%9"
    assert 1000 <= int(asked["mem"].removesuffix("M")) <= 2000  # the interpreter and a tiny model
    assert 5 <= int(asked["time"]) <= 15
    assert "gres" not in asked
    assert os.access(folder / "submit.sh", os.X_OK)


def test_what_is_done_is_left_out(study, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    common = [str(study), str(out), "participant", "--model", str(tiny_model), "--device", "cpu"]
    assert cli.main([*common, "--participant-label", "a", "c", "--n-cpus", "1"]) == 0
    folder = write(study, out, tiny_model, "--per-task", "1")
    lines = (folder / "jobs.txt").read_text().split()
    assert lines == ["--participant-label", "b", "--participant-label", "d"]
    assert cli.main([*common, "--n-cpus", "1"]) == 0
    capsys.readouterr()
    assert slurm_command.main([str(study), str(out), "--model", str(tiny_model)]) == 2
    assert "Everything is already done." in capsys.readouterr().err


def test_options_for_the_tasks_decide_what_is_done(study, tmp_path, tiny_model, capsys):
    """What was segmented otherwise, or is to be overwritten, is still to do."""
    out, model = tmp_path / "out", ["--model", str(tiny_model)]
    otherwise = ["--scale", "1.4"]
    done = [str(study), str(out), "participant", *model, "--participant-label", "a", *otherwise]
    assert cli.main([*done, "--device", "cpu", "--n-cpus", "1"]) == 0
    common = [str(study), str(out), *model, "--participant-label", "sub-a"]
    assert slurm_command.main([*common, "--", *otherwise]) == 2
    for options in ([], ["--scale", "1.2"], [*otherwise, "--overwrite"]):
        assert slurm_command.main([*common, "--", *options]) == 0
    assert "--scale 1.4 --overwrite" in (out / "code/slurm/participant.sbatch").read_text()
    capsys.readouterr()
    assert slurm_command.main([*common, "--", "--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("combine", ["sessions", "all"])
def test_sessions_that_are_combined_are_not_split(study, tmp_path, tiny_model, capsys, combine):
    words = [str(study), str(tmp_path / "out"), "--model", str(tiny_model), "--sessions"]
    assert slurm_command.main([*words, "--", "--combine", combine]) == 2
    said = f"--combine {combine} needs all sessions of a participant in one task. Leave --sessions"
    assert said in capsys.readouterr().err
    assert slurm_command.main([*words, "--", "--combine", "contrasts"]) == 0


def test_sessions_gpu_container_and_own_options(study, tmp_path, tiny_model, capsys):
    folder = write(
        study, tmp_path / "out", tiny_model, "--sessions", "--gpu", "--container", "/images/s.sif",
        "--sbatch=--account=lab", "--minutes", "20", "--mem-mb", "3000",
        "--", "--probabilities", "GM",
    )  # fmt: skip
    assert (folder / "jobs.txt").read_text().splitlines() == [
        "--participant-label a",
        "--participant-label b",
        "--participant-label c --session-label 1",
        "--participant-label c --session-label 2",
        "--participant-label d --session-label 1",
    ]
    script = (folder / "participant.sbatch").read_text()
    asked = directives(folder / "participant.sbatch")
    assert (asked["gres"], asked["account"]) == ("gpu:1", "lab")
    assert (asked["time"], asked["mem"]) == ("20", "3000M")
    assert "apptainer run --cleanenv --containall --nv" in script
    assert f"--bind {study}:{study}:ro --bind {tmp_path}/out:{tmp_path}/out" in script
    assert f"--bind {tiny_model}:{tiny_model}:ro" in script
    assert f'--bind "$work":/work /images/s.sif {study} {tmp_path}/out participant' in script
    assert f"--model {tiny_model} --device cuda --probabilities GM" in script
    for name in ("participant.sbatch", "group.sbatch", "submit.sh"):
        subprocess.run(["bash", "-n", str(folder / name)], check=True)


def test_a_container_sees_the_models_that_a_file_names(study, tmp_path, tiny_model):
    path = tmp_path / "pair.json"
    path.write_text(json.dumps({"members": [os.path.relpath(tiny_model, tmp_path)] * 2}))
    folder = write(study, tmp_path / "out", path, "--container", "/images/s.sif")
    words = (folder / "participant.sbatch").read_text().split()
    binds = [word for option, word in pairwise(words) if option == "--bind"]
    sources = {Path(os.path.normpath(bind.split(":")[0])) for bind in binds}
    assert {path, tiny_model} <= sources
    path.write_text(json.dumps({"members": ["compact-2mm", "compact-1mm"]}))
    folder = write(study, tmp_path / "other", path, "--container", "/images/s.sif")
    assert "data/models" not in (folder / "participant.sbatch").read_text()  # the image has it


def test_a_container_finds_models_of_several_folders(study, tmp_path, tiny_model, monkeypatch):
    roots = [tmp_path / name for name in ("one", "two", "unused")]
    for root, name in zip(roots, ("siam-v0.3", "siam-v0.2"), strict=False):
        shutil.copytree(tiny_model, root / registry()[name]["folder"])
    monkeypatch.setenv("SIAM_MODEL_DIR", os.pathsep.join(map(str, roots)))
    path = tmp_path / "pair.json"
    path.write_text(json.dumps({"members": ["siam-v0.3", "siam-v0.2"]}))
    folder = write(study, tmp_path / "out", path, "--container", "/images/s.sif")
    script = (folder / "participant.sbatch").read_text()
    assert script.count(f"--env SIAM_MODEL_DIR={roots[0]}:{roots[1]} ") == 1
    assert all(f"--bind {root}:{root}:ro " in script for root in roots[:2])
    assert "unused" not in script


def test_a_container_gets_the_words_and_the_gpu_of_its_task(study, tmp_path, tiny_model):
    """The script as bash runs it, with a program that notes its words in place of apptainer."""
    folder = write(
        study, tmp_path / "out", tiny_model, "--gpu", "--container", "/images/s.sif",
        "--per-task", "2", "--", "--formula", "GM ~ age",
    )  # fmt: skip
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.parent.mkdir()
    apptainer.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nenv > {tmp_path}/env\n'
    )
    apptainer.chmod(0o755)
    environment = {
        "PATH": f"{apptainer.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "SLURM_ARRAY_TASK_ID": "2", "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    run_program(["bash", folder / "participant.sbatch"], tmp_path, environment)
    words = (tmp_path / "words").read_text().splitlines()
    binds = [word for option, word in pairwise(words) if option == "--bind"]
    assert words[:4] == ["run", "--cleanenv", "--containall", "--nv"]
    assert binds[:3] == [
        f"{study}:{study}:ro", f"{tmp_path}/out:{tmp_path}/out", f"{tiny_model}:{tiny_model}:ro"
    ]  # fmt: skip
    assert re.fullmatch(rf"{tmp_path}/siam-bids\.\w+:/work", binds[3])
    assert words[words.index("/images/s.sif") :] == [
        "/images/s.sif", str(study), f"{tmp_path}/out", "participant", "-w", "/work",
        "--n-cpus", "2", "--model", str(tiny_model), "--device", "cuda", "--formula", "GM ~ age",
        "--participant-label", "c", "d",
    ]  # fmt: skip
    assert "APPTAINERENV_CUDA_VISIBLE_DEVICES=3" in (tmp_path / "env").read_text().splitlines()
    assert not list(tmp_path.glob("siam-bids.*"))  # scratch is swept


@pytest.mark.parametrize("ratings", [["--ratings", "ratings.tsv"], ["--ratings=ratings.tsv"]])
def test_tasks_get_the_index_and_paths_that_hold_elsewhere(
    study, tmp_path, tiny_model, monkeypatch, ratings
):
    """The index is made once, here; options after -- go to both levels."""
    (tmp_path / "ratings.tsv").touch()
    monkeypatch.chdir(tmp_path)
    folder = write(
        study, tmp_path / "out", tiny_model, "--container", "image.sif", "--bids_database_dir",
        "index", "--", "--adjust-for", "age", *ratings,
    )  # fmt: skip
    assert (tmp_path / "index" / "layout_index.sqlite").exists()
    told = f"--bids-database-dir {tmp_path}/index --adjust-for age --ratings {tmp_path}/ratings.tsv"
    for name in ("participant.sbatch", "group.sbatch"):
        script = (folder / name).read_text()
        assert told in script
        for path in (tmp_path / "index", tmp_path / "ratings.tsv"):
            assert f"--bind {path}:{path}:ro" in script
        assert f"{tmp_path}/image.sif {study}" in script


def test_names_that_cannot_be_used_cost_no_other_task(study, tmp_path, tiny_model, capsys):
    """`sub-03 (copy)` would add words to a line of the list of jobs."""
    shutil.copytree(study / "sub-b", study / "sub-b (copy)")
    shutil.copytree(study / "sub-d", study / "sub-D_old")
    words = [str(study), str(tmp_path / "out"), "--model", str(tiny_model), "--per-task", "9"]
    assert slurm_command.main(words) == 1
    said = capsys.readouterr().err
    assert "FAILED sub-b (copy)/anat/sub-b_T1w.nii.gz: The name says sub-b, but the file" in said
    assert "FAILED sub-D_old/ses-1/anat/sub-d_ses-1_T1w.nii.gz: " in said
    jobs = (tmp_path / "out/code/slurm/jobs.txt").read_text()
    assert jobs == "--participant-label a b c d\n"


ODD_FOLDERS = {
    "out": "{}/out/logs",
    "my out": '"{}/my out/logs"',
    "50% done": '"{}/50%% done/logs"',
    'a "b" c': '"{}/a \\"b\\" c/logs"',
    "it's": '"{}/it\'s/logs"',
    "no#1": '"{}/no#1/logs"',
    "脳": "{}/脳/logs",
}
"""Names of output folders, and how the folder of logs is written in `#SBATCH` lines."""


@pytest.mark.parametrize(("folder", "written"), ODD_FOLDERS.items())
def test_paths_in_directives_are_quoted(folder, written, study, tmp_path, tiny_model):
    scripts = write(study, tmp_path / folder, tiny_model)
    start = written.format(tmp_path).replace("/logs", "/logs/slurm")
    asked = directives(scripts / "participant.sbatch")["output"]
    assert asked == f"{start}/participant-%A_%a.out"
    assert directives(scripts / "group.sbatch")["output"] == f"{start}/group-%j.out"


def test_a_line_break_is_no_part_of_a_directive(study, tmp_path, tiny_model, capsys):
    words = [str(study), str(tmp_path / "o"), "--model", str(tiny_model)]
    for more in (["--sbatch=--account=a\nrm -rf x"], []):
        out = str(tmp_path / "o") if more else str(tmp_path / "o\nrm -rf x")
        assert slurm_command.main([words[0], out, *words[2:], *more]) == 2
        assert "that #SBATCH lines cannot contain" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def test_files_of_others_are_not_replaced(study, tmp_path, tiny_model, capsys):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    words = [str(study), str(out), "--model", str(tiny_model), "--folder", str(mine)]
    for name, text in (
        ("submit.sh", "#!/bin/sh\necho siam-bids\n"),
        ("jobs.txt", "a\n--participant-label b\n"),
        ("participant.sbatch", ""),
        ("group.sbatch", None),
    ):
        path = mine / name
        path.mkdir() if text is None else path.write_text(text)
        assert slurm_command.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path} exists and was not written by siam-bids-slurm. Remove it" in line
        assert [each.name for each in mine.iterdir()] == [name]
        path.rmdir() if text is None else path.unlink()
    assert slurm_command.main(words) == 0
    assert slurm_command.main([*words, "--per-task", "1"]) == 0  # its own are replaced
    assert len((mine / "jobs.txt").read_text().splitlines()) == 4


def test_scripts_do_not_go_into_the_raw_dataset(study, tmp_path, tiny_model, capsys):
    words = [str(study), str(tmp_path / "out"), "--model", str(tiny_model)]
    for folder in (study, study / "code", study / "sub-a" / "anat"):
        assert slurm_command.main([*words, "--folder", str(folder)]) == 2
        assert f"--folder {folder} lies inside the dataset" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert slurm_command.main([*words, "--folder", str(tmp_path / "file" / "x")]) == 2
    assert "is a file, not a folder. Give a folder." in capsys.readouterr().err
    inside = study / "derivatives" / "siam-bids"
    assert slurm_command.main([str(study), str(inside), *words[2:]]) == 0
    assert (inside / "code" / "slurm" / "submit.sh").exists()


@pytest.mark.parametrize("name", ["a:b", "a,b", 'a"b', "a\\b"])
def test_a_container_is_not_bound_to_names_that_it_would_split(
    name, study, tmp_path, tiny_model, capsys
):
    words = ["--container", "/images/s.sif", "--model"]
    model = shutil.copytree(tiny_model, tmp_path / name / "model")
    raw = shutil.copytree(study, tmp_path / name / "raw")
    for source, target, network in (
        (raw, tmp_path / "out", tiny_model),
        (study, tmp_path / name / "out", tiny_model),
        (study, tmp_path / "out", model),
    ):
        assert slurm_command.main([str(source), str(target), *words, str(network)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "siam-bids: error: Apptainer cannot bind /" in line
        assert f"its name contains {name[1]}. Rename it, or run without --container." in line
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_and_writes_nothing(study, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    words = [str(study), str(out), "--model", str(tiny_model), "--dry-run"]
    assert slurm_command.main(words) == 0
    assert "#SBATCH --requeue" in capsys.readouterr().out
    assert not out.exists()


@pytest.fixture
def cluster(tmp_path_factory):
    """A SLURM of one node, without systemd; gives the environment its commands need."""
    if MISSING:
        pytest.skip(f"needs {', '.join(MISSING)} (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("needs root to start slurmd")
    place = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "log"):
        (place / name).mkdir()
    place.chmod(0o755)
    for parent in place.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    host = os.uname().nodename.split(".")[0]
    munge = place / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    user = pwd.getpwuid(0).pw_name
    (place / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SlurmctldPort=36817
SlurmdPort=36818
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/log/slurmctld
SlurmdLogFile={place}/log/slurmd
SchedulerParameters=bf_interval=1,sched_min_interval=200000,requeue_delay=1
MinJobAge=300
KillWait=15
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    daemons = []

    def start(*words):
        with (place / "log" / Path(words[0]).name).open("ab") as log:
            daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))

    start("/usr/sbin/munged", "-F", "--force", f"--key-file={munge}/key",
          f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
          f"--seed-file={munge}/seed")  # fmt: skip
    wait_for((munge / "socket").exists, 20)
    start("/usr/sbin/slurmctld", "-D")
    start("/usr/sbin/slurmd", "-D")

    def idle():
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, check=False
        )
        return done.stdout.strip() == b"idle"

    try:
        wait_for(idle, 60)
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--state=RUNNING"], env=environment, capture_output=True, check=False
        )
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.2)


def test_slurm_reads_the_directives_as_they_are_meant(cluster, tmp_path):
    for number, (folder, written) in enumerate(ODD_FOLDERS.items()):
        logs = tmp_path / folder / "logs"
        logs.mkdir(parents=True)
        script = tmp_path / f"{number}.sbatch"
        output = f"#SBATCH --output={written.format(tmp_path)}/x-%j.out"
        script.write_text(f"#!/bin/bash\n{output}\necho here\n", encoding="utf-8")
        subprocess.run(["sbatch", str(script)], env=cluster, check=True, cwd=tmp_path)
    for folder in ODD_FOLDERS:
        place = tmp_path / folder / "logs"
        wait_for(
            lambda place=place: [p.read_text() for p in place.glob("x-[0-9]*.out")] == ["here\n"],
            60,
        )


def states(environment, *options):
    words = ["squeue", "-h", "-a", "--array", "-t", "all", "-o", "%F_%K %T", *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_a_real_slurm_runs_requeues_and_gathers(cluster, study, tmp_path, tiny_model, program):
    """One task is requeued while it works, as in a preemption; the end is as if nothing was."""
    out = tmp_path / "out"
    folder = write(
        study, out, tiny_model, "--program", str(program), "--per-task", "3", "--cpus", "1",
        "--mem-mb", "100", "--minutes", "30",
    )  # fmt: skip
    done = subprocess.run(
        [str(folder / "submit.sh")], env=cluster, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    array, group = re.findall(r"job (\d+)", done.stdout)
    sidecar = out / "sub-a/anat/sub-a_seg-siam_desc-T1w_dseg.json"
    wait_for(sidecar.exists, 240)
    first = sha256(sidecar), sidecar.stat().st_mtime_ns
    subprocess.run(["scontrol", "requeue", f"{array}_1"], env=cluster, check=True)
    wait_for(lambda: [f"{array}_1", "PENDING"] in states(cluster), 60)
    log = out / "logs" / "slurm" / f"participant-{array}_1.out"
    wait_for(lambda: "stopped by SIGTERM" in log.read_text(), 30)
    job = ["scontrol", "update", f"JobId={array}_1", "StartTime=now"]  # SLURM waits two minutes
    subprocess.run(job, env=cluster, check=False, capture_output=True)
    wait_for(lambda: {s for _, s in states(cluster)} == {"COMPLETED"}, 480)
    assert sorted(name for name, _ in states(cluster)) == sorted(
        [f"{array}_1", f"{array}_2", f"{group}_N/A"]
    )
    assert len(list(finished_scans(out))) == 5
    assert (sha256(sidecar), sidecar.stat().st_mtime_ns) == first  # what was finished was kept
    [ends] = re.findall(r"(\d) segmented, (\d) already done, 0 failed\.", log.read_text())
    segmented, kept = map(int, ends)
    assert segmented + kept == 4
    assert kept >= 1
    assert segmented >= 1, "nothing was left to do: the requeue came too late"
    assert len((out / "group_desc-wide_volumes.tsv").read_text().splitlines()) == 6
    assert not list(out.rglob(".tmp-*"))
