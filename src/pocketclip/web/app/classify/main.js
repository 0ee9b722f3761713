// The classify page.
import { byId } from "../shared/dom.js";
import { startShell } from "../shared/shell.js";
import { mountEditor } from "../labels/editor.js";

await startShell();
await mountEditor(byId("labels"), { page: "classify", onChange: () => {} });
