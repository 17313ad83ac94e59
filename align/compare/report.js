"use strict";
(() => {
  const PAGE = 20;
  const LONG = 700;
  const id = (name) => document.getElementById(name);
  const data = JSON.parse(id("samples-data").textContent);
  // A row: number, prompt, seed, and [text, tokens, finished, log-ratio, scores] of each model and response.
  const rows = data.rows.map(([number, prompt, seed, responses]) => ({ number, prompt, seed, responses }));
  const measures = [
    ...data.judges.map((name, judge) => ({ name, of: (response) => response[4][judge] })),
    { name: "length, tokens", of: (response) => response[1] },
    { name: `log-ratio to ${data.baseline}, nats`, of: (response) => response[3] },
  ];
  let found = [];
  let shown = 0;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function fill(select, names, chosen) {
    names.forEach((name, place) => select.append(element("option", { value: place }, name)));
    select.value = chosen;
  }

  /** The text with each occurrence of the query marked; texts go in as text nodes, never as HTML. */
  function marked(text, query) {
    const parts = [];
    const low = text.toLowerCase();
    // Some letters change their length in lower case, which shifts positions.
    if (!query || low.length !== text.length) return [text];
    let start = 0;
    for (let at = low.indexOf(query); at >= 0; at = low.indexOf(query, start)) {
      parts.push(text.slice(start, at), element("mark", {}, text.slice(at, at + query.length)));
      start = at + query.length;
    }
    return [...parts, text.slice(start)];
  }

  function responseText(response, name, query) {
    if (!response[0].trim()) return element("div", { class: "text empty" }, "(empty response)");
    const long = { tabindex: 0, role: "region", "aria-label": `long response of ${name}` };
    return element(
      "div", { class: "text", dir: "auto", ...(response[0].length > LONG ? long : {}) }, ...marked(response[0], query),
    );
  }

  function facts(response) {
    const scores = data.judges.map((judge, place) => `${judge} ${response[4][place].toFixed(2).replace("-", "\u2212")}`);
    const line = element("span", { class: "facts" }, [...scores, `${response[1]} tokens`].join(", "));
    if (!response[2]) line.append(", ", element("b", {}, "truncated"));
    return line;
  }

  function responsesOf(row, numbers, query) {
    const columns = row.responses.map((responses, model) => {
      const column = element("div", { class: "response" });
      for (const k of numbers) {
        const glyph = id("glyphs").content.children[model].cloneNode(true);
        const name = element("span", { class: "model" }, glyph, element("bdi", {}, data.models[model]));
        column.append(element("p", { class: "who" }, name, " ", facts(responses[k])));
        column.append(responseText(responses[k], data.models[model], query));
      }
      return column;
    });
    return element("div", { class: "responses" }, ...columns);
  }

  function card({ row, k }, query) {
    const where = `prompt ${row.number}, response ${k + 1}` + (data.seeds > 1 ? `, seed ${row.seed}` : "");
    const made = element(
      "article", { class: "card", tabindex: -1 },
      element("p", { class: "prompt", dir: "auto" }, ...marked(row.prompt, query)),
      element("p", { class: "where" }, where),
      responsesOf(row, [k], query),
    );
    const others = row.responses[0].map((_, other) => other).filter((other) => other !== k);
    if (others.length) {
      const more = element("details", {}, element("summary", {}, `${others.length} more of each model`));
      more.addEventListener("toggle", () => more.append(responsesOf(row, others, query)), { once: true });
      made.append(more);
    }
    return made;
  }

  /** The row with the response that comes first in this order, or null if the query is not in it. */
  function chosen(row, query, order, value) {
    const has = (text) => text.toLowerCase().includes(query);
    let numbers = row.responses[0].map((_, k) => k);
    if (query && !has(row.prompt)) numbers = numbers.filter((k) => row.responses.some((responses) => has(responses[k][0])));
    if (!numbers.length) return null;
    if (order === "asked") return { row, k: numbers[0], key: 0 };
    const keys = numbers.map((k) => value(row, k));
    const key = Math.max(...keys);
    return { row, k: numbers[keys.indexOf(key)], key };
  }

  function search() {
    const query = id("query").value.trim().toLowerCase();
    const order = id("order").value;
    const measure = measures[id("measure").value];
    const [first, second] = [id("first").value, id("second").value];
    for (const field of document.querySelectorAll(".sorted")) field.hidden = order === "asked";
    for (const field of document.querySelectorAll(".compared")) field.hidden = order !== "different";
    const of = (row, model, k) => measure.of(row.responses[model][k]);
    const value = {
      best: (row, k) => of(row, first, k),
      worst: (row, k) => -of(row, first, k),
      different: (row, k) => Math.abs(of(row, first, k) - of(row, second, k)),
    }[order];
    found = rows.map((row) => chosen(row, query, order, value)).filter(Boolean).sort((a, b) => b.key - a.key);
    shown = 0;
    id("cards").replaceChildren();
    show(query);
  }

  function show(query) {
    const next = found.slice(shown, shown + PAGE).map((one) => card(one, query));
    id("cards").append(...next);
    shown += next.length;
    id("count").textContent = query
      ? `${found.length} of ${rows.length} match; ${shown} shown`
      : `${rows.length} in all; ${shown} shown`;
    id("more").hidden = shown >= found.length;
    return next[0];
  }

  fill(id("measure"), measures.map((measure) => measure.name), 0);
  fill(id("first"), data.models, Math.min(1, data.models.length - 1));
  fill(id("second"), data.models, 0);
  let waiting = 0;
  id("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  for (const name of ["order", "measure", "first", "second"]) id(name).addEventListener("change", search);
  id("more").addEventListener("click", () => show(id("query").value.trim().toLowerCase()).focus());
  if (rows.length) {
    id("explorer").hidden = false;
    search();
  }
})();
