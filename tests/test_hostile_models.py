"""Model folders of others: nothing in them runs, and what cannot be run is said when they open."""

import contextlib
import copy
import json
import logging
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_model, write_raw
from safetensors.torch import save_file
from test_safety import ASKING, WRITES, written

from siam_bids import cli
from siam_bids.cli import models as models_command, segment, slurm
from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.models.folder import BEST, CHECKPOINT, CONVERTED, fold_weights
from siam_bids.models.registry import find_model
from siam_bids.nnunet.checkpoints import Checkpoint, convert_checkpoints, load_weights
from siam_bids.nnunet.model import NnunetModel


@pytest.mark.parametrize("stored", [CHECKPOINT, CONVERTED])
@pytest.mark.parametrize("spoil", [lambda w: w * 1j, lambda w: w * float("nan")])
def test_weights_that_are_no_finite_numbers_are_refused_at_open(tmp_path, stored, spoil):
    folder = write_model(tmp_path / "m")
    path = folder / "fold_0" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {
        name: spoil(value) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    torch.save(content, path)
    if stored == CONVERTED:
        notes = {"aliases": "{}", "mirror_axes": "[]", "configuration": ""}
        whole = {name: value.clone() for name, value in content["network_weights"].items()}
        save_file(whole, path.with_name(CONVERTED), notes)
        path.unlink()
    with pytest.raises(ModelError, match="holds weights that are not finite real numbers"):
        NnunetModel.open(folder)


def test_one_weight_that_is_no_number_is_refused_when_it_is_read(tmp_path):
    path = write_model(tmp_path / "m") / "fold_0" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    list(content["network_weights"].values())[-1].view(-1)[-1] = float("inf")
    torch.save(content, path)
    with pytest.raises(ModelError, match="holds weights that are not finite real numbers"):
        load_weights(path)


PROOF = "PROOF"
"""Stands in the hostile plans for a file that they would write."""


def in_configuration(**entries):
    def change(plans):
        plans["configurations"]["3d_fullres"].update(entries)

    return change


def in_network(**entries):
    def change(plans):
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(entries)

    return change


def in_architecture(**entries):
    def change(plans):
        plans["configurations"]["3d_fullres"]["architecture"].update(entries)

    return change


def in_plans(**entries):
    return lambda plans: plans.update(entries)


def inherited(change):
    """Hide a change in a configuration that the one that runs inherits from."""

    def hide(plans):
        change(plans)
        known = plans["configurations"]
        known["base"] = known["3d_fullres"]
        known["3d_fullres"] = {"inherits_from": "base"}

    return hide


def older(**entries):
    def change(plans):
        plan = plans["configurations"]["3d_fullres"]
        del plan["architecture"]
        plan.update(
            UNet_class_name="PlainConvUNet", UNet_base_num_features=4, unet_max_num_features=320,
            n_conv_per_stage_encoder=[1, 2], n_conv_per_stage_decoder=[1],
            num_pool_per_axis=[1, 1, 1], pool_op_kernel_sizes=[[1, 1, 1], [2, 2, 2]],
            conv_kernel_sizes=[[3, 3, 3], [3, 3, 3]],
        )  # fmt: skip
        plan.update(entries)

    return change


SHELL = {"command": f"id > {PROOF}"}
GETOUTPUT = {"cmd": f"id > {PROOF}"}
RESAMPLING = "resampling_fn_data"
CODE = {
    "nonlinearity": in_network(nonlin="os.system", nonlin_kwargs=SHELL),
    "dropout": in_network(dropout_op="subprocess.getoutput", dropout_op_kwargs=GETOUTPUT),
    "norm": in_network(norm_op="subprocess.getoutput", norm_op_kwargs=GETOUTPUT),
    "convolution": in_network(conv_op="subprocess.getoutput"),
    "block": in_network(block="os.system"),
    "torch's own": in_network(nonlin="torch.nn.Module.load_state_dict"),
    "torch's loader": in_network(nonlin="torch.hub.load", nonlin_kwargs={"repo_or_dir": PROOF}),
    "network": in_architecture(network_class_name="subprocess.Popen", arch_kwargs={"args": "id"}),
    "module here": in_architecture(network_class_name="evil.Network"),
    "module of nnU-Net": in_architecture(network_class_name="nnunetv2.run.run_training.run"),
    "primus": in_architecture(
        network_class_name="dynamic_network_architectures.architectures.primus.Primus"
    ),
    "resampling": in_configuration(**{RESAMPLING: "os.system", f"{RESAMPLING}_kwargs": SHELL}),
    "resampling of logits": in_configuration(resampling_fn_probabilities="recursive_find"),
    "resampling of labels' keywords": in_configuration(
        **{f"{RESAMPLING}_kwargs": {"is_seg": False, "device": "cuda"}}
    ),
    "normalisation": in_configuration(normalization_schemes=["np.load"]),
    "normalisation in a module": in_configuration(normalization_schemes=["ABC"]),
    "preprocessor": in_configuration(preprocessor_name="os.system"),
    "reader": in_plans(image_reader_writer="os.system"),
    "label manager": in_plans(label_manager="os.system"),
    "inherited": inherited(in_network(nonlin="os.system", nonlin_kwargs=SHELL)),
    "keyword of another kind": in_network(nonlin_kwargs={"inplace": f"id > {PROOF}"}),
    "keyword of another layer": in_network(norm_op_kwargs={"device": "cuda"}),
    "unknown keyword": in_network(pool_type="os.system"),
    "old network": older(UNet_class_name="os.system"),
    "name of escapes": in_architecture(network_class_name="\x1b[1mevil\nline"),
}


@pytest.fixture
def hostile(tmp_path):
    """Make a model folder and change its plans; give the folder and the file of proof."""

    def make(change, name="model"):
        folder = write_model(tmp_path / name)
        path = folder / "plans.json"
        plans = json.loads(path.read_text())
        change(plans)
        proof = tmp_path / "proof"
        path.write_text(json.dumps(plans).replace(PROOF, str(proof)))
        return folder, proof

    return make


def reason(folder) -> str:
    """Why a folder does not open: one printable line."""
    with pytest.raises(ModelError) as caught:
        NnunetModel.open(folder)
    line = str(caught.value)
    assert line.replace(str(folder), "").isprintable(), line
    return line


class TestPlansThatNameCode:
    @pytest.mark.parametrize("name", CODE)
    def test_nothing_runs_and_one_line_says_what_is_refused(
        self, hostile, monkeypatch, tmp_path, name
    ):
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        folder, proof = hostile(CODE[name])
        line = reason(folder)
        assert f"{folder}/plans.json cannot be used: " in line
        assert not proof.exists()
        assert "evil" not in sys.modules

    def test_every_command_refuses_the_model_with_exit_code_6(
        self, hostile, head, tmp_path, capsys, monkeypatch
    ):
        folder, proof = hostile(CODE["nonlinearity"])
        bids = write_raw(tmp_path / "bids", head, "sub-01_T1w")
        scan, out = bids / "sub-01/anat/sub-01_T1w.nii.gz", tmp_path / "out"
        model = ["--model", str(folder)]
        about = {
            "title": "T", "version": "1", "licence": "", "citation": "", "folder": "model",
            "archive": {"url": "https://localhost/a.zip"},
        }  # fmt: skip
        monkeypatch.setenv("SIAM_MODEL_DIR", str(tmp_path))
        monkeypatch.setattr("siam_bids.models.registry.registry", lambda: {"evil": about})
        (folder / "siam-bids.json").write_text('{"files": {}}')
        commands = {
            "run": lambda: cli.main([str(bids), str(out), "participant", *model]),
            "dry run": lambda: cli.main([str(bids), str(out), "participant", *model, "--dry-run"]),
            "slurm": lambda: slurm.main([str(bids), str(out), *model]),
            "segment": lambda: segment.main([str(scan), str(out / "o.nii.gz"), *model]),
            "verify": lambda: models_command.main(["verify", "evil"]),
        }
        for name, command in commands.items():
            assert command() == 6, name
            assert (
                "nonlin in arch_kwargs is 'os.system', not one of torch.nn's Lea"
                in capsys.readouterr().err
            ), name
        assert not proof.exists()
        assert not out.exists()

    def test_a_run_of_each_starts_no_process_and_writes_nothing_outside(
        self, hostile, head, tmp_path
    ):
        if not shutil.which("strace"):
            pytest.skip("strace is not installed")
        bids = write_raw(tmp_path / "bids", head, "sub-01_T1w")
        folders = [str(hostile(change, f"m{n}")[0]) for n, change in enumerate(CODE.values())]
        words = [str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
        code = (
            "import sys; from siam_bids import cli\n"
            f"codes = {{cli.main([*{words}, '--model', each]) for each in {folders}}}\n"
            "sys.exit(0 if codes == {6} else 1)"
        )
        log = tmp_path / "strace"
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", str(log)]
        done = subprocess.run(
            [*strace, "-e", "trace=%file,execve", sys.executable, "-B", "-c", code],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        lines = [
            line for line in log.read_text(errors="replace").splitlines() if "= -1 E" not in line
        ]
        started = [re.search(r'execve\("([^"]+)', line) for line in lines]
        programs = {Path(found[1]).name for found in started if found}
        assert programs <= {Path(sys.executable).name, *ASKING}
        own = (str(tmp_path / "work"), "/dev/null", "/dev/shm/", "/proc/")
        changes = [path for line in lines if WRITES.search(line) for path in written(line)]
        assert [path for path in changes if not path.startswith(own)] == []


NESTED = "[" * 200_000 + "]" * 200_000
ODD = {
    "no spacing": (in_configuration(spacing=[0, 1, 1]), "spacing is 0"),
    "negative spacing": (in_configuration(spacing=[1, -1, 1]), "spacing is -1"),
    "spacing of words": (in_configuration(spacing=["1", 1, 1]), "spacing is '1'"),
    "spacing NaN": (in_configuration(spacing=[float("nan"), 1, 1]), "spacing is nan"),
    "two spacings": (in_configuration(spacing=[1, 1]), "not a list of 3"),
    "a circle": (in_configuration(inherits_from="3d_fullres"), "inherits from itself"),
    "no parent": (in_configuration(inherits_from="none"), "no configuration 'none'"),
    "an odd parent": (in_configuration(inherits_from=["x"]), "no configuration"),
    "wide": (in_network(features_per_stage=[10**9, 8]), "not a whole number from 1 to 4096"),
    "deep": (in_network(n_stages=10**6), "n_stages is 1000000"),
    "long": (in_network(n_conv_per_stage=10**9), "n_conv_per_stage in arch_kwargs is 1000000000"),
    "large patch": (in_configuration(patch_size=[10**6] * 3), "patch_size is 1000000"),
    "huge patch": (in_configuration(patch_size=[2048] * 3), "more voxels than any computer"),
    "odd patch": (in_configuration(patch_size=[31, 32, 32]), "not a multiple of the network's"),
    "truth as number": (in_configuration(patch_size=[True, 32, 32]), "patch_size is True"),
    "even kernel": (in_network(kernel_sizes=[[2, 2, 2], [3, 3, 3]]), "not an odd number"),
    "coarse labels": (in_network(strides=[[2, 2, 2], [2, 2, 2]]), "coarser than the image"),
    "no layers": (in_network(strides=None), "strides in arch_kwargs is None"),
    "bottleneck without width": (
        in_architecture(
            network_class_name="dynamic_network_architectures.architectures.unet.ResidualUNet"
        ),
        "unknown entry",
    ),
    "dropout without keywords": (
        in_network(dropout_op="torch.nn.Dropout3d", dropout_op_kwargs=None),
        "cannot be built",
    ),
    "odd resampling": (in_configuration(**{RESAMPLING: 7}), "resampling_fn_data is 7"),
    "resampling in no order": (
        in_configuration(**{f"{RESAMPLING}_kwargs": {"order": 9}}),
        "order in resampling_fn_data_kwargs is 9",
    ),
    "image as labels": (
        in_configuration(**{f"{RESAMPLING}_kwargs": {"is_seg": True}}),
        "is_seg in resampling_fn_data_kwargs is True",
    ),
    "no normalisation": (in_configuration(normalization_schemes=[]), "lack one of 1"),
    "axes": (in_plans(transpose_forward=[0, 0, 1]), "transpose_forward"),
    "axes back": (in_plans(transpose_backward=[1, 2, 0]), "disagree"),
    "no configurations": (in_plans(configurations=[]), "configurations is \\[\\]"),
    "no configuration": (in_plans(configurations={}), "no configuration"),
    "old and deep": (older(n_conv_per_stage_encoder=[1] * 10**5), "100000 stages"),
    "old and bare": (older(pool_op_kernel_sizes=None), "pool_op_kernel_sizes"),
    "2-D": (in_configuration(patch_size=[32, 32]), "2-D"),
    "cascade": (in_configuration(previous_stage="3d_lowres"), "second stage of a cascade"),
}  # fmt: skip


class TestPlansThatCannotRun:
    @pytest.mark.parametrize("name", ODD)
    def test_it_is_said_when_the_model_opens(self, hostile, name):
        change, said = ODD[name]
        with pytest.raises(ModelError, match=said):
            NnunetModel.open(hostile(change)[0])

    @pytest.mark.parametrize("content", [NESTED, '{"a": ' + NESTED + "}", "[]", "7", "\x00", "{"])
    @pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
    def test_json_of_any_shape_is_one_line(self, tmp_path, content, name):
        folder = write_model(tmp_path / "m")
        (folder / name).write_text(content)
        with pytest.raises(ModelError, match=f"{name} cannot be read"):
            NnunetModel.open(folder)

    @pytest.mark.parametrize("names", [[], "T1", {str(n): "x" for n in range(65)}])
    def test_channels_of_no_kind(self, tmp_path, names):
        folder = write_model(tmp_path / "m")
        content = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**content, "channel_names": names}))
        if names:
            assert "channel_names" in reason(folder)
        else:
            assert NnunetModel.open(folder).channels == 1

    def test_a_network_wider_than_its_weights_is_refused_before_memory_is_taken(self, hostile):
        folder, _ = hostile(in_network(features_per_stage=[4096, 4096]))
        assert "does not fit the network in plans.json" in reason(folder)

    def test_a_configuration_inherits_all_that_it_does_not_say(self, hostile):
        def change(plans):
            known = plans["configurations"]
            known["base"] = {**known["3d_fullres"], "spacing": [1.0, 1.0, 1.0]}
            known["3d_fullres"] = {"inherits_from": "base", "spacing": [2.0, 2.0, 2.5]}

        model = NnunetModel.open(hostile(change)[0])
        assert model.plan.spacing == [2.0, 2.0, 2.5]
        assert model.plan.patch_size == [32, 32, 32]


def saved(path: Path, content: object, **weights) -> Path:
    """Write a checkpoint as nnU-Net does, with `content` among its training logs."""
    about = {
        "network_weights": weights or {"a": torch.ones(2)},
        "logging": content,
        "init_args": {"configuration": "3d_fullres"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(about, path)
    return path


def with_pickle(path: Path, change) -> Path:
    """Change the pickle in a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("/data.pkl") else content)
    return path


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


SCALAR = np.float64(0).__reduce__()[0]
REBUILD = np.zeros(0).__reduce__()[0]


def as_numpy_1(content: bytes) -> bytes:
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class TestPickles:
    @pytest.fixture
    def proof(self, tmp_path):
        return tmp_path / "proof"

    @pytest.fixture
    def inner(self, proof):
        return pickle.dumps(Call(open, str(proof), "w"))

    @pytest.mark.parametrize("numpy_1", [False, True])
    @pytest.mark.parametrize(
        "ladder",
        [
            lambda inner: Call(SCALAR, np.dtype("O"), inner),
            lambda inner: Call(SCALAR, np.dtype([("a", "O")]), inner),
            lambda inner: Call(SCALAR, Call(np.dtype, "O8", False, True), inner),
            lambda inner: Call(REBUILD, np.ndarray, (0,), b"O"),
            lambda inner: Call(REBUILD, Call(np.dtype, "O"), (0,), inner),
            lambda inner: Call(np.ndarray, (1,), np.dtype("O"), inner),
            lambda inner: Call(np.dtype, {"names": ["a"], "formats": ["O"]}),
            lambda inner: np.array([{}, None], object),
        ],
    )
    def test_numpy_is_not_called_however_it_is_named(
        self, tmp_path, proof, inner, ladder, numpy_1, monkeypatch
    ):
        path = saved(tmp_path / CHECKPOINT, ladder(inner))
        if numpy_1:
            with_pickle(path, as_numpy_1)
        loads = []
        monkeypatch.setattr(pickle, "loads", lambda *given, **named: loads.append(given))
        with contextlib.suppress(ModelError):  # Python's own names in some of them
            assert list(load_weights(path)) == ["a"]
        assert not loads
        assert not proof.exists()

    @pytest.mark.parametrize(
        ("content", "names"),
        [
            (Call(open, "proof", "w"), "open"),
            (Call(eval, "1"), "eval"),
            (Call(np.load, "x"), r"numpy\.load"),
            (Call(np.frombuffer, b"x"), "numpy"),
            (Path("x"), "pathlib"),
        ],
    )
    def test_other_names_are_told_in_one_plain_line(self, tmp_path, content, names):
        path = saved(tmp_path / CHECKPOINT, content)
        for read in (load_weights, Checkpoint.read):
            with pytest.raises(
                ModelError, match=f"not a usable checkpoint: it names .*{names}"
            ) as no:
                read(path)
            line = str(no.value)
            assert line.isprintable()
            assert "torch" not in line.replace(str(path), "")
            assert len(line) < 400 + len(str(path))

    def test_a_name_of_escape_codes_is_told_without_them(self, tmp_path):
        path = with_pickle(
            saved(tmp_path / CHECKPOINT, 0), lambda _: b"\x80\x02c\x1b[1mos\nsys\x1b[0mtem\n."
        )
        with pytest.raises(ModelError, match=r"it names \?\[1mos\.sys\?\[0mtem"):
            load_weights(path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\x80\x02.", b"\x80\x02}.", b"\x80\x02](", b"\x80\x05K\x01.", b"\x80\x02h\x00.",
         b"\x80\x02K\x01K\x02R.", b"\x80\x02X\xff\xff\xff\x7f", b"\x80\x02" + b"]" * 10**5 + b".",
         b"\x80\x02(K\x01K\x02Q."],
    )  # fmt: skip
    def test_broken_pickles_are_model_errors(self, tmp_path, content):
        path = with_pickle(saved(tmp_path / CHECKPOINT, 0), lambda _: content)
        for read in (load_weights, Checkpoint.read):
            with pytest.raises(ModelError, match="not a usable checkpoint"):
                read(path)

    @pytest.mark.parametrize(
        ("weights", "said"),
        [
            ([1, 2], "no table of network_weights"),
            ({}, "no table of network_weights"),
            ({"a": 1.0}, "are not tensors"),
            ({"a": np.float64(1)}, "are not tensors"),
            ({1: torch.ones(1)}, "are not tensors"),
            ({"a": torch.ones(1).expand(10**12)}, "does not hold all its weights"),
            ({"a": torch.ones(2, device="meta")}, "does not hold all its weights"),
            ({"a": torch.ones(2).to_sparse()}, "does not hold all its weights"),
            ({"a": torch.ones(1), "module.a": torch.ones(1)}, "two arrays of one name"),
        ],
    )
    def test_weights_of_no_kind(self, tmp_path, weights, said):
        torch.save({"network_weights": weights}, tmp_path / CHECKPOINT)
        for read in (load_weights, Checkpoint.read):
            with pytest.raises(ModelError, match=said):
                read(tmp_path / CHECKPOINT)

    def test_an_archive_larger_than_its_file_is_not_unpacked(self, tmp_path):
        path = saved(tmp_path / CHECKPOINT, 0)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/99", bytes(1 << 26))
        with pytest.raises(ModelError, match="its parts are larger than the file"):
            load_weights(path)

    @pytest.mark.parametrize("axes", [(3,), (-1,), ("x",), 7, (0, 0), (True,), ([],)])
    def test_axes_that_there_are_not(self, tmp_path, axes):
        folder = write_model(tmp_path / "m")
        path = folder / "fold_0" / CHECKPOINT
        content = torch.load(path, weights_only=True)
        torch.save({**content, "inference_allowed_mirroring_axes": axes}, path)
        assert "axes that are not 0, 1 or 2" in reason(folder)

    @pytest.mark.parametrize(
        "notes",
        [
            {}, {"aliases": "7"}, {"aliases": '{"a": "none"}'}, {"aliases": NESTED},
            {"aliases": "{}", "mirror_axes": "{"},
        ],
    )  # fmt: skip
    def test_converted_weights_with_odd_notes(self, tmp_path, notes):
        from safetensors.torch import save_file

        path = tmp_path / CONVERTED
        save_file({"b": torch.ones(1)}, path, notes)
        with pytest.raises(ModelError, match="is damaged"):
            Checkpoint.read(path)


class TestKeysAndFolds:
    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
    )
    def test_prefixes_of_compiled_and_distributed_networks_are_left_out(self, tmp_path, prefix):
        folder = write_model(tmp_path / "m")
        path = folder / "fold_0" / CHECKPOINT
        plain = load_weights(path)
        content = torch.load(path, weights_only=True)
        content["network_weights"] = {prefix + name: each for name, each in plain.items()}
        torch.save(content, path)
        assert list(load_weights(path)) == list(plain)
        assert NnunetModel.open(folder).plan.name == "3d_fullres"

    def test_a_module_compiled_by_itself(self, tmp_path):
        path = saved(
            tmp_path / CHECKPOINT, 0, **{"encoder._orig_mod.stages.module.0": torch.ones(1)}
        )
        assert list(load_weights(path)) == ["encoder.stages.module.0"]

    def test_fold_all_is_used_alone_or_when_named(self, tmp_path):
        folder = write_model(tmp_path / "m", folds=2)
        shutil.copytree(folder / "fold_0", folder / "fold_all")
        shutil.copytree(folder / "fold_0", folder / "fold_0_old")
        model = NnunetModel.open(folder)
        assert [path.parent.name for path in model.folds] == ["fold_0", "fold_1"]
        assert [p.parent.name for p in model.with_folds(["all"]).folds] == ["fold_all"]
        with pytest.raises(UsageError, match=r"no fold 0_old\. It has: 0, 1, all\."):
            model.with_folds(["0_old"])
        for number in (0, 1):
            shutil.rmtree(folder / f"fold_{number}")
        assert [path.parent.name for path in NnunetModel.open(folder).folds] == ["fold_all"]

    def test_the_best_checkpoint_is_used_where_there_is_no_final_one(self, tmp_path, caplog):
        folder = write_model(tmp_path / "m", folds=2)
        for fold in ("fold_0", "fold_1"):
            (folder / fold / CHECKPOINT).rename(folder / fold / BEST)
        with caplog.at_level(logging.WARNING):
            model = NnunetModel.open(folder)
        assert [path.name for path in model.folds] == [BEST, BEST]
        assert [record.getMessage() for record in caplog.records] == [
            f"{folder} has no {CHECKPOINT}: {BEST} is used."
        ]
        convert_checkpoints(folder)
        assert [path.name for path in fold_weights(folder)] == [CONVERTED, CONVERTED]

    def test_a_checkpoint_is_chosen_by_name_and_recorded(self, tmp_path, head, capsys):
        folder = write_model(tmp_path / "m")
        other = write_model(tmp_path / "other", folds=2)
        best = folder / "fold_0" / BEST
        shutil.copy(other / "fold_1" / CHECKPOINT, best)
        named = find_model(str(folder), (), BEST)
        assert named.sha256 != find_model(str(folder)).sha256
        assert NnunetModel.open(folder, checkpoint=BEST).folds == (best,)
        raw = write_raw(tmp_path / "bids", head, "sub-01_T1w")
        scan, out = raw / "sub-01/anat/sub-01_T1w.nii.gz", tmp_path / "o.nii.gz"
        words = [str(scan), str(out), "--model", str(folder), "--device", "cpu"]
        assert segment.main([*words, "--checkpoint", BEST]) == 0
        about = json.loads((tmp_path / "o.json").read_text())
        assert about["Options"] == {"checkpoint": BEST}
        assert about["Model"]["SHA256"] == named.sha256
        assert segment.main([*words, "--checkpoint", "checkpoint_latest.pth"]) == 6
        assert "holds no fold_*/checkpoint_latest.pth" in capsys.readouterr().err
        for odd in ("../x.pth", "x", "a/b.pth", ".pth"):
            assert segment.main([*words, "--checkpoint", odd]) == 2
        assert Inference(checkpoint=BEST).changed() == {"checkpoint": BEST}

    def test_folds_of_different_configurations_are_refused(self, hostile):
        def change(plans):
            known = plans["configurations"]
            known["3d_lowres"] = copy.deepcopy(known["3d_fullres"])

        folder, _ = hostile(change)
        path = folder / "fold_0" / CHECKPOINT
        content = torch.load(path, weights_only=True)
        (folder / "fold_1").mkdir()
        torch.save(
            {**content, "init_args": {"configuration": "3d_lowres"}}, folder / "fold_1" / CHECKPOINT
        )
        assert "trained in different configurations, '3d_fullres', '3d_lowres'" in reason(folder)

    def test_the_configuration_is_the_checkpoints_and_stays_so_in_its_conversion(self, hostile):
        def change(plans):
            known = plans["configurations"]
            known["3d_lowres"] = {**known["3d_fullres"], "spacing": [5.0, 5.0, 5.0]}

        folder, _ = hostile(change)
        path = folder / "fold_0" / CHECKPOINT
        content = torch.load(path, weights_only=True)
        torch.save({**content, "init_args": {"configuration": "3d_lowres"}}, path)
        assert NnunetModel.open(folder).plan.spacing == [5.0, 5.0, 5.0]
        convert_checkpoints(folder)
        model = NnunetModel.open(folder)
        assert (model.plan.name, model.plan.spacing) == ("3d_lowres", [5.0, 5.0, 5.0])
        torch.save({**content, "init_args": {"configuration": "none"}}, path)
        path.with_name(CONVERTED).unlink()
        assert "there is no configuration 'none'" in reason(folder)
