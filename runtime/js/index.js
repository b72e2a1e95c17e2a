/** Run isoformer packages in Node and in browsers. */

export { CrossDecoder, Decoder } from "./src/binding.js";
export { defaultEngine, nodeEngine, webEngine } from "./src/engine.js";
export { InputError, IsoformerError, PackageError, ProviderError } from "./src/errors.js";
export { Settings, Stats } from "./src/generation.js";
export { Package, load } from "./src/package.js";
export { Graphs, Session } from "./src/session.js";
export * as classify from "./src/tasks/classify.js";
export * as embed from "./src/tasks/embed.js";
export * as generate from "./src/tasks/generate.js";
export { tensor } from "./src/tensors.js";
export { textEncoder } from "./src/text.js";
