"""Small models that are trained in seconds, and the scene that they have learnt."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import write_model

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.models.folder import CHECKPOINT
from siam_bids.models.registry import find_model
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import checkpoint

CPU = torch.device("cpu")
SHAPE = (32, 32, 40)  # two tiles of 32


def scene():
    """A bright box in the dark, brighter in one half: image and true labels 0, 1 (dim), 2."""
    truth = np.zeros(SHAPE, np.int64)
    truth[6:26, 8:24, 10:28] = 1
    truth[6:26, 16:24, 10:28] = 2
    image = truth + np.random.default_rng(0).normal(0, 0.05, SHAPE)
    return Volume(image.astype(np.float32) + 0.5, Grid(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0])))


def trained(folder, names, target, channels):
    """A model folder whose network has learnt `target` from the scene in a second or two."""
    write_model(folder, names=list(names), channels=len(channels))
    plan = json.loads((folder / "plans.json").read_text())["configurations"][CONFIGURATION]
    torch.manual_seed(0)
    network = build_network(plan["architecture"], channels=len(channels), classes=len(names))
    stack = torch.stack([torch.as_tensor(c, dtype=torch.float32) for c in channels])[None]
    stack[:, 0] = (stack[:, 0] - stack[:, 0].mean()) / stack[:, 0].std()
    wanted = torch.as_tensor(target)[None]
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(60):
        optimiser.zero_grad()
        tile = slice(0, 32) if step % 2 else slice(8, 40)
        loss = torch.nn.functional.cross_entropy(network(stack[:, :, tile]), wanted[:, tile])
        loss.backward()
        optimiser.step()
    torch.save(checkpoint(network.state_dict()), folder / "fold_0" / CHECKPOINT)


def write_cascade(place: Path) -> Path:
    """Train and write a cascade: GM is the whole box; inside, `second` tells Dim from Bright."""
    head = scene()
    truth = (head.data > 1).astype(np.int64) + (head.data > 2)
    axes = (2, 1, 0)  # nnU-Net's order
    image, truth = head.data.transpose(axes), truth.transpose(axes)
    box = truth > 0
    trained(place / "first", ("background", "GM", "CSF"), box.astype(np.int64), [image])
    trained(place / "second", ("background", "Dim", "Bright"), truth, [image, box])
    path = place / "halves.json"
    regions = [{"inside": "GM", "model": "second"}]
    path.write_text(json.dumps({"model": "first", "regions": regions, "title": "Halves"}))
    return path


def write_ensemble(cascade: Path) -> Path:
    """Train one more model, on the bright half alone, and write its ensemble with `first`."""
    place = cascade.parent
    head = scene().data.transpose(2, 1, 0)
    bright = (head > 2).astype(np.int64)
    trained(place / "half", ("background", "GM", "CSF"), bright, [head])
    path = place / "pair.json"
    path.write_text(json.dumps({"members": ["half", "first"], "title": "Pair"}))
    return path


def opened(path) -> Cascade:
    return Cascade.open(find_model(str(path)))


def predicted(path, volume, **options):
    segmenter = CascadeSegmenter(opened(path), CPU, Inference(precision="float32"))
    return segmenter.segment(volume, **options)


def refined(ensemble):
    """A cascade that begins with an ensemble."""
    path = ensemble.with_name("then.json")
    regions = [{"inside": "GM", "model": "second"}]
    path.write_text(json.dumps({"model": ensemble.name, "regions": regions}))
    return path
