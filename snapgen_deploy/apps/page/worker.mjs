// Loads the bundle's files, holds each against its hash, and draws with onnxruntime-web, beside the page's own thread.

import { Bundle, Pipeline, PromptReader, Refused, checkHash, conformance, readSafetensors, toPixels } from "./core.mjs";

let site, bundle, pipeline, sessions, ort, runtime, cancelling = null;

/** Bytes of a file of this site, from the cache or the network; `entry` has its hash. Only sound bytes are kept. */
async function load(name, entry, counted = () => {}) {
  const url = new URL(name, site.base).href, cache = await caches.open(site.cache).catch(() => null);
  const kept = await cache?.match(url);
  if (kept !== undefined && kept !== null) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    counted(bytes.length);
    try {
      await checkHash(name, bytes, entry.sha256);
      return bytes;
    } catch (error) {
      await cache.delete(url);
      throw error;
    }
  }
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) throw new Refused(`${name} cannot be loaded (${answer ? `status ${answer.status}` : "no connection"}).`);
  const bytes = new Uint8Array(entry.bytes), reader = answer.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > bytes.length) throw new Refused(`${name} is longer than the manifest says.`);
    bytes.set(part.value, at);
    at += part.value.length;
    counted(part.value.length);
  }
  await checkHash(name, bytes.subarray(0, at), entry.sha256);
  const kind = { headers: { "Content-Length": bytes.length } };
  await cache?.put(url, new Response(bytes, kind)).catch(() => {}); // without room it works online only
  return bytes;
}

const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const inBundle = (name, counted) => load(`bundle/${name}`, bundle.files().get(name) ?? bundle.manifest.files[name], counted);

/** Manifest and cases; then all files that drawing needs. */
async function open({ base, cache, webgpu, half, threads }) {
  const list = await fetch(new URL("site.json", base)).then((answer) => answer.json());
  site = { ...list, base, cache };
  const manifest = json(await load("bundle/manifest.json", site.bundle));
  const cases = json(await load("bundle/conformance.json", manifest.files["conformance.json"]));
  bundle = new Bundle(manifest, cases, site.target);
  const files = bundle.files(), total = [...files.values()].reduce((sum, entry) => sum + entry.bytes, 0);
  let loaded = 0;
  const counted = (bytes) => postMessage({ kind: "loading", loaded: (loaded += bytes), total });
  const contents = new Map();
  for (const name of files.keys()) contents.set(name, await inBundle(name, counted));
  const { Tokenizer } = await import(new URL("lib/tokenizers.min.mjs", base).href);
  const readers = bundle.readers.map((rule) => (
    { rule, reader: new PromptReader(rule, new Tokenizer(json(contents.get(rule.file)), {})) }));
  const tries = [["wasm", "wasm"]];
  if (webgpu && (half || bundle.target.precision !== "fp16")) tries.unshift(["webgpu", "webgpu"]);
  let failure = "";
  for (const [name, build] of tries) {
    try {
      await start(name, build, contents, threads);
      break;
    } catch (error) {
      if (name === "wasm") throw error;
      failure = `WebGPU does not run this model here (${String(error.message ?? error).split("\n")[0].slice(0, 160)}).`;
    }
  }
  pipeline = new Pipeline(bundle, readers, run);
  return { manifest, target: site.target, runtime, note: failure };
}

/** Open a session for each component with one of the runtime's builds. */
async function start(provider, build, contents, most) {
  const files = site.runtimes[build], processors = navigator.hardwareConcurrency || 1;
  const threads = self.crossOriginIsolated ? Math.min(processors, most) : 1;
  ort = await import(new URL(files.script, site.base).href);
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: new URL(files.glue, site.base).href };
  ort.env.wasm.wasmBinary = await load(files.wasm, site.files[files.wasm]);
  ort.env.logLevel = "error";
  const opened = {};
  for (const [role, part] of Object.entries(bundle.parts)) {
    opened[role] = await ort.InferenceSession.create(contents.get(part.path), { executionProviders: [provider] });
  }
  sessions = opened;
  runtime = { provider, threads: provider === "wasm" ? threads : 1, onnxruntime: site.onnxruntime };
}

const TYPES = new Map([[Float32Array, "float32"], [Int32Array, "int32"]]);

async function run(role, inputs) {
  const feeds = {};
  for (const name of sessions[role].inputNames) {
    const { shape, data } = inputs[name];
    feeds[name] = new ort.Tensor(TYPES.get(data.constructor), data, shape);
  }
  const outputs = await sessions[role].run(feeds), found = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    found[name] = { shape: tensor.dims, data: await tensor.getData() };
    tensor.dispose();
  }
  return found;
}

async function draw(request) {
  cancelling = new AbortController();
  const times = [], [height, width] = bundle.manifest.resolution;
  const begun = (what, done, total) => {
    times.push(performance.now());
    postMessage({ kind: "step", what, done, total });
  };
  const drawn = await pipeline.draw({ ...request, begun, signal: cancelling.signal });
  const pixels = toPixels(drawn, height, width), end = performance.now();
  const spans = times.map((time, i) => (times[i + 1] ?? end) - time);
  const told = { encode: spans[0], steps: spans.slice(1, -1), decode: spans.at(-1), all: end - times[0] };
  return { pixels, height, width, times: told };
}

async function test() {
  const arrays = readSafetensors(await inBundle(bundle.cases.vectors));
  let failed = 0;
  for await (const line of conformance(pipeline, arrays)) {
    failed += !line.passed;
    postMessage({ kind: "line", ...line });
  }
  return { failed };
}

const TASKS = { open, draw, test };

self.onmessage = async ({ data: { task, id, ...given } }) => {
  if (task === "cancel") {
    cancelling?.abort();
    return;
  }
  try {
    const done = await TASKS[task](given);
    postMessage({ kind: "done", id, ...done }, done.pixels ? [done.pixels.buffer] : []);
  } catch (error) {
    const said = error instanceof Refused ? error.message : `This device could not do it: ${error.message ?? error}`;
    postMessage({ kind: "failed", id, said, why: error.kind ?? "" });
  }
};
