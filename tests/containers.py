"""What docker, buildah and apptainer would do, without a container.

Their options are read as the real programs read them (those that the documentation uses), and the
app of this checkout runs with paths inside the container turned into those outside.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

Program = Callable[[list[str]], int]


class Containers:
    """The images of one machine; a run of one that was not built is an error."""

    def __init__(self, app: Program) -> None:
        self.app = app
        self.images: set[str] = set()

    def docker(self, words: list[str]) -> int:
        parser, verbs = _parser("docker")
        _build_options(verbs)
        run = verbs.add_parser("run")
        run.add_argument("--rm", action="store_true")
        run.add_argument("-u", "--user", type=_user)
        run.add_argument("-v", "--volume", action="append", default=[])
        _what_runs(run)
        arguments = parser.parse_args(words)
        if arguments.verb == "build":
            return self._build(arguments)
        mounts = dict(_mount(text) for text in arguments.volume)
        assert all(Path(place).is_absolute() for place in mounts.values()), "a named volume"
        return self._run(_tagged(arguments.image), mounts, arguments.command)

    def buildah(self, words: list[str]) -> int:
        parser, verbs = _parser("buildah")
        _build_options(verbs)
        push = verbs.add_parser("push")
        push.add_argument("image", type=_tagged)
        push.add_argument("target")
        arguments = parser.parse_args(words)
        if arguments.verb == "build":
            return self._build(arguments)
        assert arguments.image in self.images
        kind, _, path = arguments.target.partition(":")
        assert kind == "docker-archive"
        self.images.add(f"docker-archive://{path}")
        return 0

    def apptainer(self, words: list[str]) -> int:
        parser, verbs = _parser("apptainer")
        build = verbs.add_parser("build")
        build.add_argument("target")
        build.add_argument("source")
        run = verbs.add_parser("run")
        for name in ("--cleanenv", "--containall", "--nv"):
            run.add_argument(name, action="store_true")
        run.add_argument("--bind", "-B", action="append", default=[])
        _what_runs(run)
        arguments = parser.parse_args(words)
        if arguments.verb == "build":
            assert arguments.source.removeprefix("docker-daemon://") in self.images
            self.images.add(arguments.target)
            return 0
        mounts = dict(_mount(text) for text in arguments.bind)
        return self._run(arguments.image, mounts, arguments.command)

    def _build(self, arguments: argparse.Namespace) -> int:
        recipe = (ROOT / arguments.context / "Dockerfile").read_text(encoding="utf-8")
        declared = set(re.findall(r"^ARG (\w+)", recipe, re.MULTILINE))
        assert {name.partition("=")[0] for name in arguments.build_arg} <= declared
        self.images.add(arguments.tag)
        return 0

    def _run(self, image: str, mounts: dict[str, str], command: list[str]) -> int:
        assert image in self.images, f"{image} was not built"
        for place in mounts.values():
            assert Path(place).is_dir(), place
        inside = re.compile("|".join(f"^{re.escape(path)}(?=/|$)" for path in mounts))
        return self.app([inside.sub(lambda found: mounts[found[0]], word) for word in command])


def _parser(program: str) -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    parser = argparse.ArgumentParser(program, allow_abbrev=False)
    return parser, parser.add_subparsers(dest="verb", required=True)


def _build_options(verbs: argparse._SubParsersAction) -> None:
    build = verbs.add_parser("build")
    build.add_argument("-t", "--tag", required=True, type=_tagged)
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("context")


def _what_runs(run: argparse.ArgumentParser) -> None:
    run.add_argument("image")
    run.add_argument("command", nargs=argparse.REMAINDER)


def _tagged(image: str) -> str:
    return image if ":" in image else f"{image}:latest"


def _user(text: str) -> int:
    return int(text)


def _mount(text: str) -> tuple[str, str]:
    """Split `OUTSIDE:INSIDE[:ro]`; return inside and outside."""
    outside, inside, *options = text.split(":")
    assert options in ([], ["ro"]), text
    return inside, outside
