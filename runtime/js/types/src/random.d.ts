/**
 * The random numbers of numpy's `default_rng(seeds)`, bit for bit: PCG64 (O'Neill 2014,
 * https://www.pcg-random.org/paper.html), seeded by numpy's SeedSequence. So a seed draws the same tokens as in Python.
 */
export declare class Random {
    increment: bigint;
    state: bigint;
    /** @param {readonly (number | bigint)[]} seeds whole numbers from 0 up */
    constructor(seeds: readonly (number | bigint)[]);
    step(): void;
    /** A float64 in [0, 1), as numpy's `random()`. */
    random(): number;
}
/** A seed of 64 random bits. */
export declare function randomSeed(): bigint;
