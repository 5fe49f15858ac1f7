import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass, distance_transform_edt

from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.anatomy_changes import (
    BOUNDARIES,
    LESIONS,
    BoundaryMove,
    add_lesions,
    heal,
    move_boundary,
    patches,
)

INDEX = {label.name: label.index for label in siam_labels()}
OEDEMA = 18


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture(scope="module")
def codes(anatomy) -> torch.Tensor:
    return torch.from_numpy(anatomy.codes)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_move_changes_only_its_ground_into_its_front(codes, anatomy, name):
    front, ground = (np.array([INDEX[c] for c in classes]) for classes in BOUNDARIES[name])
    moved = move_boundary(codes, anatomy.table, BoundaryMove(name, 2, 0.9), seeded())
    changed = moved != codes
    assert np.isin(codes[changed], ground).all()
    assert np.isin(moved[changed], front).all()


def test_a_move_reaches_as_deep_as_it_says(codes, anatomy):
    for depth in (1, 3):
        move = BoundaryMove("ventricles wider", depth, 0.999)
        moved = move_boundary(codes, anatomy.table, move, seeded())
        changed = (moved != codes).numpy()
        far = distance_transform_edt(codes.numpy() != INDEX["CSFv"])[changed].max()
        assert depth / 2 <= far <= depth  # 6-neighbours: diagonals advance more slowly


def test_cortex_gets_thinner_by_a_voxel_and_its_neighbours_grow(codes, anatomy):
    count = lambda data, name: int((data == INDEX[name]).sum())  # noqa: E731
    move = BoundaryMove("pial surface inward", 1, 0.999)
    moved = move_boundary(codes, anatomy.table, move, seeded())
    lost = count(codes, "GM") - count(moved, "GM")
    assert lost > 0
    assert count(moved, "CSF") - count(codes, "CSF") == lost


def test_a_hippocampus_shrinks_from_the_temporal_horn(anatomy):
    """A block of 10 mm beside fluid loses the 3 mm there, and nothing elsewhere."""
    codes = torch.full((32, 32, 32), INDEX["WM"], dtype=torch.uint8)
    codes[8:24, 8:18, 8:18] = INDEX["Hippo"]
    codes[8:24, 18:20, 8:18] = INDEX["CSFv"]
    move = BoundaryMove("hippocampus smaller", 3, 0.999)
    moved = move_boundary(codes, anatomy.table, move, seeded())
    changed = moved != codes
    assert changed[8:24, 15:18, 8:18].float().mean() > 0.9
    assert changed.sum() == changed[8:24, 15:18, 8:18].sum()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_patches_cover_their_share(share):
    covered = [
        float(patches((64, 64, 64), share, 9, torch.Generator().manual_seed(seed)).float().mean())
        for seed in range(6)
    ]
    assert np.mean(covered) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("kind", LESIONS)
def test_lesions_lie_in_the_brain_and_have_about_their_size(codes, anatomy, kind):
    sizes = []
    for seed in range(8):
        found = add_lesions(codes, anatomy.table, kind, (3.0,), torch.Generator().manual_seed(seed))
        lesion = found == INDEX["Anomalies"]
        assert not (lesion & (codes == INDEX["Skull"]) | lesion & (codes == INDEX["Head"])).any()
        assert torch.equal(found == INDEX["Skull"], codes == INDEX["Skull"])
        sizes.append(int(lesion.sum()))
    ball = 4 / 3 * np.pi * 3**3
    assert 0.2 * ball < np.mean(sizes) < 2 * ball


def test_only_tumours_have_oedema(codes, anatomy):
    oedema = {
        kind: int((add_lesions(codes, anatomy.table, kind, (4.0,), seeded()) == OEDEMA).sum())
        for kind in LESIONS
    }
    assert oedema["tumour"] > 0
    assert oedema["ms"] == oedema["stroke"] == 0


def test_tumours_push_the_ventricles_away(codes, anatomy):
    def away(data, middle):
        return np.linalg.norm(np.argwhere(data == INDEX["CSFv"]) - middle, axis=1).mean()

    pushed = []
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        found = add_lesions(codes, anatomy.table, "tumour", (5.0,), rng).numpy()
        middle = np.array(center_of_mass(found == INDEX["Anomalies"]))
        pushed.append(away(found, middle) - away(codes.numpy(), middle))
    assert min(pushed) >= 0
    assert max(pushed) > 0.2


def test_healing_leaves_no_lesion(codes, anatomy):
    ill = add_lesions(codes, anatomy.table, "tumour", (4.0,), seeded())
    healed = heal(ill, anatomy.table)
    assert not ((healed == INDEX["Anomalies"]) | (healed == OEDEMA)).any()
    assert torch.equal(healed[ill == codes], codes[ill == codes])
