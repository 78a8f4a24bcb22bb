"use strict";
(() => {
  const episodes = JSON.parse(document.getElementById("data").textContent);
  const byId = new Map(episodes.map((one) => [one.id, one]));
  const PER_PAGE = 12, WORST = 6, SVG = "http://www.w3.org/2000/svg";

  // ── elements: every text from the data goes through textContent or an attribute ──
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  };
  const draw = (tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const number = (value) => {
    if (value === null) return "–";
    const text = Number(value.toPrecision(3));
    const small = text !== 0 && (Math.abs(text) < 1e-4 || Math.abs(text) >= 1e7);
    return (small ? text.toExponential() : text.toLocaleString("en", { maximumSignificantDigits: 3 })).replace("-", "−");
  };
  const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

  // ── one episode ──
  const line = (one, low, high) => {
    const last = Math.max(one.points.length - 1, 1), scale = (one.high - one.low) / 100;
    let path = "", pen = "M";
    one.points.forEach((level, i) => {
      if (level === null) { pen = "M"; return; }
      const value = one.low === one.high ? one.low : one.low + level * scale;
      const y = low === high ? 13 : 25 - (24 * (value - low)) / (high - low);
      path += `${pen}${((i / last) * 100).toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    });
    return path;
  };
  const curve = (one, other, steps, mark, named) => {
    const low = Math.min(one.low, other ? other.low : one.low), high = Math.max(one.high, other ? other.high : one.high);
    const range = one.low === one.high ? `always ${number(one.low)}` : `${number(one.low)} to ${number(one.high)}`;
    const svg = draw("svg", { viewBox: "0 0 100 26", preserveAspectRatio: "none", role: "img", "aria-label": `${one.label}: ${range}` });
    if (mark >= 0) {
      const x = (100 * mark) / Math.max(steps - 1, 1);
      svg.append(draw("path", { class: "at", d: `M${x.toFixed(1)} 0V26` }));
    }
    if (other) svg.append(draw("path", { class: "curve other", d: line(other, low, high) }));
    svg.append(draw("path", { class: "curve", d: line(one, low, high) }));
    return make("div", named.includes(one.label) ? { class: "named" } : {}, make("span", {}, one.label), make("small", {}, range), svg);
  };
  const curves = (title, list, others, steps, mark, named = []) =>
    list.length ? make("div", {}, make("p", { class: "label" }, title), make("div", { class: "curves" }, ...list.map((one, i) => curve(one, others[i], steps, mark, named)))) : null;

  const strip = (one, mark) => {
    const row = make("div", { class: "strip", title: `${one.camera} camera, by step` });
    for (const [step, width, height, jpeg, problem] of one.frames) {
      if (problem) { row.append(make("div", { class: "missing" }, `no image: ${problem}`)); continue; }
      const image = make("img", { src: `data:image/jpeg;base64,${jpeg}`, width, height, alt: `${one.camera} camera at step ${step}: ${one.text || "no instruction"}` });
      row.append(make("figure", step === mark ? { class: "at" } : {}, image, make("figcaption", {}, row.childElementCount ? `${step}` : `${one.camera} ${step}`)));
    }
    if (!one.frames.length) row.append(make("div", { class: "missing" }, "no image: no step is left"));
    return row;
  };
  const saw = (why) => {
    const unit = why.unit ? ` ${why.unit}` : "";
    const words = [];
    if (why.value !== null) words.push(`${number(why.value)}${unit}`);
    if (why.limit !== null) words.push(`${why.least ? "at least" : "limit"} ${number(why.limit)}${unit}`);
    if (why.value !== null && !why.least && why.limit > 0 && why.excess > 1) words.push(`${number(why.excess)}\u00a0×\u00a0the\u00a0limit`);
    if (why.step >= 0) words.push(`step ${why.step}`);
    if (why.detail) words.push(why.detail);
    return make("li", {}, make("b", {}, why.criterion), words.length ? ` ${words.join(" · ")}` : "");
  };
  const short = (id) => id.split("/").slice(-3).join("/");

  const card = (one, focus) => {
    const first = one.why.find((why) => why.criterion === focus) || one.why[0];
    const mark = first ? first.step : -1, named = first ? first.detail.match(/[a-z]+/g) || [] : [];
    const whys = first ? [first, ...one.why.filter((why) => why !== first)] : [];
    const title = make("p", { class: "text" }, one.text || make("span", { class: "soft" }, "no instruction"));
    if (one.more) title.append(make("span", { class: "soft" }, ` and ${count(one.more, "other text")}`));
    const original = one.copy ? byId.get(one.copy) : null, beside = original ? ", pale: of the original" : "";
    const node = make("article", { class: `episode ${one.state}`, "data-id": one.id },
      make("p", { class: "line" }, make("b", { class: `badge ${one.state}` }, one.state), make("span", { class: "soft" }, ` ${one.data} `), make("code", { title: one.id }, short(one.id)), make("span", { class: "soft" }, ` · ${count(one.steps, "step")}`)),
      title, make("ul", { class: "why" }, ...whys.map(saw)), strip(one, mark));
    if (one.copy) {
      node.append(make("p", { class: "label" }, "Copy of ", make("code", { title: one.copy }, short(one.copy)), original ? ` · ${original.data} · ${count(original.steps, "step")} · ${original.state}` : " (not on this page)"));
      if (original) node.append(original.text === one.text ? "" : make("p", {}, original.text || "no instruction"), strip(original, -1));
    }
    for (const [name, key] of [["Action", "action"], [one.hidden ? `State, without ${one.hidden} further dimensions` : "State", "proprio"]]) {
      const drawn = curves(name + beside, one[key], original ? original[key] : [], one.steps, mark, key === "action" ? named : []);
      if (drawn) node.append(drawn);
    }
    return node;
  };

  // ── criteria: their worst episodes are drawn when they are opened ──
  const saws = (one, criterion) => one.why.find((why) => why.criterion === criterion);
  const excess = (one, criterion) => (criterion ? (saws(one, criterion) || { excess: 0 }).excess : Math.max(0, ...one.why.map((why) => why.excess)));
  const worst = (criterion) => episodes.filter((one) => saws(one, criterion)).sort((a, b) => excess(b, criterion) - excess(a, criterion) || (a.id < b.id ? -1 : 1));
  for (const place of document.querySelectorAll("[data-worst]")) {
    const section = place.closest("details"), criterion = place.dataset.worst;
    const fill = () => {
      if (section.open && !place.childElementCount) place.append(...worst(criterion).slice(0, WORST).map((one) => card(one, criterion)));
    };
    section.addEventListener("toggle", fill);
    fill();
  }

  // ── episodes: filters, order, pages ──
  const form = document.querySelector('form[data-for="episodes"]'), fields = form.elements;
  const pages = document.querySelector(".pages"), cards = document.getElementById("cards");
  const fill = (select, values) => select.append(...[...new Set(values)].sort().map((value) => make("option", { value }, value)));
  fill(fields.data, episodes.map((one) => one.data));
  fill(fields.split, episodes.map((one) => one.split));
  fill(fields.why, episodes.flatMap((one) => one.why.map((why) => why.criterion)));
  const text = (one) => [one.id, one.text, one.data, ...one.why.flatMap((why) => [why.criterion, why.detail])].join("\n").toLowerCase();
  const texts = new Map(episodes.map((one) => [one, text(one)]));
  const orders = {
    worst: (why) => (a, b) => excess(b, why) - excess(a, why),
    long: () => (a, b) => b.steps - a.steps,
    short: () => (a, b) => a.steps - b.steps,
    id: () => () => 0,
  };
  let page = 0;
  const show = () => {
    const { data, split, why, state, find, sort } = fields, needle = find.value.trim().toLowerCase();
    const found = episodes.filter((one) =>
      (!data.value || one.data === data.value) && (!split.value || one.split === split.value) && (!state.value || one.state === state.value) &&
      (!why.value || saws(one, why.value)) && (!needle || texts.get(one).includes(needle)));
    const order = orders[sort.value](why.value);
    found.sort((a, b) => order(a, b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
    const last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    cards.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map((one) => card(one, why.value)));
    document.getElementById("found").textContent = `${count(found.length, "episode")} of the ${episodes.length.toLocaleString("en")} on this page`;
    pages.hidden = !last;
    pages.querySelector("span").textContent = `page ${page + 1} of ${last + 1}`;
    pages.querySelector('[data-page="-1"]').disabled = page === 0;
    pages.querySelector('[data-page="1"]').disabled = page === last;
  };
  const restart = () => { page = 0; show(); };
  form.addEventListener("input", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(restart));
  for (const button of pages.querySelectorAll("button")) {
    button.addEventListener("click", () => { page += Number(button.dataset.page); show(); document.getElementById("episodes").scrollIntoView(); });
  }
  for (const button of document.querySelectorAll("[data-show]")) {
    const known = [...fields[button.dataset.show].options].some((option) => option.value === button.dataset.value);
    button.parentElement.hidden = !known;
    button.addEventListener("click", () => {
      form.reset();
      setTimeout(() => { fields[button.dataset.show].value = button.dataset.value; restart(); document.getElementById("episodes").scrollIntoView(); fields[button.dataset.show].focus({ preventScroll: true }); });
    });
  }
  form.hidden = false;
  show();

  // ── data sets: find and order ──
  const tools = document.querySelector('[data-for="data-sets"]'), list = document.querySelector("#data-sets .list");
  const rows = [...list.children];
  const arrange = () => {
    const needle = tools.querySelector("[data-find]").value.trim().toLowerCase(), key = tools.querySelector("[data-sort]").value;
    const sorted = key === "order" ? rows : [...rows].sort((a, b) => (key === "name" ? 0 : b.dataset[key] - a.dataset[key]) || (a.dataset.name < b.dataset.name ? -1 : 1));
    list.append(...sorted);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.querySelector("summary .name").textContent.toLowerCase().includes(needle);
      shown += !row.hidden;
    }
    tools.querySelector("[data-count]").textContent = needle ? `${shown} of ${count(rows.length, "data set")}` : "";
  };
  tools.addEventListener("input", arrange);
  tools.hidden = rows.length < 2;

  // ── a link to a closed part opens it ──
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
})();
