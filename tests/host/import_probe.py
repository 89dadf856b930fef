"""Run by test_import.py in a process of its own: ComfyUI, then the pack (argument 1), and what that added, as JSON."""

import asyncio
import contextlib
import importlib.util
import io
import json
import logging
import statistics
import sys
import time

ROOT = sys.argv.pop(1)
sys.argv.append("--cpu")

# What ComfyUI itself brings before it turns to custom nodes. `utils` first: a module of that name would hide the package.
importlib.import_module("comfy.options").enable_args_parsing()
for name in ("utils.extra_config", "nodes", "server", "comfy_api.latest"):
    importlib.import_module(name)


def load() -> int:
    """Import the pack anew, as ComfyUI's loader does. The number of its nodes."""
    for name in [name for name in sys.modules if name.split(".")[0] == "gimbal"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location("gimbal", f"{ROOT}/__init__.py", submodule_search_locations=[ROOT])
    pack = importlib.util.module_from_spec(spec)
    sys.modules["gimbal"] = pack
    spec.loader.exec_module(pack)
    found = asyncio.run(listed(pack))
    for node in found:
        node.GET_SCHEMA()
    return len(found)


async def listed(pack) -> list:
    return await (await pack.comfy_entrypoint()).get_node_list()


def packages() -> set[str]:
    return {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"gimbal"}


asyncio.run(asyncio.sleep(0))  # asyncio has its own word at its first use
said = io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(said))
logging.getLogger().setLevel(logging.INFO)
known, times = packages(), []
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    for _ in range(6):  # the first may have to compile
        start = time.process_time()
        count = load()
        times.append(1000 * (time.process_time() - start))
found = {"nodes": count, "packages": sorted(packages() - known), "said": said.getvalue()}
sys.stdout.write(json.dumps({**found, "first_ms": times[0], "again_ms": statistics.median(times[1:])}) + "\n")
