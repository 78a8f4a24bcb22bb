// Small shared controls.

import { html, useEffect, useLayoutEffect, useRef, useState } from "/vendor/preact.js";
import * as format from "./format.js";

/** A number field: Enter or leaving it commits, Escape reverts, arrows go to the row above or below. */
export function NumberField({ label, shown, exact, onCommit, disabled, kind, placeholder, title, empty = false }) {
  const [draft, setDraft] = useState(null);
  const input = useRef();
  const skip = useRef(false);
  const commit = () => {
    if (skip.current || draft === null) return setDraft(null);
    setDraft(null);
    if (draft.trim() === (exact ?? shown)) return;
    if (empty && draft.trim() === "") return onCommit(null);
    const value = format.parse(draft);
    if (Number.isFinite(value)) onCommit(value, draft.trim());
  };
  const keys = (event) => {
    if (event.key === "Enter") {
      commit();
      event.target.select();
    } else if (event.key === "Escape") {
      skip.current = true;
      event.target.blur();
      skip.current = false;
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const next = neighbour(event.target, event.key === "ArrowDown" ? 1 : -1);
      if (next) {
        event.preventDefault();
        next.focus();
      }
    }
  };
  useLayoutEffect(() => {
    if (draft !== null && input.current.value !== draft) input.current.value = draft;
  });
  return html`<input
    ref=${input} type="text" inputmode="decimal" autocomplete="off" spellcheck=${false} class=${`number ${kind ?? ""}`}
    aria-label=${label} title=${title} disabled=${disabled} placeholder=${placeholder}
    value=${draft ?? shown} onInput=${(e) => setDraft(e.target.value)}
    onFocus=${(e) => { setDraft(exact ?? shown); e.target.value = exact ?? shown; e.target.select(); }}
    onBlur=${commit} onKeyDown=${keys} />`;
}

/** The same control in another row of its table. */
export function neighbour(element, by) {
  const [cell, row] = [element.closest("td"), element.closest("tr")];
  if (!row) return null;
  const rows = [...row.parentElement.children];
  const other = rows[rows.indexOf(row) + by];
  return other?.children[cell.cellIndex]?.querySelector("input, button") ?? null;
}

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

const PATHS = {
  undo: "M6 3 2.5 6.5 6 10M3 6.5h6a4 4 0 0 1 0 8H6",
  redo: "M10 3l3.5 3.5L10 10M13 6.5H7a4 4 0 0 0 0 8h3",
  lock: "M4.5 7V5a3.5 3.5 0 0 1 7 0v2M3.5 7h9v6.5h-9z",
  unlock: "M4.5 7V5a3.5 3.5 0 0 1 6.7-1.4M3.5 7h9v6.5h-9z",
  remove: "M4 4l8 8M12 4l-8 8",
  warning: "M8 2 1.5 13.5h13zM8 6.5v3.2M8 11.4v.6",
  error: "M8 1.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM8 4.5v4.3M8 10.9v.7",
  ok: "M3 8.5l3.2 3.2L13 4.8",
  line: "M2 8h9M8 4.5 11.5 8 8 11.5M14 3v10",
};

export function Dialog({ title, onClose, wide, children }) {
  const dialog = useRef();
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  return html`<dialog ref=${dialog} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${onClose}>
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

export function Bar({ share, colour, scale = 1 }) {
  return html`<span class="bar" aria-hidden="true"><span style=${{ width: `${Math.min(100, (100 * share) / scale)}%`, background: colour }}></span></span>`;
}

const HUES = [255, 150, 60, 310, 195, 25, 100, 350, 225, 125];
/** A colour for the n-th group; grey from the eleventh on. */
export const colour = (n) => (n < HUES.length ? `light-dark(oklch(0.74 0.115 ${HUES[n]}), oklch(0.72 0.115 ${HUES[n]}))` : "light-dark(#b3bac6, #8b94a3)");
