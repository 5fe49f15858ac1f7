import csv
import json
import math
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_model
from safetensors.torch import save_file

from siam_bids.cli import train as train_command
from siam_bids.errors import ModelError, UsageError
from siam_bids.image.labels import siam_labels
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.folder import CHECKPOINT
from siam_bids.nnunet.checkpoints import convert_checkpoints, load_weights, mirror_axes
from siam_bids.nnunet.model import NnunetModel
from siam_bids.synthesis.label_maps import source_table
from siam_bids.synthesis.render import Rendering
from siam_bids.training import patches
from siam_bids.training.config import TrainingConfig
from siam_bids.training.loop import train
from siam_bids.training.loss import TargetGroups, marginal_loss, mixed_precision
from siam_bids.training.patches import PatchSource, load_anatomies, z_score
from siam_bids.training.state import load_state, save_state, shape_of
from siam_bids.training.step_log import StepLog
from siam_bids.training.task import TASKS
from siam_bids.training.trainer import Trainer
from siam_bids.training.validation import Validation

GROUPS = TargetGroups.of([source_table("synthseg"), source_table("siam")])
AIR, SKULL, CSF, GM, THAL, HEAD, LESION = 0, 15, 3, 1, 6, 16, 17


def one_voxel(group: int) -> torch.Tensor:
    target = torch.zeros((1, len(GROUPS.members), 1, 1, 1))
    target[0, group] = 1
    return target


def logits_for(index: int) -> torch.Tensor:
    logits = torch.zeros((1, 18, 1, 1, 1))
    logits[0, index] = 20
    return logits


def test_groups_are_the_labels_and_the_merged_sets():
    assert GROUPS.members[:18] == tuple((index,) for index in range(18))
    assert GROUPS.members[18:] == ((0, 15),)
    airway = source_table("synthseg").values.index(1001)
    assert GROUPS.members[GROUPS.of_codes(source_table("synthseg"))[airway]] == (0, 15)


@pytest.mark.parametrize("answer", [AIR, SKULL])
def test_where_a_map_is_silent_either_answer_is_free(answer):
    merged = GROUPS.members.index((AIR, SKULL))
    loss, dice = marginal_loss(logits_for(answer), one_voxel(merged), GROUPS)
    assert float(loss) == pytest.approx(1, abs=1e-4)  # no class present: 1 - 0 for Dice
    assert torch.isnan(dice).all()
    wrong, _ = marginal_loss(logits_for(GM), one_voxel(merged), GROUPS)
    assert float(wrong) > 15


def test_a_right_answer_costs_nothing_and_a_wrong_one_much():
    right, dice = marginal_loss(logits_for(GM), one_voxel(GM), GROUPS)
    assert float(right) == pytest.approx(0, abs=1e-4)
    assert float(dice[GM]) == pytest.approx(1, abs=1e-4)
    wrong, dice = marginal_loss(logits_for(CSF), one_voxel(GM), GROUPS)
    assert float(wrong) == pytest.approx(20 + 1, abs=0.1)
    assert float(dice[GM]) == pytest.approx(0, abs=1e-4)


def test_without_its_dice_term_the_loss_is_the_cross_entropy():
    logits = torch.randn((1, 18, 1, 1, 1), generator=torch.Generator().manual_seed(2))
    loss, _ = marginal_loss(logits, one_voxel(GM), GROUPS, dice_weight=0.0)
    assert float(loss) == pytest.approx(-float(logits.log_softmax(1)[0, GM]), rel=1e-5)


def test_dice_of_labels_that_are_not_scored_does_not_count():
    target = torch.cat([one_voxel(GM), one_voxel(CSF)], 2)
    logits = torch.cat([logits_for(GM), logits_for(GM)], 2)
    for scored, expected in (((GM,), 2 / 3), ((CSF,), 0), ((GM, CSF), 1 / 3), ((SKULL,), 0)):
        both, dice = marginal_loss(logits, target, GROUPS, scored=scored)
        entropy, _ = marginal_loss(logits, target, GROUPS, 0.0)
        assert float(both - entropy) == pytest.approx(1 - expected, abs=1e-4)
        assert float(dice[GM]) == pytest.approx(2 / 3, abs=1e-4)


def test_a_merged_voxel_is_no_false_positive_for_its_members():
    merged = GROUPS.members.index((AIR, SKULL))
    logits = torch.cat([logits_for(SKULL), logits_for(SKULL)], 2)
    target = torch.cat([one_voxel(SKULL), one_voxel(merged)], 2)
    _, dice = marginal_loss(logits, target, GROUPS)
    assert float(dice[SKULL]) == pytest.approx(1, abs=1e-4)


def test_z_score_is_that_of_the_non_zero_box():
    image = torch.zeros((12, 12, 12))
    image[2:8, 3:9, 4:10] = torch.rand((6, 6, 6), generator=torch.Generator().manual_seed(0)) + 1
    scored = z_score(image)[2:8, 3:9, 4:10]
    assert float(scored.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scored.std()) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def label_map(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("maps") / "one.nii.gz"
    nib.save(nib.Nifti1Image(np.kron(labels, np.ones((2, 2, 2))).astype(np.int16), np.eye(4)), path)
    return path


def config(folder, label_map, **options):
    return TrainingConfig(
        maps=((label_map, "siam"),), folder=folder, features=(4, 8, 8), patch=24, pool=2,
        fresh_every=50, warmup_steps=5, **options,
    )  # fmt: skip


def test_legs_learn_resume_and_leave_a_model_that_segments(tmp_path, label_map, head):
    first = train(config(tmp_path / "run", label_map, minutes=0.15))
    assert first.step > 5
    again = train(config(tmp_path / "run", label_map, minutes=0.15))
    assert again.step > first.step
    model = NnunetModel.open(tmp_path / "run" / "model")
    segmenter = NnunetSegmenter(model, torch.device("cpu"))
    assert segmenter.segment(head).segmentation.grid.same_as(head.grid)
    left_right = 2  # of [z, y, x]
    assert mirror_axes(model.folds[0]) == (left_right,)
    state = again.network.state_dict()
    assert sorted(path.name for path in (tmp_path / "run").glob("*.safetensors")) == [
        "average-1.safetensors", "moment1-1.safetensors", "moment2-1.safetensors",
        "weights-1.safetensors",
    ]  # fmt: skip
    assert all(torch.isfinite(value).all() for value in state.values())
    if again.step >= 100:
        with (tmp_path / "run" / "log.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_patches_for_lesions_lie_in_the_brain_and_hold_lesions_of_patients(tmp_path, label_map):
    mask = tmp_path / "mask.nii.gz"
    ball = np.zeros((40, 40, 40), np.uint8)
    ball[15:25, 15:25, 15:25] = 1
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-80, -95, -65)
    nib.save(nib.Nifti1Image(ball, affine), mask)
    one = config(
        tmp_path, label_map, minutes=1, voxel=1, task=TASKS["lesions"], lesions=(mask,),
        lesion_share=0.0,
    )  # fmt: skip
    anatomies = load_anatomies(one.maps, tmp_path / "cache")
    source = PatchSource(anatomies, GROUPS, one)
    rng = np.random.default_rng(1)
    targets = [source.patch(rng, 0.5)[1] for _ in range(12)]
    assert targets[0].shape == (1, len(GROUPS.members), 24, 24, 24)
    shares = torch.cat(targets).mean((2, 3, 4))
    assert (shares[:, LESION] > 0.01).sum() >= 3
    assert float(shares[:, HEAD].mean()) < 0.1  # cropped


def test_patches_for_nuclei_lie_around_them_without_a_trace_of_the_cut(
    tmp_path, label_map, monkeypatch
):
    """The head is cropped before it is deformed, the image after that."""
    shapes, images = [], []
    drawn = patches.render

    def watched(anatomy, recipe, **options):
        rendering = drawn(anatomy, recipe, **options)
        shapes.append(rendering.image.shape)
        return rendering

    def boxed(image):
        images.append(image)
        return z_score(image)

    monkeypatch.setattr(patches, "render", watched)
    monkeypatch.setattr(patches, "z_score", boxed)
    one = config(tmp_path, label_map, minutes=1, voxel=1, task=TASKS["nuclei"])
    source = PatchSource(load_anatomies(one.maps, tmp_path / "cache"), GROUPS, one)
    rng = np.random.default_rng(1)
    _, target = source.patch(rng, 0.5)
    image = images[-1]
    assert all(inner < outer for inner, outer in zip(image.shape, shapes[-1], strict=True))
    assert float((image == 0).float().mean()) < 0.05
    assert float(target[0, THAL].sum()) > 100
    assert float(target[0, HEAD].sum()) == 0
    stripped = Rendering(image, torch.zeros_like(image, dtype=torch.uint8))
    assert source._boxed(stripped, source._anatomies[0]) is stripped


def test_hippocampi_shrink_in_half_of_the_heads_for_nuclei(tmp_path, label_map, monkeypatch):
    shrunk = []
    monkeypatch.setattr(patches, "shrink_temporal", lambda one, rng: shrunk.append(one) or one)
    one = replace(
        config(tmp_path, label_map, minutes=1, voxel=1, task=TASKS["nuclei"]), fresh_every=1
    )
    source = PatchSource(load_anatomies(one.maps, tmp_path / "cache"), GROUPS, one)
    rng = np.random.default_rng(1)
    for _ in range(12):
        source.patch(rng, 0.0)
    assert 3 <= len(shrunk) <= 9


def test_the_log_tells_the_dice_on_maps_held_out(tmp_path, label_map):
    """Of the averaged weights, on patches that stay the same from leg to leg."""
    held_out = config(tmp_path / "run", label_map, minutes=0.05, validation=((label_map, "siam"),))
    trainer = train(held_out)
    anatomies = load_anatomies(held_out.validation, tmp_path)
    scores = [
        Validation(anatomies, GROUPS, held_out, count=2).dice(trainer.network, trainer.average)
        for _ in range(2)
    ]
    assert scores[0] == scores[1]
    assert 0 < scores[0] < 1
    broken = {name: torch.zeros_like(value) for name, value in trainer.average.items()}
    clueless = Validation(anatomies, GROUPS, held_out, count=2).dice(trainer.network, broken)
    assert clueless != scores[0]


def test_a_step_takes_as_many_patches_as_asked_for(label_map, tmp_path):
    three = config(tmp_path / "run", label_map, minutes=0.02, batch=3)
    anatomies = load_anatomies(three.maps, tmp_path)
    image, target = PatchSource(anatomies, GROUPS, three).batch(np.random.default_rng(1), 1.0)
    assert image.shape == (3, 1, 24, 24, 24)
    assert target.shape == (3, len(GROUPS.members), 24, 24, 24)
    alone = PatchSource(anatomies, GROUPS, three)
    rng = np.random.default_rng(1)
    for place in range(3):
        patch = alone.patch(rng, 1.0)
        assert torch.equal(patch[0][0], image[place])
        assert torch.equal(patch[1][0], target[place])
    assert not torch.equal(image[0], image[1])
    assert train(three).step > 0


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path, label_map, caplog):
    trainer = Trainer(config(tmp_path / "run", label_map, minutes=1))
    before = {name: value.detach().clone() for name, value in trainer.network.named_parameters()}
    size = trainer.config.patch
    for factor in (torch.nan, torch.inf, 1.0):
        found = trainer.network(torch.randn(1, 1, size, size, size)).square().sum()
        trainer.update(found * factor, 1e-3)
    assert trainer.step == 3
    assert trainer.skipped == 2
    assert caplog.text.count("The gradient of step 0 is not finite; such steps are skipped.") == 1
    after = dict(trainer.network.named_parameters())
    assert all(torch.isfinite(value).all() for value in after.values())
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(after[name], before[name])


def test_a_stage_of_two_voxels_along_an_edge_has_right_gradients(tmp_path, label_map):
    """oneDNN's bfloat16 gradients are wrong there, and now and then NaN."""
    options = {"minutes": 1, "features": (8, 16, 32, 160), "patch": 16}
    small = replace(config(tmp_path / "run", label_map, minutes=1), **options)
    trainer = Trainer(small)
    name = "encoder.stages.3.0.convs.1.conv.weight"
    weight = dict(trainer.network.named_parameters())[name]
    image = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(1))
    gradients = []
    for context in (mixed_precision(image.device), torch.autocast("cpu", enabled=False)):
        weight.grad = None
        with context:
            logits = trainer.network(image)
        logits.float().square().sum().backward()
        gradients.append(weight.grad.flatten().clone())
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.98


def test_validation_leaves_the_network_as_it_was_and_able_to_learn(tmp_path, label_map):
    """It once froze all convolutions but the last: the U-Net lists its layers twice."""
    from siam_bids.training.trainer import Trainer

    held_out = ((label_map, "siam"),)
    trainer = Trainer(config(tmp_path / "run", label_map, minutes=1, validation=held_out))
    own = dict(trainer.network.named_parameters())
    values = {name: value.detach().clone() for name, value in own.items()}
    others = {name: torch.zeros_like(value) for name, value in own.items()}
    anatomies = load_anatomies(trainer.config.validation, tmp_path)
    Validation(anatomies, GROUPS, trainer.config, count=1).dice(trainer.network, others)
    for name, value in trainer.network.named_parameters():
        assert value is own[name]
        assert torch.equal(value, values[name])
    size = trainer.config.patch
    trainer.network(torch.randn(1, 1, size, size, size)).square().sum().backward()
    used = [name for name, value in own.items() if "seg_layers" not in name]
    assert all(own[name].grad is not None for name in used)


def test_a_log_goes_on_where_a_leg_began_to_validate(tmp_path):
    log = StepLog(tmp_path / "log.csv")
    for step, score in ((100, None), (200, 0.5)):
        log.add(1.0, torch.ones(18))
        log.write(step, 1.0, 1e-3, 1.0, score)
    with (tmp_path / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["validation"] for row in rows] == ["", "0.5"]
    assert [row["step"] for row in rows] == ["100", "200"]


def test_resuming_restores_weights_moments_and_step(tmp_path, label_map):
    from siam_bids.training.trainer import Trainer

    trained = train(config(tmp_path / "run", label_map, minutes=0.05))
    fresh = Trainer(config(tmp_path / "run", label_map, minutes=0.05))
    assert fresh.step == trained.step
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(fresh.network.state_dict()[name], value)
    old, new = (list(t.optimizer.state.values()) for t in (trained, fresh))
    torch.testing.assert_close(old[0]["exp_avg_sq"], new[0]["exp_avg_sq"])


def test_no_file_of_a_state_is_larger_than_16_mib(tmp_path):
    """The state of the wider 2 mm network, 18 MB a file, was."""
    rng = torch.Generator().manual_seed(1)
    tensors = {f"layer{n}": torch.randn(1 << 20, generator=rng) for n in range(9)}
    save_file(tensors, tmp_path / "weights.safetensors")  # as it was written before
    assert load_state(tmp_path, "weights").keys() == tensors.keys()
    save_state(tmp_path, "weights", tensors)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"weights-{n}.safetensors" for n in (1, 2, 3)]
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    again = load_state(tmp_path, "weights")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    save_state(tmp_path, "weights", {"layer0": tensors["layer0"]})
    assert [path.name for path in tmp_path.iterdir()] == ["weights-1.safetensors"]


def test_a_leg_goes_on_with_the_network_and_the_difficulty_of_the_run(tmp_path, label_map, capsys):
    from siam_bids.training.trainer import Trainer

    first = train(config(tmp_path / "first", label_map, minutes=0.0001))
    assert not first.pretrained
    run, model = tmp_path / "run", tmp_path / "first" / "model"
    maps = ["--siam", str(label_map), "--minutes", "0.0001"]
    assert train_command.main([str(run), *maps, "--from", str(model)]) == 0
    assert train_command.main([str(run), *maps]) == 0
    small = shape_of(model)
    assert shape_of(run / "model") == small
    resumed = Trainer(TrainingConfig(maps=(), folder=run, minutes=1, **small))
    assert resumed.pretrained
    assert resumed.step == 2
    capsys.readouterr()
    assert train_command.main([str(run), *maps, "--features", "8,16,32"]) == 2
    said = capsys.readouterr().err
    assert "holds a run with --features 4,8,8, not 8,16,32." in said
    assert shape_of(run / "model") == small


def test_the_cooldown_leg_lets_the_rate_fall(tmp_path, label_map):
    from siam_bids.training.trainer import Trainer

    trainer = Trainer(config(tmp_path, label_map, minutes=1, cooldown=True))
    trainer.step = 1000
    full = trainer.config.learning_rate
    assert [trainer.learning_rate(share) for share in (0, 0.5, 1)] == [full, full / 2, 0]


def test_two_processes_train_one_network(tmp_path, label_map):
    threads = torch.get_num_threads()
    trained = train(config(tmp_path, label_map, minutes=0.1, processes=2))
    assert torch.get_num_threads() == threads
    assert trained.step > 1
    from siam_bids.training.trainer import Trainer

    kept = Trainer(config(tmp_path, label_map, minutes=1))
    assert kept.step == trained.step
    for mine, other in zip(trained.shared(), kept.shared(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_for_cpus_that_have_it(monkeypatch, fast):
    monkeypatch.setattr("siam_bids.training.loss.has_fast_bfloat16", lambda: fast)
    layer = torch.nn.Linear(2, 2)
    with mixed_precision(torch.device("cpu")):
        answer = layer(torch.ones(1, 2))
    assert answer.dtype == (torch.bfloat16 if fast else torch.float32)


def test_processes_share_no_gpu(tmp_path, label_map):
    with pytest.raises(UsageError, match="on CPUs only"):
        train(config(tmp_path, label_map, minutes=1, processes=2, device="cuda"))


def test_siams_maps_are_drawn_as_often_as_asked():
    from pathlib import Path

    from siam_bids.training.patches import map_weights

    maps = tuple((Path(str(n)), "siam" if n == 9 else "synthseg") for n in range(10))
    weights = map_weights(TrainingConfig(maps=maps, folder=Path(), minutes=1, siam_share=0.1))
    assert weights.tolist() == pytest.approx([0.1] * 10)
    only = TrainingConfig(maps=maps[:2], folder=Path(), minutes=1)
    assert map_weights(only).tolist() == pytest.approx([0.5, 0.5])


def test_half_of_the_images_have_the_contrasts_and_lesions_asked_for(tmp_path):
    def drawn(**options):
        maps = ((tmp_path / "one.nii.gz", "siam"),)
        config = TrainingConfig(maps=maps, folder=tmp_path, minutes=1, **options)
        source = PatchSource([], GROUPS, config)
        return [source.recipe(np.random.default_rng(seed), 1.0) for seed in range(400)]

    def ill(recipes):
        return np.mean([recipe.lesions != "no" for recipe in recipes])

    recipes = drawn(contrasts=("T2w", "FLAIR"), lesion_share=1.0)
    bright = [recipe for recipe in recipes if recipe.contrast in ("T2w", "FLAIR")]
    others = [recipe for recipe in recipes if recipe.contrast not in ("T2w", "FLAIR")]
    assert 0.45 < len(bright) / len(recipes) < 0.7
    assert 0.25 < len([each for each in recipes if each.contrast == "random"]) / len(others) < 0.9
    assert ill(bright) > 0.8
    assert 0.2 < ill(others) < 0.5
    assert ill(drawn(lesion_share=0.0)) == 0
    assert 0.2 < ill(drawn()) < 0.5


def test_unknown_contrasts_and_shares_are_refused(tmp_path, capsys):
    for argv, said in (
        (["--contrasts", "T2w,T2"], "T2 is not one of T1w, T2w"),
        (["--lesion-share", "70"], "70 is not between 0 and 1"),
    ):
        assert train_command.main([str(tmp_path), *argv]) == 2
        assert said in capsys.readouterr().err


def test_fine_tuning_on_own_segmentations_starts_from_the_model(tmp_path, label_map):
    begun = train(config(tmp_path / "first", label_map, minutes=0.02))
    table = tmp_path / "seg_dseg.tsv"
    names = [label.name for label in siam_labels()]
    table.write_text(
        "index\tname\n" + "".join(f"{index}\t{name}\n" for index, name in enumerate(names))
    )
    model = tmp_path / "first" / "model"
    argv = ["--maps", str(label_map), "--table", str(table), "--from", str(model)]
    argv += ["--minutes", "0.0001", "--learning_rate", "1e-9"]
    assert train_command.main([str(tmp_path / "tuned"), *argv]) == 0
    tuned = load_weights(tmp_path / "tuned" / "model" / "fold_0" / "checkpoint_final.pth")
    name = "encoder.stages.0.0.convs.0.conv.weight"
    torch.testing.assert_close(tuned[name], begun.average[name].half(), rtol=0, atol=1e-3)
    plans = [json.loads((tmp_path / run / "model" / "plans.json").read_text()) for run in
             ("first", "tuned")]  # fmt: skip
    assert plans[0] == plans[1]


def test_fine_tuning_starts_from_a_model_as_fetch_leaves_it(tmp_path, label_map, monkeypatch):
    features = (4, 8, 8)
    folder = write_model(tmp_path / "v1" / "model", spacing=4.0, folds=2, features=features)
    before = load_weights(folder / "fold_0" / CHECKPOINT)
    convert_checkpoints(folder)
    assert not list(folder.rglob("*.pth"))
    about = {"title": "T", "version": "1", "folder": "v1/model", "licence": "", "citation": "",
             "archive": {}}  # fmt: skip
    monkeypatch.setattr("siam_bids.models.registry.registry", lambda: {"siam-t": about})
    monkeypatch.setenv("SIAM_MODEL_DIR", str(tmp_path))
    argv = ["--siam", str(label_map), "--minutes", "0.0001", "--learning-rate", "1e-9"]
    for number, start in enumerate(("siam-t", str(folder))):
        run = tmp_path / f"run{number}"
        assert train_command.main([str(run), *argv, "--from", start]) == 0
        tuned = load_weights(run / "model" / "fold_0" / CHECKPOINT)
        name = "encoder.stages.1.0.convs.0.conv.weight"
        torch.testing.assert_close(tuned[name].float(), before[name], rtol=0, atol=1e-3)
    shutil.rmtree(folder / "fold_0")
    shutil.rmtree(folder / "fold_1")
    with pytest.raises(ModelError, match="holds no weights"):
        Trainer(
            TrainingConfig(
                maps=(), folder=tmp_path / "x", start=folder, features=features, minutes=1
            )
        )


def test_a_start_of_other_voxels_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"its voxels have 0\.75 mm"):
        shape_of(write_model(tmp_path / "m", spacing=0.75))


def test_maps_without_a_table_are_refused(tmp_path, label_map, capsys):
    assert train_command.main([str(tmp_path), "--maps", str(label_map)]) == 2
    assert "--maps and --table must be given together" in capsys.readouterr().err


def test_only_a_map_that_is_given_can_be_held_out(tmp_path, label_map, capsys):
    argv = ["--siam", str(label_map), "--hold-out", "other.nii.gz"]
    assert train_command.main([str(tmp_path), *argv]) == 2
    assert "--hold-out other.nii.gz is not one of the maps" in capsys.readouterr().err


def test_fine_tuning_begins_with_a_single_network(tmp_path, capsys):
    assert train_command.main([str(tmp_path), "--from", "compact"]) == 2
    assert "compact consists of compact-2mm, compact-1mm." in capsys.readouterr().err


def test_no_maps_is_said(tmp_path):
    with pytest.raises(UsageError, match="No label maps"):
        train(TrainingConfig(maps=(), folder=tmp_path, minutes=1))
