"""A pytest plugin: which tests must share a process. What is costly to make is then made once.

pytest-xdist's own `--dist loadgroup` writes the group into a private field of pytest's items, which pytest 9.2 no longer
reads. Here the processes that collect write the groups to a file, and the one that distributes reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

FOLDER = "gimbal_groups"  # of the files, as the processes are told


class GroupScheduling(LoadScopeScheduling):
    """Hands out groups whole, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: object, folder: Path):
        super().__init__(config, log)
        self.folder = folder
        self.groups: dict[str, str] = {}

    def schedule(self) -> None:
        for path in self.folder.glob("*.json"):  # all processes collected the same
            self.groups.update(json.loads(path.read_text(encoding="utf-8")))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self.groups.get(nodeid, nodeid)


class Grouping:
    """To be registered in pytest_configure, in all processes: in those that run tests, and in that which distributes."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: object) -> None:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix=FOLDER))
            node.config.add_cleanup(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        node.workerinput[FOLDER] = str(self.folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> GroupScheduling | None:
        return GroupScheduling(config, log, self.folder) if config.getvalue("dist") == "loadgroup" else None

    @pytest.hookimpl(tryfirst=True)  # pytest-xdist tells what was collected in the same hook
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        told = getattr(session.config, "workerinput", {})
        if FOLDER not in told:
            return
        marks = {item.nodeid: item.get_closest_marker("xdist_group") for item in session.items}
        groups = {nodeid: mark.args[0] for nodeid, mark in marks.items() if mark is not None}
        path = Path(told[FOLDER], f"{told['workerid']}.json")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(groups), encoding="utf-8")
        os.replace(partial, path)
