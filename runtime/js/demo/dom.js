/** Small helpers for the page's elements. */

/**
 * The element of that id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * A new element with attributes and children; `class` and `style` are attributes like any other.
 * @param {string} name
 * @param {Record<string, string | number>} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/**
 * Writes a line below a demonstration.
 * @param {HTMLElement} note
 * @param {string} text
 * @param {{ wrong?: boolean, done?: number | null }} [options] done: a bar filled so far, from 0 to 1
 */
export function say(note, text, { wrong = false, done = null } = {}) {
  note.classList.toggle("wrong", wrong);
  note.replaceChildren(text);
  if (done === null) return;
  const bar = element("span", { class: "bar", style: `--done: ${done}; display: block`, "aria-hidden": "true" }, element("i"));
  note.append(bar);
}

/**
 * Stands where a package is missing: how to get one.
 * @param {string} what
 * @param {string} command
 */
export function missing(what, command) {
  return element("div", { class: "empty" }, element("p", {}, what), element("pre", {}, command));
}

/**
 * Calls `work` when nothing has been asked for in so many milliseconds; one at a time, and the last one always.
 * @param {() => Promise<void>} work
 * @param {number} milliseconds
 */
export function settled(work, milliseconds) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let busy = false;
  let again = false;
  const go = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      await work();
    } finally {
      busy = false;
      if (again) {
        again = false;
        await go();
      }
    }
  };
  return () => {
    clearTimeout(timer);
    timer = setTimeout(go, milliseconds);
  };
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}
