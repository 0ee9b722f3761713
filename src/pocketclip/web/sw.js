// The service worker: opens the pages where there is no network, or no server.
//
// A line before this one says what belongs to the site (pocketclip/pages/offline.py). All of it is
// fetched when the worker is installed, or nothing: pages and modules of two versions never meet.
// With a network, pages come from there. Nothing that a server computes is ever kept.

/**
 * @typedef {object} Site
 * @property {string} version changes with any page or file
 * @property {string} assets the folder of the hashed assets
 * @property {string[]} pages by name, without `.html`
 * @property {string[]} files with a hash in their address
 */

/** @type {any} */
const worker = self;
/** @type {Site} */
const site = worker.SITE;
/** @type {string} */
const scope = worker.registration.scope;

// Sites below different paths of one host share the browser's caches.
const OURS = `pocketclip-site-1 ${new URL(scope).pathname} `;
const NAME = OURS + site.version;
// shared/offline.js removes it when a session ends.
const MODELS = `pocketclip-models-1 ${new URL(scope).pathname}`;
const PATIENCE = 4000; // milliseconds for a page to come from the network

worker.addEventListener("install", (/** @type {any} */ event) => event.waitUntil(install()));
worker.addEventListener("activate", (/** @type {any} */ event) => event.waitUntil(activate()));
worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(scope)) return;
  const path = new URL(request.url).pathname.slice(new URL(scope).pathname.length);
  const page = pageAt(path);
  if (path.startsWith("assets/") || path.startsWith("vendor/")) {
    event.respondWith(hashedFile(request));
  } else if (request.mode === "navigate" && page !== null) {
    event.respondWith(newestPage(request, page));
  } else if (path === "models.json") {
    event.respondWith(newestModels(request));
  }
});

async function install() {
  const cache = await caches.open(NAME);
  await Promise.all([
    ...site.files.map((path) => keepFile(cache, path)),
    ...site.pages.map((name) => keepPage(cache, name)),
  ]);
  // Pages that are open go on with the older set, which stays for them.
  await worker.skipWaiting();
}

async function activate() {
  const older = (await ownCaches()).filter((name) => name !== NAME);
  await Promise.all(older.slice(0, -1).map((name) => caches.delete(name)));
  await worker.clients.claim();
  // The page that registered this worker has asked for the list before it, and will not again. From
  // here on the worker sees whoever asks, and whoever asked earlier had a session, if one is needed.
  await newestModels(new Request(new URL("models.json", scope).href, { cache: "no-cache" })).catch(
    () => {},
  );
}

/**
 * @param {Cache} cache
 * @param {string} path
 */
async function keepFile(cache, path) {
  const answer = await fetch(new URL(path, scope).href);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  await cache.put(new URL(path, scope).href, answer);
}

/**
 * @param {Cache} cache
 * @param {string} name
 */
async function keepPage(cache, name) {
  const answer = await fetch(addressOf(name), { cache: "no-store" });
  const html = await answer.text();
  // The server may have been replaced since it sent this worker.
  if (!answer.ok || !html.includes(site.assets)) throw new Error(`${name} is another one`);
  const headers = new Headers(answer.headers);
  for (const one of ["content-encoding", "content-length"]) headers.delete(one);
  // A copy: some hosts redirect to an address without ".html", which no page may come from.
  await cache.put(addressOf(name), new Response(html, { headers }));
}

/**
 * Return a file that never changes under its address.
 * @param {Request} request
 */
async function hashedFile(request) {
  return (await kept(request.url)) ?? fetch(request);
}

/**
 * Return a page: from the network, or the kept one if nothing useful comes in time.
 * @param {Request} request
 * @param {string} name
 */
async function newestPage(request, name) {
  const network = fetch(request);
  const inTime = new Promise((resolve) => setTimeout(resolve, PATIENCE, null));
  const answer = await Promise.race([network.catch(() => null), inTime]);
  // A proxy whose server is away answers with 502.
  if (answer instanceof Response && answer.status < 500) return answer;
  const cache = await caches.open(NAME);
  return (await cache.match(addressOf(name), { ignoreVary: true })) ?? network;
}

/**
 * Return the list of models, without which the camera does not begin: where nobody answers, the one
 * that came last.
 * @param {Request} request
 */
async function newestModels(request) {
  const cache = await caches.open(MODELS);
  const address = new URL("models.json", scope).href;
  /** @type {Response | null} */
  let answer = null;
  try {
    answer = await fetch(request);
    if (answer.ok) await cache.put(address, answer.clone()).catch(() => {});
    else if (answer.status < 500) await cache.delete(address);
    if (answer.status < 500) return answer;
  } catch {
    // There is no network.
  }
  return (await cache.match(address, { ignoreVary: true })) ?? answer ?? Response.error();
}

/** Return the names of this site's caches, the oldest first. */
async function ownCaches() {
  return (await caches.keys()).filter((name) => name.startsWith(OURS));
}

/**
 * Return a kept file; undefined if there is none.
 * @param {string} address
 */
async function kept(address) {
  const names = await ownCaches();
  for (const name of [NAME, ...names.filter((one) => one !== NAME)]) {
    const found = await (await caches.open(name)).match(address, { ignoreVary: true });
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * Return the name of the page at a path of the site; null if there is none.
 * @param {string} path
 */
function pageAt(path) {
  const name = path === "" ? "index" : path.replace(/\.html$/, "");
  return site.pages.includes(name) ? name : null;
}

/** @param {string} page */
function addressOf(page) {
  return new URL(page === "index" ? "./" : `${page}.html`, scope).href;
}
