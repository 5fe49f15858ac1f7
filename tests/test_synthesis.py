from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from siam_bids.bids.label_tables import save_label_table
from siam_bids.errors import LabelError
from siam_bids.image.grid import Grid
from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.anatomy_changes import BOUNDARIES, LESIONS
from siam_bids.synthesis.label_maps import (
    CONTRASTS,
    Anatomy,
    prepare_anatomy,
    source_table,
    tissues,
)
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import render

PLAIN = Recipe(seed=3)


def test_same_seed_same_image(anatomy):
    recipe = draw_recipe(np.random.default_rng(5))
    one, two = render(anatomy, recipe), render(anatomy, recipe)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.codes, two.codes)
    assert not torch.equal(one.image, render(anatomy, replace(recipe, seed=1)).image)


@pytest.mark.parametrize(
    ("contrast", "means", "stds"),
    [
        ("random", [0.0, 0.68060669, 0.51588414], [0.003, 0.07768469, 0.05761536]),
        ("T1w", [0.0, 0.39405128, 0.73013107], [0.003, 0.09929252, 0.07651248]),
    ],
)
def test_a_seed_draws_the_intensities_that_it_always_drew(contrast, means, stds):
    recipe = draw_recipe(np.random.default_rng(5), contrast=contrast)
    assert recipe.means[:3] == pytest.approx(means)
    assert recipe.stds[:3] == pytest.approx(stds)


@pytest.mark.parametrize("seed", range(12))
def test_images_are_finite_and_no_label_but_lesions_is_created(anatomy, seed):
    recipe = draw_recipe(np.random.default_rng(seed))
    rendering = render(anatomy, recipe, voxel=2)
    assert torch.isfinite(rendering.image).all()
    assert rendering.image.min() >= 0
    assert rendering.image.max() <= 1
    lesions = np.flatnonzero(anatomy.table.codes_of("Anomalies")).tolist()
    allowed = {*np.unique(anatomy.codes).tolist(), *lesions}
    assert set(rendering.codes.unique().tolist()) <= allowed
    assert tuple(rendering.codes.shape) == tuple(2 * n for n in rendering.image.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lesions", LESIONS)
def test_a_gpu_paints_as_well(anatomy, lesions):
    recipe = draw_recipe(np.random.default_rng(4), lesion_share=1)
    recipe = replace(recipe, lesions=lesions, lesion_radii=(6.0,), motion=2.0, ghost=0.1, objects=2)
    rendering = render(anatomy, recipe, device="cuda")
    assert rendering.image.device.type == rendering.codes.device.type == "cuda"
    assert torch.isfinite(rendering.image).all()


def test_an_undeformed_head_keeps_its_volumes(anatomy):
    codes = render(anatomy, PLAIN).codes.numpy()
    np.testing.assert_array_equal(
        np.bincount(codes.ravel(), minlength=18)[1:],
        np.bincount(anatomy.codes.ravel(), minlength=18)[1:],
    )


def test_scaling_by_ten_percent_scales_the_volume(anatomy):
    codes = render(anatomy, replace(PLAIN, scale=(1.1, 1.1, 1.1))).codes
    grown = int((codes > 0).sum()) / int((anatomy.codes > 0).sum())
    assert grown == pytest.approx(1.1**3, rel=0.02)


def test_without_noise_and_spread_each_tissue_has_its_mean(anatomy):
    recipe = replace(PLAIN, stds=np.zeros(len(tissues().names)))
    rendering = render(anatomy, recipe)
    wm, csf = (siam_labels().by_name[name].index for name in ("WM", "CSF"))
    priors = tissues().priors["T1w"]
    ratio = (
        rendering.image[rendering.codes == csf].mean()
        / rendering.image[rendering.codes == wm].mean()
    )
    expected = priors[tissues().names.index("arachnoid")] / priors[tissues().names.index("wm")]
    assert float(ratio) == pytest.approx(expected, rel=1e-4)


def test_skull_stripping_leaves_brain_and_says_so_in_the_truth(anatomy):
    rendering = render(anatomy, replace(PLAIN, strip="brain", strip_margin=0.0))
    skull, head, gm = (siam_labels().by_name[name].index for name in ("Skull", "Head", "GM"))
    kept = int((rendering.codes == gm).sum())
    assert kept == int((anatomy.codes == gm).sum())
    assert not (rendering.codes == head).any()
    brain = (rendering.codes > 0) & (rendering.codes != skull)
    assert distance_transform_edt(~brain)[rendering.codes == skull].max() < 2
    assert rendering.image[rendering.codes == 0].max() == 0


def test_defacing_takes_head_in_front_and_no_brain(anatomy):
    rendering = render(anatomy, replace(PLAIN, strip="face", strip_margin=0.0))
    head, gm = (siam_labels().by_name[name].index for name in ("Head", "GM"))
    whole = render(anatomy, PLAIN).codes
    assert int((rendering.codes == gm).sum()) == int((whole == gm).sum())
    lost = torch.nonzero((whole == head) & (rendering.codes == 0)).float().mean(0)
    assert lost[1] > whole.shape[1] / 2  # anterior
    assert lost[2] < whole.shape[2] / 2  # inferior


def test_thick_slices_are_smooth_along_one_axis_only(anatomy):
    clean = replace(PLAIN, stds=np.zeros(len(tissues().names)))
    sharp = render(anatomy, clean).image
    thick = render(anatomy, replace(clean, spacing=(1.0, 1.0, 6.0))).image

    def roughness(image, axis):
        return float(image.diff(dim=axis).abs().mean())

    assert roughness(thick, 2) < 0.6 * roughness(sharp, 2)
    assert roughness(thick, 0) > 0.6 * roughness(sharp, 0)


def test_difficulty_0_is_upright_clean_and_t1_weighted():
    for seed in range(20):
        recipe = draw_recipe(np.random.default_rng(seed), difficulty=0.0)
        assert recipe.contrast == "T1w"
        assert np.allclose(recipe.rotation, 0)
        assert recipe.spacing == (1.0, 1.0, 1.0)
        assert recipe.bias == recipe.elastic == 0


def test_full_difficulty_draws_every_kind():
    recipes = [draw_recipe(np.random.default_rng(seed)) for seed in range(300)]
    assert {recipe.contrast for recipe in recipes} == {"random", *CONTRASTS}
    assert {recipe.strip for recipe in recipes} == {"no", "brain", "face"}
    assert max(max(recipe.spacing) for recipe in recipes) > 6
    assert max(abs(angle) for recipe in recipes for angle in recipe.rotation) <= 45
    assert {recipe.lesions for recipe in recipes} == {"no", *LESIONS}
    assert {move.name for recipe in recipes for move in recipe.boundaries} == set(BOUNDARIES)


@pytest.mark.parametrize("contrast", ["random", *CONTRASTS])
def test_lesions_can_be_seen_in_white_matter(contrast):
    wm = tissues().names.index("wm")
    lesions = [tissues().names.index(name) for name in ("lesion", "oedema")]
    for seed in range(50):
        means = draw_recipe(np.random.default_rng(seed), contrast=contrast).means
        assert (np.abs(means[lesions] - means[wm]) > 0.149).all()
        assert (means >= 0).all()


def test_as_many_images_have_lesions_as_asked():
    def ill(share):
        recipes = [draw_recipe(np.random.default_rng(n), lesion_share=share) for n in range(200)]
        return np.mean([recipe.lesions != "no" for recipe in recipes])

    assert ill(0) == 0
    assert ill(1) == 1
    assert 0.55 < ill(0.7) < 0.85


def test_source_tables_know_siams_labels():
    siam = source_table("siam")
    assert siam.target == (*((index,) for index in range(18)), (17,))
    synthseg = source_table("synthseg")
    merged = {target for target in synthseg.target if len(target) > 1}
    assert merged == {(0, 15)}
    assert synthseg.ignored == (136, 137, 163, 164)


def test_the_label_table_that_siam_bids_writes_is_a_source_table(tmp_path):
    save_label_table(tmp_path / "seg-siam_dseg.tsv", siam_labels())
    table, siam = source_table(str(tmp_path / "seg-siam_dseg.tsv")), source_table("siam")
    assert (table.values, table.target) == (siam.values, siam.target)
    assert table.tissue.tolist() == siam.tissue.tolist()


def test_a_bids_label_table_with_siams_names_is_a_source_table(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\n7\tWM\n0\tbackground\n5\tGM\n", encoding="utf-8")
    table = source_table(str(path))
    assert table.values == (0, 5, 7, 1003)
    assert table.target == ((0,), (1,), (2,), (17,))
    assert [tissues().names[index] for index in table.tissue] == ["air", "gm", "wm", "oedema"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("index\tname\n0\tbackground\n1\tcortex\n", "names cortex, which SIAM does not know"),
        ("a\tb\n1\t2\n", "has the columns a, b"),
        ("value\tname\ttissue\ttarget\n1\tx\tgm\tGM\n", "does not begin with the background"),
        ("value\tname\ttissue\ttarget\n0\tx\tjelly\tGM\n", "unknown tissue"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, content, message):
    path = tmp_path / "own.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        source_table(str(path))


def test_preparing_a_map_fills_mixed_codes_and_finds_enclosed_air_and_dura():
    data = np.zeros((40, 40, 40), np.int32)
    radius = np.linalg.norm(np.indices(data.shape) - 19.5, axis=0)
    for limit, value in ((19, 507), (16, 515), (13, 24), (10, 3), (7, 2)):
        data[radius < limit] = value
    data[radius < 2] = 136
    data[19:21, 19:21, 4:6] = 0
    table = source_table("synthseg")
    grid = Grid(data.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))
    values = np.array(table.values)[prepare_anatomy(data, grid, table).codes]
    assert 136 not in values
    assert (values == 2).sum() == (data == 2).sum() + (data == 136).sum()
    assert (values == 1000).sum() == 8  # the hole in the scalp
    assert 0 < (values == 1002).sum() < (data == 24).sum()  # dura lies in the outer CSF


def test_an_unknown_value_in_a_map_raises():
    data = np.zeros((10, 10, 10), np.int32)
    data[4:6, 4:6, 4:6] = 777
    with pytest.raises(LabelError, match=r"mine\.nii holds values \[777\]"):
        prepare_anatomy(data, Grid(data.shape, np.eye(4)), source_table("siam"), "mine.nii")


def test_an_anisotropic_map_is_painted_at_1_mm(labels):
    table = source_table("siam")
    thick = Anatomy(np.pad(labels, 1).astype(np.uint8), (1.0, 1.0, 2.0), table)
    plain = Anatomy(thick.codes, (1.0, 1.0, 1.0), table)
    ratio = (render(thick, PLAIN).codes > 0).sum() / (render(plain, PLAIN).codes > 0).sum()
    assert float(ratio) == pytest.approx(2, rel=0.03)
