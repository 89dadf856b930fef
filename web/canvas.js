// Newer frontends take the text off a node when the job ends, and show no text on nodes of a subgraph that is opened later.
// This puts the last text of each of the pack's nodes back, by the frontend's own event.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const ENDS = ["execution_success", "execution_error", "execution_interrupted"]
const texts = new Map() // execution id, "5:12" in a subgraph -> {node, text}

function nodeAt(id) {
    let graph = app.rootGraph ?? app.graph
    let node
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part))
        graph = node?.subgraph
    }
    return node
}

function restore() {
    for (const [nodeId, { node, text }] of texts) {
        if (nodeAt(nodeId) !== node) texts.delete(nodeId) // another workflow, or the node is gone
        else if (node.graph === app.canvas?.graph) api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId, text } }))
    }
}

app.registerExtension({
    name: "gimbal.canvas",
    nodeCreated(node) {
        // Its own width would be that of its title: too little for the verdict. A saved graph's size comes after this.
        if (node.comfyClass === "GimbalQDriftReport") node.setSize?.([Math.max(node.size[0], 320), node.size[1]])
    },
    setup() {
        api.addEventListener("progress_text", ({ detail }) => {
            const node = nodeAt(detail.nodeId)
            if (node?.type?.startsWith("Gimbal")) texts.set(String(detail.nodeId), { node, text: detail.text })
        })
        for (const end of ENDS) api.addEventListener(end, () => setTimeout(restore)) // after the frontend's own listeners
        app.canvas?.canvas?.addEventListener("litegraph:set-graph", () => setTimeout(restore))
    },
})
