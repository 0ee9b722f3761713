// Says when a page cannot start: a part of it is missing or damaged, or the connection was lost.
//
// This module imports nothing, so that it is there when another one is not.

const page = /** @type {HTMLScriptElement} */ (document.getElementById("page-script"));
const status = /** @type {HTMLElement} */ (document.getElementById("status"));

// The browser runs the page's script once: this waits for it, and learns of any error. The console
// has the error itself.
import(page.src).catch(() => {
  status.textContent =
    "This page could not start: check the connection and reload the page; if that does not help, " +
    "its files are damaged or missing, and have to be installed or exported again.";
});

export {};
