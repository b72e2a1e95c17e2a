/**
 * The random numbers of numpy's `default_rng(seeds)`, bit for bit: PCG64 (O'Neill 2014,
 * https://www.pcg-random.org/paper.html), seeded by numpy's SeedSequence. So a seed draws the same tokens as in Python.
 */

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
const POOL = 4;

export class Random {
  /** @param {readonly (number | bigint)[]} seeds whole numbers from 0 up */
  constructor(seeds) {
    const words = generated(pooled(seeds.flatMap(words32)), 8);
    const [a, b, c, d] = [0, 2, 4, 6].map((at) => BigInt(words[at]) | (BigInt(words[at + 1]) << 32n));
    this.increment = ((((c << 64n) | d) << 1n) | 1n) & MASK_128;
    this.state = 0n;
    this.step();
    this.state = (this.state + ((a << 64n) | b)) & MASK_128;
    this.step();
  }

  step() {
    this.state = (this.state * MULTIPLIER + this.increment) & MASK_128;
  }

  /** A float64 in [0, 1), as numpy's `random()`. */
  random() {
    this.step();
    const mixed = (this.state >> 64n) ^ (this.state & MASK_64);
    const turn = this.state >> 122n;
    const bits = ((mixed >> turn) | (mixed << (64n - turn))) & MASK_64;
    return Number(bits >> 11n) / 2 ** 53;
  }
}

/**
 * A number's 32-bit words, the lowest first.
 * @param {number | bigint} seed
 */
function words32(seed) {
  const words = [];
  for (let rest = BigInt(seed); rest > 0n; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  return words.length ? words : [0];
}

/**
 * SeedSequence's mixing of any number of words into its pool.
 * @param {readonly number[]} entropy
 */
function pooled(entropy) {
  let constant = 0x43b0d7e5;
  const hash = (/** @type {number} */ value) => {
    const before = value ^ constant;
    constant = Math.imul(constant, 0x931e8875);
    const mixed = Math.imul(before, constant);
    return mixed ^ (mixed >>> 16);
  };
  const mix = (/** @type {number} */ x, /** @type {number} */ y) => {
    const mixed = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return mixed ^ (mixed >>> 16);
  };
  const pool = Array.from({ length: POOL }, (_, place) => hash(entropy[place] ?? 0));
  for (let from = 0; from < POOL; from += 1) {
    for (let to = 0; to < POOL; to += 1) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of entropy.slice(POOL)) {
    for (let to = 0; to < POOL; to += 1) pool[to] = mix(pool[to], hash(word));
  }
  return pool;
}

/**
 * @param {readonly number[]} pool
 * @param {number} count of words
 */
function generated(pool, count) {
  let constant = 0x8b51f9dd;
  return Array.from({ length: count }, (_, place) => {
    const before = pool[place % POOL] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    const mixed = Math.imul(before, constant);
    return (mixed ^ (mixed >>> 16)) >>> 0;
  });
}

/** A seed of 64 random bits. */
export function randomSeed() {
  const [low, high] = crypto.getRandomValues(new Uint32Array(2));
  return BigInt(low) | (BigInt(high) << 32n);
}
