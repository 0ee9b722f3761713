// The search page.
import { startShell } from "../shared/shell.js";

await startShell();
