/** Errors for people: each message is one line that says what is wrong and what to do. */

/** Any error that the user can mend. */
export class IsoformerError extends Error {
  /** @param {string} message @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The package is missing, incomplete, altered or of a later schema. */
export class PackageError extends IsoformerError {}

/** The execution provider that was asked for does not run the graph here. */
export class ProviderError extends IsoformerError {}

/** An input has a wrong name, dtype, rank, size or value. */
export class InputError extends IsoformerError {}

/**
 * The first line of an error's message, without ONNX Runtime's own prefix.
 * @param {unknown} error
 * @returns {string}
 */
export function firstLine(error) {
  const text = String(error instanceof Error ? error.message : error).trim();
  return (text.split("\n")[0] || "unknown error").replace(/^\[ONNXRuntimeError\] : /, "");
}
