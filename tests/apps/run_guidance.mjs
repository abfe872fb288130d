// A picture with guidance, two text encoders and a stream that stays empty, of components that are made up here:
// node run_guidance.mjs CORE GIVEN; prints what the decoder got, and the student's inputs of the first step.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [core, given] = process.argv.slice(2);
const { Bundle, Pipeline, PromptReader } = await import(pathToFileURL(core).href);
const { manifest, cases, velocities, prompt, negative } = JSON.parse(readFileSync(given, "utf8"));
const bundle = new Bundle(manifest, cases, "onnx:web");
const tokenizer = { encode: (text) => ({ ids: text.split(" ").map((word) => word.length) }) };
const readers = bundle.readers.map((rule) => ({ rule, reader: new PromptReader(rule, tokenizer) }));
const calls = { student: [], decoder: [], first: 0, second: 0 };

async function run(role, inputs) {
  if (role === "student") {
    calls.student.push(inputs);
    return { velocity: { data: Float32Array.from(velocities[(calls.student.length - 1) % velocities.length]) } };
  }
  if (role === "decoder") {
    calls.decoder.push(inputs.latent);
    return { picture: { data: new Float32Array(3) } };
  }
  calls[role]++;
  const { length, stream } = bundle.readers.find((rule) => rule.encoder === role);
  const sum = inputs.tokens.data.reduce((a, b) => a + b, 0);
  const embeddings = { shape: [1, length, 2], data: new Float32Array(2 * length).fill(sum) };
  return { [stream]: embeddings, [`${stream}_pooled`]: { shape: [1, 1], data: Float32Array.of(-sum) } };
}

const pipeline = new Pipeline(bundle, readers, run);
await pipeline.draw({ prompt, seed: 5n, negative, scale: 1.5 });
await pipeline.draw({ prompt, seed: 6n, negative, scale: 1.5 });
const plain = (inputs) => Object.fromEntries(
  Object.entries(inputs).map(([name, { shape, data }]) => [name, { shape, data: [...data] }]));
console.log(JSON.stringify({
  latent: [...calls.decoder[0].data], inputs: plain(calls.student[0]), encoded: [calls.first, calls.second],
}));
