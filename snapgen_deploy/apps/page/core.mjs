// What drawing needs besides a runtime: hashes, tokens, noise, schedule, guidance, pixels, and the cases of conformance.json.
// Nothing here touches the page or the network, so that Node.js runs it, too.

/** An error that the page shows as it is: what is wrong, and what to do. */
export class Refused extends Error {}

/** SHA-256 of bytes, in hexadecimal. */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Refuses bytes that are not those with this hash. */
export async function checkHash(name, bytes, expected) {
  const found = await sha256(bytes);
  if (found !== expected) {
    throw new Refused(`${name} is not the exported file: its SHA-256 is ${found.slice(0, 12)}…, expected ${
      String(expected).slice(0, 12)}…. Load the page again; if that does not help, its files were changed.`);
  }
}

// ---------------------------------------------------------------------------------------------------------- the bundle

/** What a page needs of a manifest and its conformance.json, checked once. */
export class Bundle {
  /** `manifest` and `cases` are parsed JSON, `key` names the target, such as `onnx:web`. */
  constructor(manifest, cases, key) {
    const target = manifest.targets[key];
    if (manifest.schema_version !== 1 || target === undefined || cases.format !== 1) {
      throw new Refused(`This page cannot read the bundle: it holds no ${key}, or has another version.`);
    }
    if (!["euler", "linear"].includes(manifest.schedule.sampler ?? "euler")) {
      throw new Refused(`This page cannot draw with the sampler ${manifest.schedule.sampler}.`);
    }
    Object.assign(this, { manifest, cases, key, target, parts: target.components });
    this.readers = cases.tokenizers;
    this.guidance = manifest.guidance ?? null;
    const [, ...shape] = this.parts.student.inputs.find((port) => port.name === "latent").shape;
    this.latent = shape; // channels, height, width
    this.absent = new Set(manifest.config.absent_streams ?? []);
    if (this.guidance !== null && this.parts.student.inputs[0].shape[0] !== 2) {
      throw new Refused("The student has not two rows for guidance.");
    }
  }

  /** Every file of the bundle that drawing needs, with its bytes and SHA-256. */
  files() {
    const found = new Map();
    for (const part of Object.values(this.parts)) {
      for (const [name, entry] of Object.entries(part.files)) found.set(name, entry);
    }
    for (const reader of this.readers) found.set(reader.file, this.manifest.files[reader.file]);
    return found;
  }

  /** Text streams of the student that no prompt gives here; a page cannot draw with them. */
  unread() {
    const read = new Set(this.readers.map((reader) => reader.stream));
    return this.manifest.config.student.text_streams
      .map((stream) => stream.name).filter((name) => !read.has(name) && !this.absent.has(name));
  }
}

/** The arrays of a .safetensors file: name -> { shape, data }. */
export function readSafetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const kinds = { F32: Float32Array, I32: Int32Array, I64: BigInt64Array };
  const arrays = new Map();
  delete header.__metadata__;
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (!(dtype in kinds)) throw new Refused(`${name} is ${dtype}, which this page does not read.`);
    arrays.set(name, { shape, data: new kinds[dtype](bytes.slice(8 + length + from, 8 + length + to).buffer) });
  }
  return arrays;
}

// -------------------------------------------------------------------------------------------------------------- tokens

/** Prompt -> tokens and mask, by the rule of a text encoder in conformance.json. */
export class PromptReader {
  /** `tokenizer` is one of @huggingface/tokenizers. It gives neither padding nor, for whole words, the unknown token. */
  constructor(rule, tokenizer) {
    Object.assign(this, { rule, tokenizer });
  }

  /** Tokens and mask, Int32Array and Float32Array of the encoder's length; refuses what `generate` refuses. */
  read(prompt) {
    const { rule } = this;
    const text = rule.template.replace("{}", () => prompt);
    if (rule.unknown === "refused" && this.#ids(text, false).includes(rule.unknown_token)) {
      const words = [...new Set(text.split(/\s+/).filter((w) => w && this.#ids(w, false).includes(rule.unknown_token)))];
      const said = `The model does not know ${words.map((w) => `“${w}”`).join(", ")}.`;
      throw Object.assign(new Refused(said), { kind: "unknown" });
    }
    const ids = this.#ids(text, rule.special_tokens);
    if (ids.length > rule.length) {
      const said = `The prompt has ${ids.length} tokens, at most ${rule.length} fit. Shorten it.`;
      throw Object.assign(new Refused(said), { kind: "long" });
    }
    const tokens = new Int32Array(rule.length).fill(rule.pad);
    const mask = new Float32Array(rule.length).fill(rule.padding_seen ? 1 : 0);
    const begin = rule.side === "left" ? rule.length - ids.length : 0;
    tokens.set(ids, begin);
    mask.fill(1, begin, begin + ids.length);
    return { tokens, mask };
  }

  #ids(text, special) {
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids.map((id) => id ?? this.rule.unknown_token);
  }
}

// --------------------------------------------------------------------------------------------------------------- noise

/** The only generator that this page makes; a bundle with torch's was exported for no app. */
export const GENERATOR = "philox4x32-10";

/** Upper 32 bits of the product of two unsigned 32-bit numbers. */
function high(a, b) {
  const [al, ah, bl, bh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = ah * bl + Math.floor((al * bl) / 0x10000);
  const other = al * bh + (middle % 0x10000);
  return (ah * bh + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000)) >>> 0;
}

/** Philox4x32-10: four 32-bit words of a counter and a key. */
export function philox([a, b, c, d], [k, m]) {
  for (let round = 0; round < 10; round++) {
    const left = high(a, 0xd2511f53), right = high(c, 0xcd9e8d57);
    [a, b, c, d] = [right ^ b ^ k, Math.imul(c, 0xcd9e8d57), left ^ d ^ m, Math.imul(a, 0xd2511f53)].map((word) => word >>> 0);
    k = (k + 0x9e3779b9) >>> 0;
    m = (m + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** `count` standard normal numbers of a seed (a BigInt), as docs/noise.md of snapgen-deploy defines them. */
export function noise(seed, count) {
  const out = new Float32Array(count), round = Math.fround;
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  for (let block = 0; 4 * block < count; block++) {
    const words = philox([block, 0, 0, 0], key).map((word) => word >>> 8);
    for (const j of [0, 2]) {
      const radius = round(Math.sqrt(-2 * round(Math.log((words[j] + 1) * 2 ** -24))));
      const turn = words[j + 1] * (2 ** -24 * 2 * Math.PI);
      out[4 * block + j] = radius * round(Math.cos(turn)); // a write beyond the end is ignored
      out[4 * block + j + 1] = radius * round(Math.sin(turn));
    }
  }
  return out;
}

// ------------------------------------------------------------------------------------------------------------ schedule

/** Steps of the sampler: noise level, the next one, and the student's features. `count`: other than the model's own. */
export function stepsOf(manifest, count = null) {
  const { sigmas, shift, time_features: features } = manifest.schedule;
  const own = sigmas.length - 1, rules = manifest.schedule.coefficients ?? [];
  if (count === null || count === own) {
    return features.values.map((row, i) => (
      { sigma: sigmas[i], next: sigmas[i + 1], features: Float32Array.from(row), coefficients: rules[i] ?? null }));
  }
  if (manifest.schedule.sampler !== "euler" || manifest.schedule.timesteps !== undefined) {
    throw new Refused(`This model draws in ${own} steps, no other number.`);
  }
  const levels = Array.from({ length: count }, (_, i) => 1 - i / count).map((s) => (shift * s) / (1 + (shift - 1) * s));
  return levels.map((sigma, i) => (
    { sigma, next: levels[i + 1] ?? 0, features: timeFeatures(sigma, features.count), coefficients: null }));
}

/** Cosines, then sines, of 1000 * sigma at falling frequencies. */
export function timeFeatures(sigma, count) {
  const half = count / 2, round = Math.fround, out = new Float32Array(count);
  for (let i = 0; i < half; i++) {
    const angle = round(round(1000 * round(sigma)) * round(Math.exp(round(round(-Math.log(10000) * i) / half))));
    out[i] = Math.cos(angle);
    out[half + i] = Math.sin(angle);
  }
  return out;
}

/** One step in single precision: of Euler's method, or with coefficients; `fresh` is new noise, where the step adds some. */
export function stepped(latent, velocity, { sigma, next, coefficients }, fresh = null) {
  const round = Math.fround, [keep, width, added] = (coefficients ?? [1, next - sigma, 0]).map(round);
  const moved = latent.map((value, i) => round(round(keep * value) + round(width * velocity[i])));
  return fresh === null ? moved : moved.map((value, i) => round(value + round(added * fresh[i])));
}

/** Classifier-free guidance of the rows [prompt, negative prompt]: negative + scale * (prompt - negative). */
export function guided(velocity, scale) {
  const half = velocity.length / 2, round = Math.fround;
  return velocity.subarray(0, half).map((value, i) => {
    const negative = velocity[half + i];
    return round(negative + round(round(scale) * round(value - negative)));
  });
}

// ------------------------------------------------------------------------------------------------------------- picture

/** A picture (3, H, W) in -1 … 1 as bytes (H, W, 4); halves are rounded to even numbers, as `generate` does. */
export function toPixels(picture, height, width) {
  const size = height * width, out = new Uint8ClampedArray(4 * size);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) {
      const value = picture[c * size + i];
      if (!Number.isFinite(value)) throw new Refused("The model returned values that are not finite on this device.");
      const scaled = Math.fround(Math.fround(Math.min(1, Math.max(-1, value)) + 1) * 127.5);
      const up = Math.round(scaled);
      out[4 * i + c] = up - scaled === 0.5 && up % 2 ? up - 1 : up;
    }
    out[4 * i + 3] = 255;
  }
  return out;
}

/** Draws pictures with components that `run(role, inputs)` calls; inputs and outputs are { name: { shape, data } }. */
export class Pipeline {
  constructor(bundle, readers, run) {
    Object.assign(this, { bundle, readers, run });
    this.negative = { prompt: null, text: null }; // the last negative prompt, encoded once
  }

  /**
   * A picture (3, H, W). `seed` is a BigInt; `begun(what, done, total)` is called before each call of a component, and an
   * AbortSignal stops between them.
   */
  async draw({ prompt, seed, steps = null, negative = null, scale = null, begun = () => {}, signal = null, text = null }) {
    const { bundle } = this, plan = stepsOf(bundle.manifest, steps), [channels, height, width] = bundle.latent;
    const total = plan.length + 2;
    const at = async (what, done) => {
      begun(what, done, total);
      await new Promise((resume) => setTimeout(resume)); // messages, such as one that cancels, come in now
      if (signal?.aborted) throw Object.assign(new Refused("Cancelled."), { kind: "cancelled" });
    };
    await at("reading the prompt", 0);
    const rows = [await this.#text(prompt, text, 0)];
    if (bundle.guidance !== null) rows.push(await this.#negativeText(negative ?? bundle.guidance.negative_prompt, text));
    const given = Object.fromEntries(Object.keys(rows[0]).map((name) => [name, stacked(rows.map((row) => row[name]))]));
    const size = channels * height * width, draws = plan.filter((step) => step.coefficients?.[2]).length;
    const drawn = noise(seed, (1 + draws) * size), start = Math.fround(bundle.manifest.schedule.start ?? 1);
    let latent = drawn.slice(0, size).map((value) => Math.fround(start * value)), used = 1;
    for (const [i, step] of plan.entries()) {
      await at(`step ${i + 1} of ${plan.length}`, i + 1);
      const row = (data, shape) => stacked(rows.map(() => ({ shape: [1, ...shape], data })));
      const now = { latent: row(latent, bundle.latent), time_features: row(step.features, [step.features.length]) };
      const { velocity } = await this.run("student", { ...now, ...given });
      const single = rows.length === 1 ? velocity.data : guided(velocity.data, scale ?? bundle.guidance.scale);
      const fresh = step.coefficients?.[2] ? drawn.subarray(used * size, ++used * size) : null;
      latent = stepped(latent, single, step, fresh);
    }
    await at("decoding", total - 1);
    const { picture } = await this.run("decoder", { latent: { shape: [1, ...bundle.latent], data: latent } });
    return picture.data;
  }

  async #negativeText(prompt, text) {
    if (this.negative.prompt !== prompt || text !== null) this.negative = { prompt, text: await this.#text(prompt, text, 1) };
    return this.negative.text;
  }

  /** The student's text inputs of one prompt, a row each; `text` has those that no encoder makes, by kind of prompt. */
  async #text(prompt, text, kind) {
    const found = {};
    for (const { rule, reader } of this.readers) {
      const { tokens, mask } = reader.read(prompt), shape = [1, rule.length];
      const out = await this.run(rule.encoder, { tokens: { shape, data: tokens }, mask: { shape, data: mask } });
      const seen = mask.slice(rule.dropped);
      Object.assign(found, out); // embeddings, and perhaps a pooled vector
      found[`${rule.stream}_mask`] = { shape: [1, seen.length], data: seen };
    }
    for (const port of this.bundle.parts.student.inputs) {
      const stream = port.name.replace(/_(mask|pooled)$/, "");
      if (this.bundle.absent.has(stream)) {
        const shape = [1, ...port.shape.slice(1)];
        found[port.name] = { shape, data: new Float32Array(shape.reduce((a, b) => a * b)) };
      }
    }
    for (const [name, rows] of Object.entries(text ?? {})) found[name] = rows[kind];
    return found;
  }
}

/** Arrays with one row each, one after the other. */
function stacked(rows) {
  if (rows.length === 1) return rows[0];
  const data = new rows[0].data.constructor(rows.reduce((count, row) => count + row.data.length, 0));
  let at = 0;
  for (const row of rows) {
    data.set(row.data, at);
    at += row.data.length;
  }
  return { shape: [rows.length, ...rows[0].shape.slice(1)], data };
}

// --------------------------------------------------------------------------------------------------------- conformance

/** ||got - expected|| / ||expected||. */
export function relativeError(got, expected) {
  if (got.length !== expected.length) return NaN;
  let difference = 0, scale = 0;
  for (let i = 0; i < got.length; i++) {
    difference += (got[i] - expected[i]) ** 2;
    scale += expected[i] ** 2;
  }
  return Math.sqrt(difference) / Math.max(Math.sqrt(scale), 1e-12);
}

/** Peak signal-to-noise ratio in dB of two pictures in -1 … 1, at most 200. */
export function psnr(got, expected) {
  let sum = 0;
  const clamp = (value) => Math.min(1, Math.max(-1, value));
  for (let i = 0; i < got.length; i++) sum += (clamp(got[i]) - clamp(expected[i])) ** 2;
  return Number.isFinite(sum) ? Math.min(200, 10 * Math.log10((4 * got.length) / Math.max(sum, 1e-300))) : NaN;
}

function close(got, expected, tolerance) {
  return got.length === expected.length && expected.every((value, i) => Math.abs(got[i] - value) <= tolerance);
}

/** A row of a case: from the test vectors, or of the schedule's features. */
function rowOf(told, arrays, steps) {
  if ("step" in told) return { shape: [1, steps[told.step].features.length], data: steps[told.step].features };
  const { shape, data } = arrays.get(told.array);
  const inner = shape.slice(told.index.length), size = inner.reduce((a, b) => a * b, 1);
  const at = told.index.reduce((sum, index, axis) => sum * shape[axis] + index, 0) * size;
  return { shape: [1, ...inner], data: data.slice(at, at + size) };
}

/** Runs the cases of conformance.json; yields { line, passed, detail } for each. `arrays` are the test vectors. */
export async function* conformance(pipeline, arrays) {
  const { bundle } = pipeline, { cases, manifest, key } = bundle, steps = stepsOf(manifest);
  for (const { rule, reader } of pipeline.readers) {
    for (const { text, tokens, mask, refused } of rule.cases) {
      let found;
      try {
        const read = reader.read(text);
        found = refused === undefined && close(read.tokens, tokens, 0) && close(read.mask, mask, 0);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        found = error.kind === refused;
      }
      const short = text.length > 40 ? `${text.slice(0, 40)}…` : text;
      const detail = `“${short}”${refused ? `, refused: ${refused}` : ""}`;
      yield { line: `tokenizer ${rule.encoder}`, passed: found, detail };
    }
  }
  for (const { seed, count, first, last, mean, deviation } of cases.noise.cases) {
    const made = noise(BigInt(seed), count), tolerance = cases.noise.tolerance;
    const average = made.reduce((a, b) => a + b, 0) / count;
    const spread = Math.sqrt(made.reduce((sum, value) => sum + (value - average) ** 2, 0) / count);
    const passed = cases.noise.generator === GENERATOR
      && close(made.subarray(0, first.length), first, tolerance) && close(made.subarray(-last.length), last, tolerance)
      && close([average, spread], [mean, deviation], tolerance);
    yield { line: "noise", passed, detail: `seed ${seed}, ${count} numbers` };
  }
  for (const [i, step] of cases.schedule.steps.entries()) {
    const { first, last } = step.time_features, made = steps[i];
    const passed = close([made.sigma, made.next], [step.sigma, step.next], cases.schedule.tolerance)
      && close(made.features.subarray(0, first.length), first, cases.schedule.tolerance)
      && close(made.features.subarray(-last.length), last, cases.schedule.tolerance);
    yield { line: "schedule", passed, detail: `step ${i + 1}, level ${step.sigma}` };
  }
  for (const { component, inputs, outputs, error } of cases.calls) {
    const given = {};
    for (const [name, rows] of Object.entries(inputs)) given[name] = stacked(rows.map((row) => rowOf(row, arrays, steps)));
    const made = await pipeline.run(component, given);
    for (const [name, rows] of Object.entries(outputs)) {
      const found = relativeError(made[name].data, stacked(rows.map((row) => rowOf(row, arrays, steps))).data);
      const detail = `relative error ${found.toExponential(1)}, at most ${error[key]}`;
      yield { line: `call ${component}`, passed: found <= error[key], detail };
    }
  }
  const { picture } = cases;
  if (picture === undefined) return;
  const text = Object.fromEntries(Object.entries(picture.text).map(
    ([name, rows]) => [name, rows.map((row) => rowOf(row, arrays, steps))]));
  const drawn = await pipeline.draw({ prompt: picture.prompt, seed: BigInt(picture.seed), text });
  const found = psnr(drawn, rowOf(picture.expected, arrays, steps).data);
  const detail = `${found.toFixed(1)} dB, at least ${picture.psnr[key]}`;
  yield { line: "picture", passed: found >= picture.psnr[key], detail };
}
