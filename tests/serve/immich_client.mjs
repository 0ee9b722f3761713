// What immich's server does with its machine-learning service, for Node's fetch: it looks for
// healthy servers by /ping, sends /predict to these first, and to the others then.
//
// node immich_client.mjs CASES.json: runs the cases in their order and prints their results.

import { readFile } from 'node:fs/promises';

class Client {
  constructor(urls) {
    this.urls = urls;
    this.healthy = {};
    this.log = [];
  }

  async ping(url) {
    const answer = await fetch(new URL('/ping', url), { signal: AbortSignal.timeout(2000) });
    this.healthy[url] = answer.ok;
    return { status: answer.status, body: await answer.text() };
  }

  async predict(entries, payload) {
    const form = new FormData();
    form.append('entries', JSON.stringify(entries));
    if (payload.image === undefined) {
      form.append('text', payload.text);
    } else {
      form.append('image', new Blob([new Uint8Array(await readFile(payload.image))]));
    }
    const isHealthy = (url) => this.healthy[url] === true;
    const order = [...this.urls.filter(isHealthy), ...this.urls.filter((url) => !isHealthy(url))];
    for (const url of order) {
      try {
        const answer = await fetch(new URL('/predict', url), { method: 'POST', body: form });
        if (answer.ok) {
          this.healthy[url] = true;
          return { by: this.urls.indexOf(url), body: await answer.json() };
        }
        this.log.push(`${answer.status}: ${answer.statusText}`);
      } catch (error) {
        this.log.push(String(error.message));
      }
      this.healthy[url] = false;
    }
    throw new Error('failed for all URLs');
  }
}

const clients = new Map();
const clientOf = (urls) => {
  const key = urls.join(' ');
  if (!clients.has(key)) clients.set(key, new Client(urls));
  return clients.get(key);
};

const kinds = {
  ping: ({ urls }) => clientOf(urls).ping(urls[0]),
  root: async ({ urls }) => (await fetch(new URL('/', urls[0]))).json(),
  predict: ({ urls, entries, image, text }) => clientOf(urls).predict(entries, { image, text }),

  // The client goes away: with `after` milliseconds in the middle of waiting, else of sending.
  abort: async ({ urls, entries, image, after }) => {
    const control = new AbortController();
    const form = new FormData();
    form.append('entries', JSON.stringify(entries));
    const bytes = new Uint8Array(await readFile(image));
    form.append('image', new Blob([after === undefined ? new Uint8Array(16 << 20) : bytes]));
    const answer = fetch(new URL('/predict', urls[0]), {
      method: 'POST', body: form, signal: control.signal,
    });
    setTimeout(() => control.abort(), after ?? 2);
    return { status: (await answer).status };
  },
};

const results = [];
for (const one of JSON.parse(await readFile(process.argv[2], 'utf8'))) {
  const client = clientOf(one.urls);
  client.log.length = 0;
  let result;
  try {
    result = await kinds[one.kind](one);
  } catch (error) {
    result = { error: error.name === 'AbortError' ? 'aborted' : error.message };
  }
  results.push({ ...result, log: [...client.log], healthy: one.urls.map((u) => client.healthy[u]) });
}
process.stdout.write(JSON.stringify(results));
process.exit(0);
