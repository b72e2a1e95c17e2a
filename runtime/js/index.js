/** Run isoformer packages in Node and in browsers. */

export { defaultEngine, nodeEngine, webEngine } from "./src/engine.js";
export { InputError, IsoformerError, PackageError, ProviderError } from "./src/errors.js";
export { Package, load } from "./src/package.js";
export { Graphs, Session } from "./src/session.js";
export { tensor } from "./src/tensors.js";
