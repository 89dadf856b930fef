"""Workflows as users have them: which pictures they save, and where prompt and seed go."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devkit import graph
from devkit.client import Workflow
from devkit.paths import Stop

PLACEHOLDER = "%prompt%"
TEXTS = ("text", "prompt", "clip_l", "clip_g", "t5xxl", "text_l", "text_g")  # what text encoders call their prompt
SEEDS = ("seed", "noise_seed")
SEED_NODE = "PrimitiveInt"  # one that feeds several samplers


@dataclass(frozen=True)
class WorkflowFile:
    """One workflow file, with what it saves: name of a variant -> id of the node whose pictures they are."""

    path: Path
    workflow: Workflow
    variants: dict[str, str]

    def filled(self, prompt: str, seed: int) -> Workflow:
        """With this prompt and seed; nothing else is changed."""
        filled = copy.deepcopy(self.workflow)
        for node, name in _prompts(filled):
            text = filled[node]["inputs"][name]
            filled[node]["inputs"][name] = text.replace(PLACEHOLDER, prompt) if PLACEHOLDER in text else prompt
        for inputs in (entry["inputs"] for entry in filled.values()):
            for name in SEEDS:
                if _is_link(inputs.get(name), filled):
                    source = filled[str(inputs[name][0])]
                    if source["class_type"] == SEED_NODE:
                        source["inputs"]["value"] = seed
                elif isinstance(inputs.get(name), int):
                    inputs[name] = seed
        return filled


def load(path: Path, object_info: dict, name: str = "", chosen: frozenset[str] = frozenset()) -> WorkflowFile:
    """A workflow as the frontend saves it, or as it exports it for the API.

    name: stands before the variants' names, or for it where the workflow saves one picture alone. chosen: keep these
    variants and what they need (none: keep all). Stop if it saves nothing or has no place for a prompt.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    try:
        workflow = graph.to_api(saved, object_info) if "nodes" in saved else saved
    except ValueError as error:
        raise Stop(f"{path}: {error}") from error
    ends = {
        node: PurePosixPath(entry["inputs"]["filename_prefix"]).name
        for node, entry in workflow.items()
        if "filename_prefix" in entry["inputs"] and isinstance(entry["inputs"].get("images"), list)
    }
    if name:
        ends = {node: f"{name}-{end}" if len(ends) > 1 else name for node, end in ends.items()}
    ends = {node: end for node, end in ends.items() if not chosen or end in chosen}
    if not ends and not chosen:
        raise Stop(f"{path} saves no picture; put a Save Image node behind each sampler to be compared.")
    if len(set(ends.values())) < len(ends):
        raise Stop(f"{path} saves two pictures under one name; give each Save Image another filename_prefix.")
    found = WorkflowFile(path, _only(workflow, set(ends)), {end: node for node, end in ends.items()})
    if ends and not list(_prompts(found.workflow)):
        raise Stop(f"{path}: no text feeds a sampler's positive input; write {PLACEHOLDER} where the prompt belongs.")
    return found


def _only(workflow: Workflow, saving: set[str]) -> Workflow:
    """What these nodes need; they show their pictures instead of saving them, so that every frame comes as it is."""
    needed = set().union(saving, *(_upstream(workflow, node) for node in saving))
    kept = {node: entry for node, entry in workflow.items() if node in needed}
    previews = {
        node: {"class_type": "PreviewImage", "inputs": {"images": workflow[node]["inputs"]["images"]}}
        for node in saving
    }
    return {**kept, **previews}


def _upstream(workflow: Workflow, node: str, but: str = "") -> set[str]:
    """What this node needs, by links other than those of inputs named `but`."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        inputs = workflow[waiting.pop()]["inputs"]
        links = [value for name, value in inputs.items() if name != but and _is_link(value, workflow)]
        new = {str(link[0]) for link in links} - found
        found |= new
        waiting += new
    return found


def _is_link(value: object, workflow: Workflow) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in workflow


def _prompts(workflow: Workflow) -> Iterator[tuple[str, str]]:
    """Node and input of every text that is the prompt: those with the placeholder, else all that feed a positive input."""
    texts = [
        (node, name)
        for node, entry in workflow.items()
        for name, value in entry["inputs"].items()
        if isinstance(value, str)
    ]
    marked = [(node, name) for node, name in texts if PLACEHOLDER in workflow[node]["inputs"][name]]
    if marked:
        yield from marked
        return
    for start in ("positive", "conditioning"):  # the second: of a guider that has but one
        links = [entry["inputs"].get(start) for entry in workflow.values()]
        feeding = {str(link[0]) for link in links if _is_link(link, workflow)}
        # Nodes that take both prompts and hand both on are no way from one to the other.
        feeding = feeding.union(*(_upstream(workflow, node, but="negative") for node in feeding))
        if found := [(node, name) for node, name in texts if node in feeding and name in TEXTS]:
            yield from found
            return
