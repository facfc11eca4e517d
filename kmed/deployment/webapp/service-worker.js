// Keeps the whole page on the device, so that it works without a network.
// VERSION is a hash of all files: a changed model or page has a cache of its own, so that two versions never mix.

const VERSION = {{ version | tojson }};
const FILES = {{ files | tojson }};

const PREFIX = `kmed-demo ${self.registration.scope} `; // one host may serve several demos
const CACHE = PREFIX + VERSION;

self.addEventListener("install", (event) => {
  // "no-cache" asks whether a file has changed, and does not fetch it again if it has not.
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOlder().then(() => self.clients.claim()));
});

async function removeOlder() {
  const older = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(older.map((name) => caches.delete(name)));
}

self.addEventListener("message", (event) => {
  if (event.data === "use the newer version") self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});

async function answer(request) {
  const url = new URL(request.url);
  const page = url.href.startsWith(self.registration.scope) && url.pathname.endsWith("/index.html");
  const cache = await caches.open(CACHE);
  const kept = await cache.match(page ? "./" : request, { ignoreSearch: true });
  return kept ?? fetch(request);
}
