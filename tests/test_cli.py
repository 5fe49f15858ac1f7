import errno
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from siam_bids import __version__, cli
from siam_bids.cli import app, console, export, models as models_command, segment, slurm, train
from siam_bids.errors import UsageError, out_of_memory

ROOT = Path(__file__).resolve().parent.parent


def parse(*words):
    arguments = app.parser().parse(console.with_hyphens(words))
    return app.run_config(arguments, "")


@pytest.mark.parametrize(
    "words",
    [
        ["in", "out", "participant", "--participant-label", "01", "02"],
        ["in", "out", "participant", "--participant_label", "sub-01", "sub-02"],
        ["in", "out", "participant", "--participant_label=01,02"],
        ["in", "out", "participant", "--participant-label", "01 02", "01"],
    ],
)
def test_spellings_of_participants(words):
    assert parse(*words).query.participants == ("01", "02")


@pytest.mark.parametrize("option", ["--session-label", "--session_label", "--session-id"])
def test_spellings_of_sessions(option):
    assert parse("in", "out", "participant", option, "ses-a", "b").query.sessions == ("a", "b")


@pytest.mark.parametrize(
    "option", ["--n-cpus", "--n_cpus", "--nprocs", "--nthreads", "--omp-nthreads", "--omp_nthreads"]
)
def test_spellings_of_threads(option):
    assert parse("in", "out", "participant", option, "3").threads == 3


def test_options_that_other_apps_have_are_accepted():
    accepted = ["--skip_bids_validation", "--skip-bids-validator", "--notrack"]
    plain = parse("in", "out", "participant")
    assert replace(parse("in", "out", "participant", *accepted), command="") == plain


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--mem", "8"], "--mem-gb or --mem-mb"),
        (["-m", "T1w"], "--suffix"),
        (["--modalities", "T1w", "T2w"], "--suffix"),
        (["--clean-workdir"], "holds only caches"),
        (["--output-layout", "legacy"], "a BIDS derivative dataset"),
        (["-d", "fmriprep=/x"], "only the raw dataset"),
    ],
)
def test_options_of_other_apps_are_answered_with_ours(words, instead, capsys):
    assert cli.main(["in", "out", "participant", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"siam-bids: error: There is no option {words[0]} here. Use ")
    assert instead in line


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["in", "out", "particpant"], "Did you mean participant?"),
        (["in", "out", "participant", "--sufix", "T1w"], "Did you mean --suffix?"),
        (["in", "out", "participant", "--device", "gpu"], "is not one of auto, cpu, cuda, mps."),
        (["in"], "The following arguments are required: output_dir, analysis_level."),
        (["in", "out", "group", "--n-cpus", "x"], "invalid int value: 'x'. See siam-bids --help."),
    ],
)
def test_a_wrong_command_line_is_one_line_with_what_was_meant(words, answer, capsys):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert answer in line


@pytest.mark.parametrize("command", [app, export, models_command, segment, slurm, train])
def test_all_commands_have_the_same_manners(command, capsys):
    assert command.main(["--no-such-option"]) == 2
    assert capsys.readouterr().err.startswith("siam-bids: error: ")
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"siam-bids {__version__}\n"
    with pytest.raises(SystemExit) as stop:
        command.main(["--print-completion", "bash"])
    assert stop.value.code == 0
    assert "--config-file" in capsys.readouterr().out


def test_options_come_from_a_file_and_those_typed_go_before(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(
        'suffix = ["T1w", "FLAIR"]\nn-cpus = 3\nno_upright = true\nno-mirror = true\n'
        "low-mem = true\nmem-mb = 8000\noverwrite = false\n"
    )
    config = parse("in", "out", "participant", "--config-file", str(path), "--n-cpus", "2")
    assert config.query.suffixes == ("T1w", "FLAIR")
    assert config.threads == 2
    assert config.inference.mirror is False
    assert (config.inference.upright, config.inference.low_memory) == (False, True)
    assert config.inference.memory == pytest.approx(8e9)
    assert not config.overwrite


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("sufix = ['T1w']", "holds the unknown option 'sufix'. Did you mean --suffix?"),
        ("low-mem = 3", "--low-mem in"),
        ("n-cpus = [1, 2]", "takes one value"),
        ("device = 'gpu'", "invalid choice: 'gpu'"),
        ("suffix = ", "cannot be read as TOML"),
        ("help = true", "--help in {} has no effect. Give it on the command line."),
        ("print-completion = 'bash'", "--print-completion in {} has no effect."),
        ("mem = 8", "There is no option --mem here. Use --mem-gb or --mem-mb."),
        (
            "resume = true\noverwrite = true",
            "--resume and --overwrite in {} are mutually exclusive.",
        ),
        ("verbose = -1", "--verbose in {} is -1. Give 0, 1 or 2."),
        ("verbose = 'yes'", "--verbose in {} is 'yes'. Give 0, 1 or 2."),
    ],
)
def test_a_wrong_file_of_options_is_one_line(text, answer, tmp_path, capsys):
    path = tmp_path / "options.toml"
    path.write_text(text)
    assert cli.main(["in", "out", "participant", "--config-file", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert answer.format(path) in line


def test_a_typed_option_goes_before_one_of_a_file_that_excludes_it(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("overwrite = true\nverbose = 2\n")
    words = ["in", "out", "participant", "--config-file", str(path)]
    assert app.parser().parse(words).verbose == 2
    assert parse(*words).overwrite
    assert not parse(*words, "--resume").overwrite


def test_control_characters_of_data_do_not_reach_the_terminal(capsys):
    """A title of `\\x1b[2J` would clear the screen."""
    record = logging.LogRecord("siam_bids", 20, "", 1, "model %s", ("a\x1b[2J\x07b",), None)
    assert console._Formatter("%(message)s").format(record) == "model a?[2J?b"

    def fail(_):
        raise UsageError("There is no \x1b]0;x\x07.")

    assert console.guarded(fail, []) == 2
    assert capsys.readouterr().err == "siam-bids: error: There is no ?]0;x?.\n"


def test_a_reader_that_has_enough_is_no_disk_error():
    """`siam-bids ... --dry-run | head -1` ends as a program does that SIGPIPE ends, in silence."""
    program = (
        "import sys; from siam_bids.cli.console import guarded;"
        "sys.exit(guarded(lambda argv: [print('x' * 99) for _ in range(9999)] and 0, []))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b""
    run.stderr.close()
    assert run.wait() == 141


@pytest.mark.parametrize("words", [("--mem-gb", "8"), ("--mem_mb", "8000")])
def test_spellings_of_memory(words):
    inference = parse("in", "out", "participant", *words).inference
    assert inference.memory == pytest.approx(8e9)
    assert inference.changed() == {}  # results do not depend on it


def test_underscores_in_values_stay():
    assert parse("in", "out", "participant", "--model=/a_b/c_d").model == "/a_b/c_d"
    assert str(parse("in_1", "out_2", "group").bids_dir) == "in_1"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from siam_bids.cli.app import parser; parser().format_help();"
        "heavy = {'torch', 'nnunetv2', 'bids', 'pandas', 'numpy', 'nibabel'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_and_usage_errors(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"siam-bids {__version__}\n"
    assert cli.main(["in", "out", "everything"]) == 2


def test_errors_are_one_line_with_their_own_exit_code(tmp_path, capsys):
    assert cli.main([str(tmp_path / "no"), str(tmp_path / "out"), "participant"]) == 3
    message = capsys.readouterr().err
    assert message == f"siam-bids: error: The input folder {tmp_path / 'no'} does not exist.\n"
    assert cli.main([str(tmp_path), str(tmp_path / "o"), "participant", "--n-cpus", "-1"]) == 2
    assert "is negative" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(bids, tmp_path, tiny_model, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert cli.main([str(bids), str(out), "participant", "--model", str(tiny_model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    made = f"cannot be made: {tmp_path / 'file'} is a file, not a folder. Give a folder."
    assert line == f"siam-bids: error: The output folder {out} {made}"
    for folder in (tmp_path / "file", tmp_path / "file" / "scratch"):
        words = [str(bids), str(tmp_path / "o"), "participant", "-w", str(folder)]
        assert cli.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"siam-bids: error: The --work-dir {folder} ")
        assert "is a file, not a folder. Give a folder." in line


COUNTS = [
    (app, ["in", "out", "participant"], ("--n-cpus=-1", "--n-cpus=99999999999", "--volume=-1")),
    (segment, ["in", "out"], ("--n-cpus=-1", "--volume=-1", "--volume=x")),
    (
        slurm,
        ["in", "out"],
        ("--cpus=0", "--cpus=-1", "--per-task=-1", "--mem-mb=-1", "--minutes=-5", "--throttle=-4"),
    ),
    (
        train,
        ["out"],
        (
            *("--patch=0", "--batch=0", "--voxel=-1", "--processes=0", "--seed=-1"),
            *("--features=8,0", "--minutes=nan", "--minutes=-1", "--learning-rate=-1"),
            "--dice-weight=inf",
        ),
    ),
]
"""Commands with the options that take a number, each with one that it cannot be."""


@pytest.mark.parametrize(("command", "words", "wrong"), COUNTS)
def test_an_impossible_number_is_one_line(command, words, wrong, capsys):
    for option in wrong:
        assert command.main([*words, option]) == 2, option
        (line,) = capsys.readouterr().err.splitlines()
        name, _, value = option.partition("=")
        assert name in line
        assert value.split(",")[-1] in line


def test_every_whole_number_of_a_command_is_bounded():
    """`type=int` takes -1 and 10**30."""
    for command in (app, export, models_command, segment, slurm, train):
        actions = command.parser()._actions
        assert not [each.dest for each in actions if each.type in (int, float)]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed, tmp_path):
    program = (
        "import sys; from siam_bids.cli.console import guarded;"
        "sys.exit(guarded(lambda _: print('out') or print('err', file=sys.stderr) or"
        " open('file', 'w').write(str(sys.stderr.isatty())) and 3, []))"
    )
    words = [sys.executable, "-c", program]
    run = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert b"Traceback" not in run.stderr
    assert (tmp_path / "file").read_text() == "False"  # nothing else was written into it


def test_exit_codes_and_summary_of_a_run(bids, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    common = [str(bids), str(out), "participant", "--model", str(tiny_model), "--n_cpus", "1"]
    assert cli.main([*common, "--participant_label", "03"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("1 segmented, 0 already done, 1 failed.\nFAILED sub-03_T1w: ")
    filters = tmp_path / "filter.json"
    filters.write_text(json.dumps({"t1w": {"session": "none such"}}))
    wanted = ["--participant-label", "03", "--bids-filter-file", str(filters)]
    assert cli.main([*common, *wanted]) == 0
    said, where = capsys.readouterr().out.splitlines()
    assert said == "0 segmented, 1 already done, 0 failed."
    assert where == f"Pages: {out}/sub-*.html. Next: siam-bids {bids} {out} group"
    assert cli.main([str(bids), str(out), "group", "--model", str(tiny_model)]) == 0
    assert capsys.readouterr().out == f"1 scan. Open {out / 'group.html'} in a browser.\n"
    assert cli.main([*common, "--reports-only"]) == 0
    assert capsys.readouterr().out == f"{out / 'sub-03.html'}\n"


def test_the_methods_text_names_the_model(tiny_model, capsys):
    words = ["in", "out", "participant", "--boilerplate-only", "--model", str(tiny_model)]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "using the model tiny, version unversioned (SHA-256 " in text
    assert "aligned rigidly" not in text


@pytest.mark.parametrize(
    ("choice", "scans", "votes"),
    [
        ("contrasts", "Scans of one session of a participant were", True),
        ("sessions", "Scans of one kind from different sessions of a participant were", False),
        ("all", "Scans of one participant were", True),
    ],
)
def test_the_methods_text_says_how_scans_are_combined(tiny_model, capsys, choice, scans, votes):
    words = ["in", "out", "participant", "--boilerplate-only", "--combine", choice]
    assert cli.main([*words, "--model", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    assert f"{scans} aligned rigidly" in text
    assert "Reuter et al., NeuroImage 2010" in text
    assert "Lewis and Fox, NeuroImage 2004" in text
    assert ("Artaechevarria et al." in text) is votes


@pytest.mark.parametrize("given", [True, False])
def test_caches_go_to_the_work_folder_where_there_is_no_home(tmp_path, given):
    """With an unknown user and no HOME; without -w the folder is gone when the process ends."""
    code = (
        "import json, os, pathlib, sys, tempfile\n"
        "from siam_bids.cli.console import caches_in\n"
        "before, tempdir = dict(os.environ), tempfile.gettempdir()\n"
        "with caches_in(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None):\n"
        "    import matplotlib\n"
        "    where = [matplotlib.get_cachedir(), os.environ['TORCH_HOME'], os.environ['HOME']]\n"
        "    print(json.dumps([tempfile.gettempdir(), *where]))\n"
        "assert dict(os.environ) == before and tempfile.gettempdir() == tempdir\n"
    )
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, "-c", code, *([str(work)] if given else [])],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    scratch, *caches = map(Path, json.loads(done.stdout))
    assert scratch.parent == tmp_path
    assert (scratch == work) == given == scratch.exists()
    assert [path == scratch or scratch in path.parents for path in caches] == [True] * 3


def test_without_any_writable_folder_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_: (tmp_path / "no" / "such").mkdir())
    with pytest.raises(UsageError, match="Give a folder with --work-dir"):
        console.caches_in(None).__enter__()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "Out of memory"),
        (MemoryError(), 1, "Out of memory"),
        (RuntimeError("can't start new thread"), 1, "Out of memory"),
        (OSError(errno.EIO, "Input/output error"), 7, "Check the disk"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_a_code(monkeypatch, capsys, error, code, words):
    def refuse(argv):
        raise error

    monkeypatch.setattr(models_command, "_run", refuse)
    assert models_command.main(["list"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (ImportError("libopenvino.so: failed to map segment from shared object"), True),
        (ImportError("libx.so: cannot allocate memory in static TLS block"), True),
        (ImportError("No module named 'openvino'"), False),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
    ],
)
def test_a_library_that_memory_is_too_small_to_load_is_out_of_memory(error, is_memory):
    assert out_of_memory(error) is is_memory
