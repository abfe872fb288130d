// The page's own core with onnxruntime-web in Node.js: node run_conformance.mjs SITE CASES; a JSON line for each case.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [site, casesFile] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(join(site, name)).href);
const bytes = (name) => new Uint8Array(readFileSync(join(site, name)));
const json = (name) => JSON.parse(readFileSync(name, "utf8"));

const { Bundle, Pipeline, PromptReader, conformance, readSafetensors } = await load("core.mjs");
const { Tokenizer } = await load("lib/tokenizers.min.mjs");
const ort = await load("lib/ort.wasm.min.mjs");
ort.env.wasm.numThreads = 1;
const bundle = new Bundle(json(join(site, "bundle/manifest.json")), json(casesFile), "onnx:web");
const sessions = {};
for (const [role, part] of Object.entries(bundle.parts)) {
  sessions[role] = await ort.InferenceSession.create(bytes(`bundle/${part.path}`));
}

async function run(role, inputs) {
  const feeds = {};
  for (const name of sessions[role].inputNames) {
    const { shape, data } = inputs[name];
    feeds[name] = new ort.Tensor(data instanceof Int32Array ? "int32" : "float32", data, shape);
  }
  const outputs = await sessions[role].run(feeds);
  return Object.fromEntries(Object.entries(outputs).map(([name, { dims, data }]) => [name, { shape: dims, data }]));
}

const readers = bundle.readers.map((rule) => (
  { rule, reader: new PromptReader(rule, new Tokenizer(json(join(site, "bundle", rule.file)), {})) }));
const arrays = readSafetensors(bytes(`bundle/${bundle.cases.vectors}`));
for await (const line of conformance(new Pipeline(bundle, readers, run), arrays)) console.log(JSON.stringify(line));
