// Calls of the server. Queries travel in bodies, never in addresses.

import { config, siteUrl } from "./config.js";

/** An answer that is an error, or no answer. */
export class ApiError extends Error {
  /**
   * @param {string} message a sentence for people
   * @param {number} status 0: the server does not answer
   * @param {string | null} [code] of the error
   * @param {number | null} [retryAfter] seconds
   */
  constructor(message, status, code = null, retryAfter = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** @type {Set<() => void>} */
const onLocked = new Set();

/**
 * Call a function when the server asks for a session, because one has ended.
 * @param {() => void} listener
 */
export function whenLocked(listener) {
  onLocked.add(listener);
}

/**
 * Send a request, and return its answer's JSON.
 * @param {"GET" | "POST" | "DELETE"} method
 * @param {string} path relative to the site
 * @param {unknown} [body] JSON, or FormData
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 * @throws {ApiError} also if there is no server
 */
export async function call(method, path, body, options = {}) {
  const answer = await send(method, path, body, options);
  try {
    return await answer.json();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError("The server's answer was cut off. Try again.", 0);
  }
}

/**
 * Send a request, and return the answer, which is no error.
 * @param {"GET" | "POST" | "DELETE"} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {{signal?: AbortSignal}} [options]
 */
export async function send(method, path, body, options = {}) {
  if (!config.server) throw new ApiError("These pages are without a server.", 0, "no_server");
  /** @type {RequestInit} */
  const init = { method, credentials: "same-origin", cache: "no-store", ...options };
  if (body instanceof FormData) {
    init.body = body;
  } else if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { "Content-Type": "application/json" };
  }
  let answer;
  try {
    answer = await fetch(siteUrl(path), init);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError("The server does not answer.", 0, "unreachable");
  }
  if (answer.ok) return answer;
  const known = await answer.json().catch(() => null);
  const error = known?.error ?? {};
  const after = Number(answer.headers.get("Retry-After"));
  if (answer.status === 401 && path !== "session") for (const listener of onLocked) listener();
  throw new ApiError(
    sentence(String(error.message ?? `Error ${answer.status}`)),
    answer.status,
    error.code ?? null,
    Number.isFinite(after) && after > 0 ? after : null,
  );
}

/**
 * Return whether a request was given up by the page itself.
 * @param {unknown} error
 */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/**
 * Return a message of the server as a sentence.
 * @param {string} text
 */
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
