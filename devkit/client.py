"""Run a workflow on a ComfyUI server through its public HTTP and websocket API. Needs aiohttp (ComfyUI's own)."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

Workflow = dict[str, dict]  # API format: node id -> {"class_type", "inputs"}


class WorkflowFailed(Exception):
    """ComfyUI refused the workflow or a node raised; the message carries ComfyUI's own words."""


@dataclass(frozen=True)
class Result:
    prompt_id: str
    outputs: dict[str, dict]  # node id -> its UI output
    executed: tuple[str, ...]  # ids of the nodes that ran, in order; cached ones are not among them

    def images(self, node_id: str) -> list[dict]:
        return self.outputs.get(node_id, {}).get("images", [])


def run(
    url: str, workflow: Workflow, on_progress: Callable[[str, int, int], None] | None = None, timeout: float = 1800
) -> Result:
    """Queue a workflow and wait for it. `on_progress(node_id, done, of)` is called as ComfyUI reports progress."""
    return asyncio.run(asyncio.wait_for(_run(url, workflow, on_progress), timeout))


def image(url: str, entry: dict) -> bytes:
    """The file behind one entry of a result's images."""
    return asyncio.run(_fetch(f"{url}/view", {key: entry[key] for key in ("filename", "subfolder", "type")}))


async def _fetch(address: str, parameters: dict[str, str]) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(address, params=parameters) as answer:
        answer.raise_for_status()
        return await answer.read()


async def _run(url: str, workflow: Workflow, on_progress: Callable[[str, int, int], None] | None) -> Result:
    client = uuid.uuid4().hex
    async with aiohttp.ClientSession() as session:
        # Listen before queueing: a cached workflow is over at once.
        async with session.ws_connect(f"{url}/ws", params={"clientId": client}, max_msg_size=0) as socket:
            async with session.post(f"{url}/prompt", json={"prompt": workflow, "client_id": client}) as answer:
                body = await answer.json()
            if answer.status != 200:
                raise WorkflowFailed(_refusal(body))
            prompt_id = body["prompt_id"]
            executed = await _listen(socket, prompt_id, on_progress)
        outputs = await _outputs(session, url, prompt_id)
    return Result(prompt_id, outputs, tuple(executed))


async def _outputs(session: aiohttp.ClientSession, url: str, prompt_id: str) -> dict[str, dict]:
    # ComfyUI reports success a moment before it writes the history; the caller's timeout bounds the wait.
    while True:
        async with session.get(f"{url}/history/{prompt_id}") as answer:
            history = await answer.json()
        if prompt_id in history:
            return history[prompt_id]["outputs"]
        await asyncio.sleep(0.02)


async def _listen(
    socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_progress: Callable[[str, int, int], None] | None
) -> list[str]:
    executed: list[str] = []
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue  # previews
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        match event["type"]:
            case "progress" if on_progress is not None:
                on_progress(data["node"], data["value"], data["max"])
            case "executing" if data["node"] is not None:
                executed.append(data["node"])
            case "execution_error":
                raise WorkflowFailed(f"{data['node_type']}: {data['exception_type']}: {data['exception_message']}")
            case "execution_interrupted":
                raise WorkflowFailed("interrupted")
            case "execution_success":
                return executed
    raise WorkflowFailed("the server closed the connection")


def _refusal(body: dict) -> str:
    reasons = [body.get("error", {}).get("message", "refused")]
    for node_id, errors in body.get("node_errors", {}).items():
        for error in errors["errors"]:
            reasons.append(f"node {node_id} ({errors['class_type']}): {error['message']} {error['details']}")
    return "; ".join(reasons)
