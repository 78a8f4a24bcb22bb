// Formatting and parsing of numbers.

const plain = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (n) => (n == null ? "–" : Math.abs(n) < 10000 ? plain.format(Math.round(n)) : compact.format(n));
export const exact = (n) => (n == null ? "unknown" : plain.format(Math.round(n)));
export const weight = (w) => (w == null ? "" : String(Number(w.toPrecision(6))));
export const percent = (s) => (s == null ? "–" : s > 0 && s < 0.00005 ? "<0.01" : (100 * s).toFixed(2));
export const epochs = (e) => {
  if (e == null) return "–";
  if (e < 0.001) return e.toExponential(0);
  return e >= 1000 ? compact.format(e) : e >= 100 ? e.toFixed(0) : e >= 10 ? e.toFixed(1) : e >= 0.1 ? e.toFixed(2) : e.toFixed(3);
};
export const hours = (h) => {
  if (h == null) return "–";
  return h >= 10000 ? compact.format(h) : h >= 1000 ? plain.format(Math.round(h)) : h >= 100 ? h.toFixed(0) : h >= 0.95 ? h.toFixed(1) : h.toFixed(2);
};
export const hz = (r) => (r == null ? "? Hz" : `${Number(r.toPrecision(3))} Hz`);

export function bytes(n) {
  if (n == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) [n, i] = [n / 1000, i + 1];
  return `${i === 0 ? n.toFixed(0) : Number(n.toPrecision(3))} ${units[i]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 48 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

/** Parse "1,200", "2.5M", "1e-3", "40 %"; NaN for anything else. */
export function parse(text) {
  const found = /^\s*([-+]?(?:\d[\d,_ ]*)?(?:\.\d*)?(?:e[-+]?\d+)?)\s*([kMGBT]?)\s*(?:%|h|×|x)?\s*$/i.exec(text);
  if (!found || !/\d/.test(found[1])) return NaN;
  const scale = { "": 1, k: 1e3, m: 1e6, g: 1e9, b: 1e9, t: 1e12 }[found[2].toLowerCase()];
  return Number(found[1].replace(/[,_ ]/g, "")) * scale;
}
