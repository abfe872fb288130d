// Keeps the page and its scripts, so that it opens without a connection, and gives them the headers that threads need.
// The worker keeps the bundle's files itself, once their hashes are right.

const SITE = "@SITE@"; // a hash of all files: another one is another site
const SHELL = /*@SHELL@*/ {}; // file -> SHA-256
const SCOPE = self.registration.scope;
const CACHE = `snapgen ${SCOPE} ${SITE}`;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

async function keep() {
  const cache = await caches.open(CACHE);
  for (const [name, expected] of Object.entries(SHELL)) {
    const answer = await fetch(new URL(name, SCOPE), { cache: "no-cache" });
    if (!answer.ok) throw new Error(`${name}: status ${answer.status}`);
    const bytes = await answer.arrayBuffer();
    const digest = [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))];
    if (digest.map((byte) => byte.toString(16).padStart(2, "0")).join("") !== expected) throw new Error(`${name} was changed`);
    const headers = new Headers(answer.headers);
    for (const [key, value] of Object.entries(HEADERS)) headers.set(key, value);
    headers.delete("Content-Encoding"); // the bytes are decoded
    headers.set("Content-Length", bytes.byteLength);
    await cache.put(new URL(name, SCOPE).href, new Response(bytes, { headers }));
  }
  await self.skipWaiting();
}

async function dropOthers() {
  for (const name of await caches.keys()) {
    if (name.startsWith(`snapgen ${SCOPE} `) && name !== CACHE) await caches.delete(name);
  }
  await self.clients.claim();
}

async function answer(request) {
  const url = new URL(request.url);
  url.search = url.hash = "";
  const name = url.href === SCOPE ? new URL("index.html", SCOPE).href : url.href;
  return (await (await caches.open(CACHE)).match(name)) ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(keep()));
self.addEventListener("activate", (event) => event.waitUntil(dropOthers()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith(SCOPE)) event.respondWith(answer(event.request));
});
