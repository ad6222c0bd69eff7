// The templates bring their pictures: opening one puts what is missing into ComfyUI's input folder, as dropping it onto Load Image would.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PREFIX = "intrinsic_lab_";

// The names that Load Image offers.
function offered() {
    const [first, options] = LiteGraph.registered_node_types.LoadImage?.nodeData?.input?.required?.image ?? [];
    return Array.isArray(first) ? first : (options?.options ?? []);
}

async function bring(name) {
    const picture = await fetch(new URL(`pictures/${name.slice(PREFIX.length)}`, import.meta.url));
    if (!picture.ok) return;
    const body = new FormData();
    body.append("image", await picture.blob(), name);
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (answer.ok) offered().push(name);
}

app.registerExtension({
    name: "intrinsiclab.example_picture",
    async beforeConfigureGraph(graph) {
        const shown = graph.nodes.filter((node) => node.type === "LoadImage").map((node) => String(node.widgets_values?.[0]));
        const missing = shown.filter((name) => name.startsWith(PREFIX) && !offered().includes(name));
        await Promise.all([...new Set(missing)].map(bring));
    },
});
