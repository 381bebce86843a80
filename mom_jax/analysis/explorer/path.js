// A token's path: a graph, the same as a table, and the same in words.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// The colour of a class: eight hues for modules, over and over; none for classes without a module.
const hue = ({ id, real }) => (real ? `hue${id % 8}` : "nothing");

// Every step of the path in order: attention, FFN, attention, ...
function places(routes, token) {
  const found = [];
  for (let step = 0; step < routes.steps; step++) {
    for (const side of routes.sides) {
      if (step < routes.stepsOf(side)) found.push({ side, step, taken: routes.taken(side, step, token) });
    }
  }
  return found;
}

function graph(routes, token) {
  const rows = places(routes, token);
  const modules = Math.max(0, ...routes.sides.map((side) => routes.data.sides[side].modules));
  const names = new Set(routes.sides.flatMap((side) => routes.data.sides[side].classes));
  const columns = [...Array(modules).keys()].map(String);
  if (names.has("SKIP")) columns.push("SKIP");
  if (rows.some(({ taken }) => taken.some(({ name }) => name === "null"))) columns.push("null");

  const [left, top, across, down] = [88, 44, 52, rows.length > 16 ? 24 : 32];
  const width = left + across * columns.length + 8;
  const height = top + down * rows.length + 26;
  const x = (name) => left + across * (columns.indexOf(name) + 0.35);
  const y = (row) => top + down * (row + 0.5);
  const middle = left + (across * columns.length) / 2;

  const lines = drawn("g", { class: "edges" });
  const nodes = drawn("g");
  const text = (at, row, words, anchor = "start", kind = "label") =>
    drawn("text", { x: at, y: row, "text-anchor": anchor, "dominant-baseline": "central", class: kind }, words);

  for (const name of columns) nodes.append(text(x(name), 12, name, "middle"));
  let before = [{ at: middle, y: 28, weight: 1 }];
  nodes.append(drawn("circle", { cx: middle, cy: 28, r: 4, class: "end" }), text(middle + 9, 28, "in"));
  rows.forEach(({ side, step, taken }, row) => {
    nodes.append(text(0, y(row), `${step} ${SIDES[side]}`));
    const own = routes.data.sides[side].modules;
    for (const name of columns.slice(0, own)) {
      nodes.append(drawn("circle", { cx: x(name), cy: y(row), r: 2.5, class: "other" }));
    }
    const here = taken.map((choice) => ({ at: x(choice.name), y: y(row), choice, weight: choice.weight }));
    for (const from of before) {
      for (const to of here) lines.append(edge(from, to));
    }
    for (const { at, y, choice } of [...here].reverse()) {
      nodes.append(node(at, y, choice), text(at + 13, y, fixed(choice.weight, 2), "start", "weight"));
    }
    before = here;
  });
  const end = height - 14;
  for (const from of before) lines.append(edge(from, { at: middle, y: end, weight: 1 }));
  nodes.append(drawn("circle", { cx: middle, cy: end, r: 4, class: "end" }), text(middle + 9, end, "out"));

  const label = `Graph of the path: ${rows.length} rows, ${columns.length} columns. The table below says the same.`;
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  return drawn("svg", { ...size, role: "img", "aria-label": label }, lines, nodes);
}

// As wide as both ends weigh; dashed into what computes nothing.
function edge(from, to) {
  const share = Math.min(1, Math.abs(from.weight * to.weight));
  const bend = (from.y + to.y) / 2;
  return drawn("path", {
    d: `M${from.at},${from.y} C${from.at},${bend} ${to.at},${bend} ${to.at},${to.y}`,
    "stroke-width": (0.8 + 5 * share).toFixed(2),
    "stroke-opacity": (0.25 + 0.5 * share).toFixed(2),
    "stroke-dasharray": to.choice && !to.choice.real ? "4 3" : false,
  });
}

// A module is a circle with its number, what computes nothing a square; the area grows with the weight.
function node(x, y, choice) {
  const r = 7 + 4 * Math.sqrt(Math.min(1, Math.abs(choice.weight)));
  const shape = choice.real
    ? drawn("circle", { cx: x, cy: y, r })
    : drawn("rect", { x: x - r * 0.85, y: y - r * 0.85, width: r * 1.7, height: r * 1.7, "stroke-dasharray": "3 2" });
  const label = choice.real ? choice.name : choice.name === "SKIP" ? "S" : "–";
  const middle = { x, y, "text-anchor": "middle", "dominant-baseline": "central", class: "number" };
  return drawn("g", { class: `taken ${hue(choice)}` }, shape, drawn("text", middle, label));
}

const inWords = (taken) => taken.map(({ name, weight }) => `${name} (${fixed(weight, 3)})`).join(", ");

// Whether the best choices are the same.
const agree = (one, other) => one.taken[0]?.name === other?.taken[0]?.name;

function table(routes, token, other) {
  const head = ["Step", ...routes.sides.map((side) => SIDES[side])];
  const rows = places(routes, token);
  const body = element("tbody");
  for (let step = 0; step < routes.steps; step++) {
    const line = element("tr", {}, element("th", { scope: "row" }, routes.stepName(step)));
    for (const side of routes.sides) {
      const at = rows.findIndex((row) => row.side === side && row.step === step);
      const cell = element("td", {}, at < 0 ? "" : inWords(rows[at].taken));
      if (at >= 0 && other && !agree(rows[at], other[at])) cell.prepend(element("b", {}, "≠ "));
      line.append(cell);
    }
    body.append(line);
  }
  const titles = head.map((title) => element("th", { scope: "col" }, title));
  return element("table", {}, element("thead", {}, element("tr", {}, ...titles)), body);
}

function facts(routes, token) {
  const loss = routes.loss(token);
  const depth = `effective depth ${routes.depths[token]} of ${routes.mostDepth} modules`;
  if (loss === null) return depth;
  const next = routes.hasNext(token) ? ` “${visible(routes.piece(token + 1))}”` : "";
  return `${depth}; loss ${fixed(loss, 3)} nats of predicting the next token${next}`;
}

// One token's path by one model; with `other`, the places of the path beside it, differing choices are marked.
function pathOf(routes, token, other, title) {
  const where = `window ${routes.window(token)}, position ${routes.data.position[token]}`;
  return element(
    "article",
    { class: "path", "aria-label": title },
    element("h3", {}, title),
    element("p", {}, `“${visible(routes.piece(token))}”, ${where}: ${facts(routes, token)}.`),
    element(
      "div",
      { class: "both" },
      element("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Graph" }, graph(routes, token)),
      element("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Table" }, table(routes, token, other)),
    ),
  );
}

function sentence(routes, token) {
  const steps = places(routes, token).map(({ side, step, taken }) => {
    const choices = taken.map(({ name, real, weight }) => `${real ? "module " : ""}${name} weight ${fixed(weight, 2)}`);
    return `Step ${step} ${SIDES[side]}: ${choices.join(" and ")}.`;
  });
  const depth = `effective depth ${routes.depths[token]} of ${routes.mostDepth}`;
  return `Path of ${spoken(routes.piece(token))}, ${depth}. ${steps.join(" ")}`;
}
