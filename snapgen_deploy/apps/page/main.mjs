// The page: its form, what it says while it works, and the record of its pictures. worker.mjs draws.

const $ = (id) => document.getElementById(id);
const RECORD = "snapgen record", KEPT = 500; // lines
const THREADS = 4; // at most, unless `?threads=N` says otherwise: phones have no more quick cores
const base = new URL(".", location.href).href, asked = new URLSearchParams(location.search);
const worker = new Worker(new URL("worker.mjs", base), { type: "module" });
const waiting = new Map(); // id of a task -> how it ends
let number = 0, about = null, last = null, busy = true, tenth = -1;

/** Has the worker do something; resolves with what it returns. */
function ask(task, given = {}) {
  const id = ++number;
  worker.postMessage({ task, id, ...given });
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

worker.onmessage = ({ data }) => {
  if (data.kind === "loading") loading(data);
  else if (data.kind === "step") say(`Drawing: ${data.what}`, data.done / data.total);
  else if (data.kind === "line") addLine(data);
  else {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.kind === "done") resolve(data);
    else reject(Object.assign(new Error(data.said), { why: data.why }));
  }
};
worker.onerror = (event) => fail(new Error(event.message || "The page's worker could not start."));

/** The bar moves with every part; the text, which a screen reader reads out, at each tenth. */
function loading({ loaded, total }) {
  $("progress").value = loaded / total;
  if (Math.floor((10 * loaded) / total) === tenth) return;
  tenth = Math.floor((10 * loaded) / total);
  say(`Loading the model: ${megabytes(loaded)} of ${megabytes(total)}`);
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function say(text, share = null) {
  $("status").textContent = text;
  if (share !== null) $("progress").value = share;
}

function fail(error) {
  $("error").textContent = error.message;
  say("", 0);
}

function ready(now) {
  busy = !now;
  for (const id of ["draw", "test"]) $(id).disabled = !now;
  $("cancel").disabled = now || about === null;
  $("save").disabled = !now || last === null;
}

/** Keeps the page for use without a connection, and gives it the headers that threads need where the host does not. */
async function keepOffline() {
  if (!("serviceWorker" in navigator)) return null;
  try {
    const registration = await navigator.serviceWorker.register(new URL("sw.js", base), { updateViaCache: "none" });
    if (!registration.active) await settled(registration.installing ?? registration.waiting);
    if (!registration.active) return null;
    if (!crossOriginIsolated && !sessionStorage.getItem("isolated once")) {
      sessionStorage.setItem("isolated once", "yes");
      location.reload();
      return new Promise(() => {});
    }
    return registration;
  } catch {
    return null; // a private window may refuse; the page draws all the same
  }
}

/** Resolves once a service worker is active, or was given up. */
function settled(worker) {
  return new Promise((resolve) => worker.addEventListener("statechange", () => {
    if (["activated", "redundant"].includes(worker.state)) resolve();
  }));
}

/** Whether WebGPU can be used, and half precision in it. `?runtime=wasm` says no. */
async function findGpu() {
  if (asked.get("runtime") === "wasm" || !navigator.gpu) return { webgpu: false, half: false };
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return { webgpu: adapter !== null, half: adapter?.features.has("shader-f16") ?? false };
}

async function start() {
  const kept = await keepOffline();
  const { cache } = await fetch(new URL("site.json", base)).then((answer) => answer.json());
  const threads = Number(asked.get("threads")) || THREADS;
  about = await ask("open", { base, cache: `snapgen ${base} ${cache}`, threads, ...(await findGpu()) });
  const { manifest, runtime, note } = about, how = describe(runtime);
  $("prompt").value ||= manifest.prompts[0] ?? "";
  $("steps").value = manifest.schedule.sigmas.length - 1;
  $("steps-note").textContent = `The model was trained for ${$("steps").value} steps: its pictures are right with those.`;
  if (manifest.guidance) {
    $("guidance").hidden = false;
    $("negative").value = manifest.guidance.negative_prompt;
    $("scale").value = manifest.guidance.scale;
  }
  const [height, width] = manifest.resolution;
  const facts = {
    Model: `${manifest.name}, width ${manifest.width}, ${manifest.targets[about.target].precision}`,
    Picture: `${width} × ${height} pixels`,
    Licence: manifest.checkpoint?.license ?? "not stated",
    "Runs on": how,
    Offline: kept ? "yes, once it was open with a connection" : "no: this browser keeps nothing for the page",
    ...(manifest.warnings?.length ? { Warnings: manifest.warnings.join("; ") } : {}),
    ...(manifest.trained === false ? { Untrained: "the weights are random: pictures are noise" } : {}),
    ...(note ? { Note: note } : {}),
  };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  say(`Ready, with ${how}.`, 0);
  ready(true);
  showRecord();
  if (asked.has("conformance")) {
    $("more").open = true;
    await test();
  }
}

function describe({ provider, threads }) {
  if (provider === "webgpu") return "WebGPU";
  return `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
}

function element(name, text) {
  return Object.assign(document.createElement(name), { textContent: text });
}

async function draw(event) {
  event.preventDefault();
  if (busy) return;
  $("error").textContent = "";
  const prompt = $("prompt").value.trim(), seed = BigInt($("seed").value), steps = Number($("steps").value);
  if (!prompt) return fail(new Error("Say what to draw."));
  if (seed >= 2n ** 63n) return fail(new Error("The seed must be below 9223372036854775808."));
  const guidance = about.manifest.guidance ? { negative: $("negative").value, scale: Number($("scale").value) } : {};
  ready(false);
  say("Drawing …", 0);
  $("cancel").focus();
  const line = { time: new Date().toISOString(), seed: String(seed), steps };
  try {
    const { pixels, height, width, times } = await ask("draw", { prompt, seed, steps, ...guidance });
    show(pixels, height, width, prompt);
    last = { prompt, seed };
    record({ ...line, ok: true, ms: rounded(times) });
    $("caption").textContent = `“${prompt}”, seed ${seed}, ${(times.all / 1000).toFixed(2)} s`;
    say(`Done in ${(times.all / 1000).toFixed(2)} s.`, 1);
  } catch (error) {
    record({ ...line, ok: false, why: error.why || "failed" });
    if (error.why === "cancelled") say("Cancelled. Nothing was drawn.", 0);
    else fail(error);
  }
  ready(true);
  $("draw").focus();
}

const rounded = ({ encode, steps, decode, all }) => ({
  encode: Math.round(encode), steps: steps.map(Math.round), decode: Math.round(decode), all: Math.round(all),
});

function show(pixels, height, width, prompt) {
  const canvas = $("picture");
  Object.assign(canvas, { width, height });
  canvas.classList.toggle("small", width < 256);
  canvas.setAttribute("aria-label", `Picture of: ${prompt}`);
  canvas.getContext("2d", { alpha: false }).putImageData(new ImageData(pixels, width, height), 0, 0);
  $("figure").hidden = false;
}

/** One line for a picture, kept in this browser: docs/formats.md of snapgen-deploy says what it has. */
function record(line) {
  const { manifest, runtime } = about;
  const memory = performance.memory ? { memory: { heap: performance.memory.usedJSHeapSize } } : {};
  const all = {
    app: "web", bundle: manifest.name, width: manifest.width,
    target: about.target, precision: manifest.targets[about.target].precision,
    runtime, device: navigator.userAgent, ...line, ...memory,
  };
  try {
    localStorage.setItem(RECORD, [...lines(), JSON.stringify(all)].slice(-KEPT).join("\n"));
  } catch {
    return; // a full or forbidden storage keeps no record
  }
  showRecord();
}

const lines = () => (localStorage.getItem(RECORD) ?? "").split("\n").filter(Boolean);

function showRecord() {
  const count = lines().length;
  $("export").textContent = `Save the record (${count} line${count === 1 ? "" : "s"})`;
  for (const id of ["export", "clear"]) $(id).disabled = count === 0;
}

function addLine({ line, passed, detail }) {
  const item = document.createElement("li");
  item.className = passed ? "passed" : "failed";
  item.append(element("b", passed ? "passed" : "FAILED"), ` ${line}: ${detail}`);
  $("lines").append(item);
}

async function test() {
  if (busy) return;
  $("lines").replaceChildren();
  $("error").textContent = "";
  ready(false);
  try {
    const { failed } = await ask("test");
    say(failed ? `The self-test failed: ${failed} of ${$("lines").childElementCount} lines.` : "The self-test passed.", 1);
  } catch (error) {
    fail(error);
  }
  ready(true);
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function savePicture() {
  const name = `${last.prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60) || "picture"}-${last.seed}.png`;
  $("picture").toBlob((blob) => save(blob, name), "image/png");
}

$("form").addEventListener("submit", draw);
$("cancel").addEventListener("click", () => {
  say("Cancelling …");
  worker.postMessage({ task: "cancel" });
});
$("save").addEventListener("click", savePicture);
$("test").addEventListener("click", test);
$("export").addEventListener("click", () => {
  save(new Blob([lines().join("\n"), "\n"], { type: "application/jsonl" }), "pictures.jsonl");
});
$("clear").addEventListener("click", () => {
  localStorage.removeItem(RECORD);
  showRecord();
});
start().catch(fail);
