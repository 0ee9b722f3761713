// Embeddings of texts, kept on the device: in memory, and in IndexedDB where the browser allows it.
//
// A text has another embedding in every embedding space, so both are part of the key.

const NAME = "pocketclip-texts";
const STORE = "embeddings";
const MOST_KEPT = 4000; // of D 512: 8 MB
const MOST_IN_MEMORY = 8000;
const LONGEST = 1000; // characters of a text that is kept

/** @type {Map<string, Float32Array>} */
const memory = new Map();
/** @type {Promise<IDBDatabase | null> | undefined} */
let opening;

/**
 * Return the known embeddings of texts.
 * @param {string} space the embedding space
 * @param {readonly string[]} texts
 * @returns {Promise<Map<string, Float32Array>>}
 */
export async function recall(space, texts) {
  /** @type {Map<string, Float32Array>} */
  const found = new Map();
  const missing = texts.filter((text) => {
    const row = memory.get(keyOf(space, text));
    if (row !== undefined) found.set(text, row);
    return row === undefined;
  });
  if (missing.length === 0) return found;
  const rows = await transact("readonly", (store) =>
    Promise.all(missing.map((text) => settled(store.get(keyOf(space, text))))),
  );
  missing.forEach((text, i) => {
    const row = rows?.[i]?.embedding;
    if (!(row instanceof Float32Array)) return;
    found.set(text, row);
    hold(space, text, row);
  });
  return found;
}

/**
 * Keep embeddings. Where the device cannot, they are kept until the page is closed.
 * @param {string} space
 * @param {ReadonlyMap<string, Float32Array>} rows by their texts
 */
export async function remember(space, rows) {
  const time = Date.now();
  for (const [text, embedding] of rows) hold(space, text, embedding);
  await transact("readwrite", async (store) => {
    for (const [text, embedding] of rows) {
      if (text.length <= LONGEST) store.put({ key: keyOf(space, text), embedding, time });
    }
    const surplus = (await settled(store.count())) - MOST_KEPT;
    if (surplus > 0) await removeOldest(store, surplus);
  });
}

/**
 * Forget the texts of an embedding space, on the device too.
 * @param {string} space
 */
export async function forgetTexts(space) {
  const from = keyOf(space, "");
  for (const key of memory.keys()) if (key.startsWith(from)) memory.delete(key);
  // All keys that begin with `from` are below the one that ends with the next character.
  const range = () => IDBKeyRange.bound(from, `${space}\v`, false, true);
  await transact("readwrite", (store) => settled(store.delete(range())));
}

/**
 * @param {string} space
 * @param {string} text
 */
function keyOf(space, text) {
  return `${space}\n${text}`;
}

/**
 * @param {string} space
 * @param {string} text
 * @param {Float32Array} embedding
 */
function hold(space, text, embedding) {
  const key = keyOf(space, text);
  memory.delete(key); // so that it is the newest
  memory.set(key, embedding);
  for (const oldest of memory.keys()) {
    if (memory.size <= MOST_IN_MEMORY) break;
    memory.delete(oldest);
  }
}

/**
 * Use the store; undefined where there is none, or it fails: nothing depends on it.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => Promise<T>} use
 * @returns {Promise<T | undefined>}
 */
async function transact(mode, use) {
  try {
    const database = await (opening ??= open());
    if (database === null) return undefined;
    return await use(database.transaction(STORE, mode).objectStore(STORE));
  } catch {
    return undefined;
  }
}

/** @returns {Promise<IDBDatabase | null>} */
async function open() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "key" }).createIndex("time", "time");
    };
    const database = await settled(request);
    database.onversionchange = () => database.close();
    return database;
  } catch {
    return null; // denied, as in some private windows
  }
}

/**
 * @param {IDBObjectStore} store
 * @param {number} count
 */
async function removeOldest(store, count) {
  const keys = await settled(store.index("time").getAllKeys(null, count));
  for (const key of keys) store.delete(key);
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
