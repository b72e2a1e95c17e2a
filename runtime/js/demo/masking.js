/** A mask that is drawn over attention weights: squares of queries by keys. */

import { byId, element, missing, say, settled } from "./dom.js";

/** Who sees whom: query q, key k, of length n. */
const PRESETS = /** @type {Record<string, (q: number, k: number, n: number) => boolean>} */ ({
  Everything: () => true,
  Causal: (q, k) => k <= q,
  Window: (q, k) => Math.abs(q - k) <= 1,
  Padding: (_q, k, n) => k < n - 2,
  "A row without keys": (q, _k, n) => q !== Math.floor(n / 2),
});

/**
 * @param {import("./client.js").Client} client
 * @param {{ url: string, layers: number, heads: number } | undefined} chosen the package
 * @param {() => void} opened
 */
export async function start(client, chosen, opened) {
  const [text, picture, note] = [byId("masking-text"), byId("masking-picture"), byId("masking-note")];
  const [layer, head] = [slider("masking-layer", chosen?.layers ?? 1), slider("masking-head", chosen?.heads ?? 1)];
  if (!chosen) {
    for (const field of [text, layer, head]) field.disabled = true;
    const command = "isoformer export -m all-MiniLM-L6-v2 attention -o output_attentions=true \\\n  -o mask_rank=3 -o position_rule=index\nisoformer serve-demo attention";
    picture.replaceChildren(missing("No package here returns its attention weights and takes a mask of queries by keys.", command));
    return;
  }
  /** @type {{ tokens: string[], weights: Float32Array[] } | undefined} */
  let found;
  /** @type {boolean[] | null} null before the first answer says how many tokens there are */
  let visible = null;
  const grid = new Grid(picture, (drawn) => {
    visible = drawn;
    compute();
  });
  const show = () => {
    if (!found) return;
    const size = found.tokens.length ** 2;
    const place = head.valueAsNumber - 1;
    grid.show(found.weights[layer.valueAsNumber - 1].subarray(place * size, (place + 1) * size));
    say(note, grid.summary());
  };
  const answer = async () => {
    try {
      const answered = await client.call("attention", { url: chosen.url, text: text.value, visible });
      const other = answered.tokens.join("\n") !== found?.tokens.join("\n");
      found = answered;
      if (other) {
        visible = null;
        grid.build(answered.tokens);
      }
      show();
    } catch (error) {
      say(note, /** @type {Error} */ (error).message, { wrong: true });
    }
  };
  const compute = settled(answer, 30);
  for (const [name, rule] of Object.entries(PRESETS)) {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => grid.draw(rule));
    byId("masking-presets").append(button);
  }
  text.addEventListener("input", () => {
    visible = null;
    compute();
  });
  for (const field of [layer, head]) field.addEventListener("input", show);
  try {
    await client.call("open", { url: chosen.url });
    opened();
    await answer();
  } catch (error) {
    say(note, /** @type {Error} */ (error).message, { wrong: true });
  }
}

/**
 * A slider from 1 to `most` with its value beside its name.
 * @param {string} id
 * @param {number} most
 */
function slider(id, most) {
  const [field, said] = [byId(id), byId(`${id}-said`)];
  field.max = String(most);
  const tell = () => (said.textContent = `${field.value} of ${most}`);
  field.addEventListener("input", tell);
  tell();
  return field;
}

/** The squares; drawn on by pointer or keyboard. */
class Grid {
  /**
   * @param {HTMLElement} place
   * @param {(visible: boolean[]) => void} changed
   */
  constructor(place, changed) {
    this.place = place;
    this.changed = changed;
    /** @type {string[]} */
    this.tokens = [];
    /** @type {boolean[]} */
    this.visible = [];
    /** @type {HTMLElement[]} */
    this.squares = [];
    /** @type {HTMLElement[]} */
    this.sums = [];
    this.at = 0; // the square that the keyboard is on
    /** @type {boolean | null} what the pointer draws while it is down */
    this.brush = null;
    place.addEventListener("pointerdown", (event) => this.down(event));
    place.addEventListener("pointermove", (event) => this.move(event));
    place.addEventListener("keydown", (event) => this.key(event));
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (this.brush = null));
  }

  /** @param {string[]} tokens */
  build(tokens) {
    this.tokens = tokens;
    this.visible = Array(tokens.length ** 2).fill(true);
    this.at = 0;
    this.squares = this.visible.map((_, place) => element("div", { class: "square", role: "gridcell", "data-place": place, tabindex: place ? -1 : 0 }));
    this.sums = tokens.map(() => element("div", { class: "sum", role: "gridcell" }));
    const names = tokens.map((token) => element("div", { role: "columnheader", title: token }, element("span", {}, token)));
    const top = element("div", { role: "row" }, element("div", { class: "corner", role: "columnheader" }, "asks"), ...names, element("div", { role: "columnheader", class: "sum" }, "sum"));
    const rows = tokens.map((token, row) => {
      const squares = this.squares.slice(row * tokens.length, (row + 1) * tokens.length);
      return element("div", { role: "row" }, element("div", { role: "rowheader", title: token }, token), ...squares, this.sums[row]);
    });
    const about = { class: "grid", role: "grid", "aria-label": "Attention weights; space hides a square or shows it", style: `--columns: ${tokens.length}` };
    this.place.replaceChildren(element("div", about, top, ...rows));
  }

  /** @param {Float32Array} weights of this layer and head, (L, L) */
  show(weights) {
    const length = this.tokens.length;
    this.squares.forEach((square, place) => {
      const [query, key] = [this.tokens[Math.floor(place / length)], this.tokens[place % length]];
      const weight = weights[place];
      square.style.setProperty("--v", Math.min(1, weight).toFixed(4));
      square.textContent = this.visible[place] ? weight.toFixed(2).replace(/^0/, "") : "";
      square.classList.toggle("hidden", !this.visible[place]);
      square.setAttribute("aria-label", `${query} to ${key}: ${this.visible[place] ? weight.toFixed(2) : "hidden"}`);
    });
    this.sums.forEach((sum, row) => {
      const total = weights.subarray(row * length, (row + 1) * length).reduce((all, weight) => all + weight, 0);
      const nothing = total === 0;
      sum.classList.toggle("nothing", nothing);
      sum.textContent = nothing ? "0" : total.toFixed(2);
      sum.setAttribute("aria-label", nothing ? "sum exactly 0: no key is left" : `sum ${total.toFixed(2)}`);
    });
  }

  /** A line for people. */
  summary() {
    const length = this.tokens.length;
    const rows = this.tokens.filter((_, row) => !this.visible.slice(row * length, (row + 1) * length).includes(true));
    if (rows.length === 1) return `“${rows[0]}” has no key left: its weights are exactly 0, not NaN and not the mean of all.`;
    if (rows.length) return `${rows.length} tokens have no key left: their weights are exactly 0, not NaN and not the mean of all.`;
    const hidden = this.visible.filter((seen) => !seen).length;
    return hidden ? `${hidden} of ${length ** 2} squares are hidden; each row still sums to 1.` : "Nothing is hidden; each row sums to 1.";
  }

  /** @param {(q: number, k: number, n: number) => boolean} rule */
  draw(rule) {
    const length = this.tokens.length;
    this.visible = this.visible.map((_, place) => rule(Math.floor(place / length), place % length, length));
    this.changed([...this.visible]);
  }

  /** @param {number} place @param {boolean} seen */
  set(place, seen) {
    if (this.visible[place] === seen) return;
    this.visible[place] = seen;
    this.squares[place].classList.toggle("hidden", !seen);
    if (!seen) this.squares[place].textContent = "";
    this.changed([...this.visible]);
  }

  /** @param {Element | null} target @returns {number | null} */
  placeOf(target) {
    const square = target?.closest?.("[data-place]");
    return square ? Number(/** @type {HTMLElement} */ (square).dataset.place) : null;
  }

  /** @param {PointerEvent} event */
  down(event) {
    const place = this.placeOf(/** @type {Element} */ (event.target));
    if (place === null || event.button !== 0) return;
    event.preventDefault();
    /** @type {Element} */ (event.target).releasePointerCapture?.(event.pointerId); // a finger is captured by its first square
    this.brush = !this.visible[place];
    this.set(place, this.brush);
    this.focus(place);
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (this.brush === null) return;
    const place = this.placeOf(document.elementFromPoint(event.clientX, event.clientY));
    if (place !== null) this.set(place, this.brush);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (this.placeOf(/** @type {Element} */ (event.target)) === null) return;
    const length = this.tokens.length;
    const [row, column] = [Math.floor(this.at / length), this.at % length];
    /** @type {Record<string, number>} */
    const to = {
      ArrowLeft: row * length + Math.max(0, column - 1),
      ArrowRight: row * length + Math.min(length - 1, column + 1),
      ArrowUp: Math.max(0, row - 1) * length + column,
      ArrowDown: Math.min(length - 1, row + 1) * length + column,
      Home: row * length,
      End: row * length + length - 1,
    };
    if (event.key === " " || event.key === "Enter") this.set(this.at, !this.visible[this.at]);
    else if (event.key in to) this.focus(to[event.key]);
    else return;
    event.preventDefault();
  }

  /** @param {number} place */
  focus(place) {
    this.squares[this.at].tabIndex = -1;
    this.at = place;
    this.squares[place].tabIndex = 0;
    this.squares[place].focus();
  }
}
