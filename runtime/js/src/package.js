/** Packages: one manifest, every file under its digest, which is checked when the file is opened. */

import { PackageError } from "./errors.js";
import { filesAt } from "./files.js";
import { externalFiles, readTensor } from "./onnx-file.js";

/**
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./files.js").Progress} Progress
 * @typedef {import("./tensors.js").Dtype} Dtype
 * @typedef {import("./tensors.js").Tensor} Tensor
 */

export const MANIFEST = "isoformer.json";
export const MODEL = "model"; // the graph of a package that has one alone
const WEIGHTS = "model.onnx_data"; // where a graph's weights stand, if not in the graph's own file
const VARIANTS = "variants";
const SCHEMA = 1;
const REQUIRED = ["files", "name", "task"];
const REQUIRED_OF_GRAPH = ["golden", "precision", "signature"];

/**
 * One input or output, as the manifest's signature states it.
 * @typedef {{
 *   name: string, dtype: Dtype, axes: (string | number)[], kind: string, low: number, high: number | null,
 *   pad: number | null, default: number | null, along: string | null,
 * }} TensorSpec
 *
 * Inputs and outputs in the graph's order. axes: named ones to their [least, most or null]; sums: to the axes whose
 * sizes add up to theirs, one may stand there several times.
 * @typedef {{
 *   inputs: TensorSpec[], outputs: TensorSpec[], axes: Record<string, [number, number | null]>,
 *   sums: Record<string, string[]>,
 * }} Signature
 *
 * Another graph of the same model. cache: "shared" when it writes its cache in place. padded: for batches with padding.
 * @typedef {{
 *   path: string, provider: string, precision: string, cache: string, padded?: boolean, reproducible?: boolean,
 *   cache_dtype?: string,
 * }} Variant
 */

/**
 * Whether a variant keeps keys and values in 8 bits, which Python alone does.
 * @param {Variant} variant
 */
export function isCacheInt8(variant) {
  return variant.cache_dtype === "int8";
}

/**
 * Whether a variant is made for the provider. WebGPU has OpenVINO's in float32, of standard operators without Attention.
 * @param {Variant} variant
 * @param {string} provider
 */
export function runsOn(variant, provider) {
  if (provider === "webgpu") return variant.provider === "openvino" && variant.precision === "float32" && !variant.padded;
  return variant.provider === provider;
}

/** A package whose manifest has been read, or one graph of it. */
export class Package {
  /**
   * @param {Files} files
   * @param {Record<string, any>} manifest of the whole package, with a graph's own records above
   * @param {{ graph?: string, digests?: boolean, parts?: Record<string, Package> }} [options]
   */
  constructor(files, manifest, { graph = MODEL, digests = true, parts = {} } = {}) {
    this.files = files;
    this.manifest = manifest;
    this.graph = graph;
    this.parts = parts;
    this.digests = digests;
    this.signature = isEmpty(parts) ? readSignature(files.name, manifest.signature) : NO_SIGNATURE;
  }

  /** What errors call the package. */
  get path() {
    return this.files.name;
  }

  /**
   * Every graph by its name.
   * @returns {Record<string, Package>}
   */
  get graphs() {
    return isEmpty(this.parts) ? { [this.graph]: this } : this.parts;
  }

  /**
   * The task and its settings, {} for a package that has none.
   * @returns {Record<string, any>}
   */
  get task() {
    return this.manifest.task ?? {};
  }

  /**
   * Other graphs of the same model by name, <provider>-<precision>.
   * @returns {Record<string, Variant & Record<string, any>>}
   */
  get variants() {
    return this.manifest.variants ?? {};
  }

  /**
   * One of them; PackageError with those that there are.
   * @param {string} name
   */
  variant(name) {
    if (!Object.hasOwn(this.variants, name)) {
      throw new PackageError(`${this.path} has no variant ${name}; it has ${Object.keys(this.variants).join(", ") || "none"}`);
    }
    return this.variants[name];
  }

  /**
   * The variant of a precision for a provider, null for the canonical graph.
   * @param {string} provider
   * @param {string | null} [precision] null is the one that the package was exported for
   */
  fastest(provider, precision = null) {
    if (provider === "webgpu") return this.forWebGpu(precision);
    const wanted = precision ?? this.manifest.preferred ?? this.manifest.precision;
    if (Object.hasOwn(this.variants, `${provider}-${wanted}`)) return `${provider}-${wanted}`;
    if (precision !== null) this.refusePrecision(provider, precision);
    return null;
  }

  /**
   * The float32 graph whose attention is taken apart, which WebGPU runs as well as OpenVINO, else the canonical one.
   * @param {string | null} precision
   */
  forWebGpu(precision) {
    const [name = null] = Object.keys(this.variants).filter((one) => runsOn(this.variants[one], "webgpu"));
    if (precision !== null && precision !== (name ? "float32" : this.manifest.precision)) this.refusePrecision("webgpu", precision);
    return name;
  }

  /**
   * Throws PackageError unless a graph of the package has that precision for the provider.
   * @param {string} provider
   * @param {string} precision
   */
  refusePrecision(provider, precision) {
    const there = new Set(Object.values(this.graphs).flatMap((part) => part.precisions(provider)));
    if (there.has(precision)) return;
    const has = [...there].join(", ");
    throw new PackageError(`${this.path} has no ${precision} for ${provider}, but ${has}; export it again with --precision`);
  }

  /**
   * Those of the graph for a provider, the canonical one's first.
   * @param {string} provider
   * @returns {string[]}
   */
  precisions(provider) {
    const others = Object.values(this.variants).filter((variant) => runsOn(variant, provider));
    return [...new Set([this.manifest.precision, ...others.map((variant) => variant.precision)])];
  }

  /**
   * Whether the package has such a file.
   * @param {string} file
   */
  has(file) {
    return Object.hasOwn(this.manifest.files, file);
  }

  /**
   * A file of the package, whole and checked. Throws PackageError for one that is not listed, missing or altered.
   * @param {string} file
   * @param {Progress} [progress]
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async read(file, progress) {
    this.refuseUnlisted(file);
    const bytes = await this.files.read(file, progress);
    await this.check(file, bytes);
    return bytes;
  }

  /**
   * A file of the package as JSON data.
   * @param {string} file
   * @returns {Promise<any>}
   */
  async readJson(file) {
    return parsed(`${this.path}: ${file}`, await this.read(file));
  }

  /**
   * Throws PackageError unless the file is the one that was exported.
   * @param {string} file
   * @param {Uint8Array<ArrayBuffer> | null} [bytes] of it, if they have been read
   */
  async check(file, bytes = null) {
    this.refuseUnlisted(file);
    if (!this.digests) return;
    if ((await this.files.digest(file, bytes)) !== this.manifest.files[file]) {
      throw new PackageError(`${this.path} is broken: ${file} is not the file that was exported (SHA-256 differs)`);
    }
  }

  /** @param {string} file */
  refuseUnlisted(file) {
    if (!this.has(file)) throw new PackageError(`${this.path} is broken: ${MANIFEST} does not list ${file}`);
  }

  /**
   * The graph's file, or a variant's.
   * @param {string | null} variant
   */
  modelFile(variant) {
    return variant === null ? `${this.graph}.onnx` : this.variant(variant).path;
  }

  /**
   * The files with the weights of a graph: as the graph calls each, and where it is in the package.
   * @param {string} model the graph's file
   * @param {Uint8Array} bytes of the graph
   * @returns {{ location: string, file: string }[]}
   */
  weights(model, bytes) {
    const folder = model.split("/").slice(0, -1);
    // A variant may read the weights of the package's own folder, which is not the one that it stands in.
    const shares = folder[0] === VARIANTS && this.has(WEIGHTS) && !this.has([...folder, WEIGHTS].join("/"));
    return externalFiles(bytes, `${this.path}: ${model}`).map((location) => {
      const file = inside(this.path, [...(shares ? [] : folder), location].join("/"));
      if (this.has(file) && (!shares || file === WEIGHTS)) return { location, file };
      throw new PackageError(`${this.path}: ${model} refers to '${location}', which ${MANIFEST} does not list`);
    });
  }

  /**
   * A test data set in ONNX's convention: arrays by name.
   * @param {string} folder
   * @param {"input" | "output"} kind
   * @returns {Promise<Record<string, Tensor>>}
   */
  async vectors(folder, kind) {
    const pattern = new RegExp(`^${kind}_\\d+\\.pb$`);
    const files = Object.keys(this.manifest.files).filter(
      (file) => file.startsWith(`${folder}/`) && pattern.test(file.slice(folder.length + 1)),
    );
    /** @type {Record<string, Tensor>} */
    const found = {};
    for (const file of files) {
      const { name, ...array } = readTensor(await this.read(file), `${this.path}: ${file}`);
      found[name] = array;
    }
    return found;
  }
}

/** @type {Signature} */
const NO_SIGNATURE = { inputs: [], outputs: [], axes: {}, sums: {} };

/**
 * Reads a package's manifest. Its files are read, and held to their SHA-256, when they are needed.
 * @param {string | URL | Files} place a folder (Node), an address, or an object that reads files
 * @param {{ digests?: boolean }} [options] digests: false leaves the SHA-256 unchecked, where a page cannot compute it
 * @returns {Promise<Package>}
 * Throws PackageError for what is no package, or one of a later schema.
 */
export async function load(place, { digests = true } = {}) {
  const files = typeof place === "object" && "read" in place ? place : await filesAt(place);
  const manifest = parsed(`${files.name}/${MANIFEST}`, await files.read(MANIFEST));
  checkManifest(files.name, manifest);
  if (!manifest.graphs) return new Package(files, manifest, { digests });
  /** @type {Record<string, Package>} */
  const parts = {};
  for (const [graph, records] of Object.entries(manifest.graphs)) {
    parts[graph] = new Package(files, { ...manifest, graphs: undefined, .../** @type {{}} */ (records) }, { graph, digests });
  }
  return new Package(files, manifest, { digests, parts });
}

/**
 * @param {string} name
 * @param {any} manifest
 */
function checkManifest(name, manifest) {
  const file = `${name}/${MANIFEST}`;
  if (!isObject(manifest) || !Number.isInteger(manifest.schema)) {
    throw new PackageError(`${file} is not a manifest: it has no schema number`);
  }
  if (manifest.schema !== SCHEMA) {
    throw new PackageError(`${file} has schema ${manifest.schema}; this isoformer reads ${SCHEMA}: install its version`);
  }
  const graphs = manifest.graphs ?? { [MODEL]: manifest };
  if (!isObject(graphs) || isEmpty(graphs) || !Object.values(graphs).every(isObject)) {
    throw new PackageError(`${file}: \`graphs\` is not an object of graphs and their records`);
  }
  const lacking = REQUIRED.filter((key) => !(key in manifest));
  for (const [graph, records] of Object.entries(graphs)) {
    const where = records === manifest ? "" : `${graph}.`;
    lacking.push(...REQUIRED_OF_GRAPH.filter((key) => !(key in records)).map((key) => where + key));
  }
  if (lacking.length) throw new PackageError(`${file} lacks ${lacking.join(", ")}`);
  if (!isObject(manifest.files)) throw new PackageError(`${file}: \`files\` is not an object of names and digests`);
  for (const listed of Object.keys(manifest.files)) inside(name, listed);
  for (const graph of Object.keys(graphs)) {
    if (!Object.hasOwn(manifest.files, `${graph}.onnx`)) {
      throw new PackageError(`${name} is broken: ${MANIFEST} does not list ${graph}.onnx`);
    }
  }
}

/**
 * @param {string} name
 * @param {any} data
 * @returns {Signature}
 */
function readSignature(name, data) {
  try {
    /** @type {Signature} */
    const signature = { inputs: data.inputs.map(readSpec), outputs: data.outputs.map(readSpec), axes: {}, sums: {} };
    for (const [axis, said] of Object.entries(/** @type {Record<string, any>} */ (data.axes))) {
      signature.axes[axis] = [said.min, said.max];
      if (said.sum_of?.length) signature.sums[axis] = Array(said.times ?? 1).fill(said.sum_of).flat();
    }
    return signature;
  } catch (error) {
    throw new PackageError(`${name}/${MANIFEST}: the signature cannot be read (${/** @type {Error} */ (error).message})`);
  }
}

/**
 * @param {any} said
 * @returns {TensorSpec}
 */
function readSpec(said) {
  return { kind: "value", low: 0, high: null, pad: null, default: null, along: null, ...said };
}

/**
 * The name, without steps, if it leads to a place in the package; else PackageError.
 * @param {string} path
 * @param {string} name
 */
function inside(path, name) {
  const parts = name.split("/").filter((part) => part && part !== ".");
  if (name.startsWith("/") || name.includes("\\") || name.includes("\0") || /^[a-z]:/i.test(name) || parts.includes("..")) {
    throw new PackageError(`${path}: '${name}' leads out of the package; it is refused`);
  }
  return parts.join("/");
}

/**
 * @param {string} file
 * @param {Uint8Array} bytes
 */
function parsed(file, bytes) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new PackageError(`${file} cannot be read as JSON: ${/** @type {Error} */ (error).message}`);
  }
}

/** @param {unknown} value @returns {value is Record<string, any>} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {object} value */
function isEmpty(value) {
  return Object.keys(value).length === 0;
}
