/** Errors for people: each message is one line that says what is wrong and what to do. */
/** Any error that the user can mend. */
export declare class IsoformerError extends Error {
    /** @param {string} message @param {ErrorOptions} [options] */
    constructor(message: string, options?: ErrorOptions);
}
/** The package is missing, incomplete, altered or of a later schema. */
export declare class PackageError extends IsoformerError {
}
/** The execution provider that was asked for does not run the graph here. */
export declare class ProviderError extends IsoformerError {
}
/** An input has a wrong name, dtype, rank, size or value. */
export declare class InputError extends IsoformerError {
}
/**
 * The first line of an error's message, without ONNX Runtime's own prefix.
 * @param {unknown} error
 * @returns {string}
 */
export declare function firstLine(error: unknown): string;
