// The explorer: a text whose tokens are coloured by what the routers did, and the path of the token that was chosen.

const COLOURINGS = { depth: "effective depth", module: "module of a step", loss: "loss of the next token" };

class Explorer {
  constructor(root, models) {
    this.root = root;
    this.models = models;
    this.routes = models[0];
    this.token = null; // the one whose path is shown
    this.pinned = null; // the one beside which it is shown
    this.current = 0; // the one that the keyboard is at
    this.build();
    this.showText();
  }

  // The page's parts, none of which has anything in it yet.
  build() {
    const choice = (label, options) => {
      const select = element("select");
      const box = element("label", {}, `${label} `, select);
      this.offer(select, options);
      return { select, box };
    };
    const names = this.models.map(({ name }, i) => [i, name]);
    this.model = choice("Model", names);
    this.model.box.hidden = this.models.length < 2;
    this.colouring = choice("Colour by", Object.entries(COLOURINGS));
    this.side = choice("Side", []);
    this.step = choice("Step", []);
    this.compare = choice("Show", []);
    this.numbers = element("input", { type: "checkbox", checked: true });
    this.pin = element("button", { type: "button" }, "Pin this token");
    this.legend = element("ul", { class: "legend", "aria-label": "Legend" });
    const label = "Text. Arrow keys go from token to token, Enter shows a token's path.";
    this.text = element("div", { class: "text", role: "listbox", "aria-label": label });
    this.paths = element("div", { class: "paths" });
    this.status = element("p", { class: "heard", role: "status", "aria-live": "polite" });
    const controls = [this.model, this.colouring, this.side, this.step].map(({ box }) => box);
    this.root.replaceChildren(
      element("div", { class: "controls" }, ...controls, element("label", {}, this.numbers, " numbers")),
      this.legend,
      this.text,
      element("div", { class: "controls" }, this.compare.box, this.pin),
      this.paths,
      this.status,
    );

    this.model.select.addEventListener("change", () => this.useModel(this.models[this.model.select.value]));
    this.colouring.select.addEventListener("change", () => this.colour());
    this.side.select.addEventListener("change", () => this.offerSteps() || this.colour());
    this.step.select.addEventListener("change", () => this.colour());
    this.compare.select.addEventListener("change", () => this.compareAnew());
    this.numbers.addEventListener("change", () => this.text.classList.toggle("plain", !this.numbers.checked));
    this.pin.addEventListener("click", () => this.pinToken());
    this.text.addEventListener("click", (event) => {
      const token = event.target.closest("[role=option]");
      if (token) this.choose(Number(token.dataset.token));
    });
    this.text.addEventListener("keydown", (event) => this.pressed(event));
  }

  offer(select, options, chosen = select.value) {
    select.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
    if (options.some(([value]) => String(value) === chosen)) select.value = chosen;
  }

  // The other models that have the same text, and so the same tokens.
  get others() {
    return this.models.filter((model) => model !== this.routes && model.hasTextOf(this.routes));
  }

  showText() {
    const { routes } = this;
    this.offer(this.side.select, routes.sides.map((side) => [side, SIDES[side]]));
    this.offerSteps();
    const beside = this.others.map((model) => [`m${this.models.indexOf(model)}`, `this token in ${model.name} too`]);
    this.offer(this.compare.select, [["one", "one token"], ["two", "two tokens"], ...beside]);
    this.options = [];
    const windows = routes.data.windows.map((start, i) => {
      const end = routes.data.windows[i + 1] ?? routes.tokens;
      const title = element("span", { class: "title", "aria-hidden": "true" }, `window ${i}`);
      const box = element("div", { class: "window", role: "group", "aria-label": `Window ${i}` }, title);
      for (let token = start; token < end; token++) this.addToken(box, token);
      return box;
    });
    this.text.replaceChildren(...windows);
    this.token = this.pinned = null;
    this.current = 0;
    if (this.options.length) this.options[0].tabIndex = 0;
    this.colour();
    this.showPaths();
  }

  addToken(box, token) {
    const piece = this.routes.piece(token);
    const mark = /[\s\u0000-\u001f]/.test(piece) ? "mark" : false;
    const attributes = { class: "token", role: "option", "aria-selected": "false", tabindex: -1, "data-token": token };
    const words = element("span", { class: mark }, visible(piece));
    const option = element("span", attributes, words, element("small", { "aria-hidden": "true" }));
    this.options.push(option);
    box.append(option);
    // A line of the text is a line here; more than one empty line is none of the reader's concern.
    const ends = Math.min(2, piece.split("\n").length - 1);
    for (let i = 0; i < ends; i++) box.append(element("br"));
  }

  offerSteps() {
    const count = this.routes.sides.length ? this.routes.stepsOf(this.side.select.value) : 0;
    this.offer(this.step.select, Array.from({ length: count }, (_, step) => [step, this.routes.stepName(step)]));
  }

  // Colours every token, says in words what the colour means, and draws the legend.
  colour() {
    const by = this.colouring.select.value;
    this.side.box.hidden = this.step.box.hidden = by !== "module";
    const scale = by === "module" ? this.byModule() : by === "loss" ? this.byLoss() : this.byDepth();
    this.options.forEach((option, token) => {
      const { kind, level, number, words } = scale.of(token);
      option.className = `token ${kind ?? "level"}`;
      option.style.setProperty("--level", level ?? 0);
      option.lastChild.textContent = number;
      option.setAttribute("aria-label", `${spoken(this.routes.piece(token))}, ${words}`);
      option.title = `${visible(this.routes.piece(token))}: ${words}`;
    });
    this.mark();
    this.legend.replaceChildren(...scale.legend.map(({ kind, level, words }) => {
      const swatch = element("span", { class: `swatch ${kind ?? "level"}`, "aria-hidden": "true" });
      swatch.style.setProperty("--level", level ?? 0);
      return element("li", {}, swatch, words);
    }));
  }

  byDepth() {
    const { depths } = this.routes;
    const [low, high] = [Math.min(...depths), Math.max(...depths)];
    const level = (depth) => (high > low ? (depth - low) / (high - low) : 0.5);
    const shown = [...new Set(depths)].sort((a, b) => a - b);
    const every = Math.ceil(shown.length / 9);
    const share = (depth) => depths.filter((d) => d === depth).length / depths.length;
    const legend = shown.filter((_, i) => i % every === 0 || i === shown.length - 1).map((depth) => {
      return { level: level(depth), words: every > 1 ? `${depth}` : `${depth} (${percent(share(depth))})` };
    });
    if (legend.length) legend[0].words = `modules taken: ${legend[0].words}`;
    return {
      legend,
      of: (token) => {
        const depth = depths[token];
        return { level: level(depth), number: depth, words: `effective depth ${depth} of ${this.routes.mostDepth}` };
      },
    };
  }

  byModule() {
    const { routes } = this;
    const [side, step] = [this.side.select.value, Number(this.step.select.value)];
    if (!routes.sides.length) return { legend: [], of: () => ({ number: "", words: "not routed" }) };
    const top = Array.from({ length: routes.tokens }, (_, token) => routes.taken(side, step, token)[0]);
    const { classes, modules } = routes.data.sides[side];
    const legend = classes.map((name, id) => {
      const share = top.filter((choice) => choice.id === id).length / top.length;
      const kind = hue({ id, real: id < modules });
      return { kind, words: `${id < modules ? "module " : ""}${name} (${percent(share)})` };
    });
    return {
      legend,
      of: (token) => {
        const { name, real, weight } = top[token];
        const words = `${SIDES[side]} ${routes.stepName(step)}: ${real ? "module " : ""}${name}, ${fixed(weight, 2)}`;
        return { kind: hue(top[token]), number: real ? name : name === "SKIP" ? "S" : "–", words };
      },
    };
  }

  byLoss() {
    const { routes } = this;
    const losses = Array.from({ length: routes.tokens }, (_, token) => routes.loss(token));
    const known = losses.filter((loss) => loss !== null).sort((a, b) => a - b);
    // Few tokens are far worse than all others; they would leave nothing of the scale.
    const high = known[Math.floor(0.95 * (known.length - 1))] || 1;
    const legend = [0, 0.25, 0.5, 0.75, 1].map((level) => {
      return { level, words: `${level === 1 ? "≥ " : ""}${fixed(level * high, 1)}${level === 1 ? " nats" : ""}` };
    });
    legend.push({ kind: "nothing", words: "unknown (end of a window)" });
    return {
      legend,
      of: (token) => {
        const loss = losses[token];
        if (loss === null) return { kind: "nothing", number: "–", words: "loss unknown" };
        return { level: Math.min(1, loss / high), number: fixed(loss, 1), words: `loss ${fixed(loss, 2)} nats` };
      },
    };
  }

  useModel(routes) {
    const same = routes.hasTextOf(this.routes);
    const { token, pinned, current } = this;
    this.routes = routes;
    this.showText();
    if (!same) return;
    Object.assign(this, { token, pinned });
    this.at(current);
    this.showPaths();
  }

  pressed(event) {
    const steps = {
      ArrowRight: () => this.current + 1,
      ArrowLeft: () => this.current - 1,
      ArrowDown: () => this.above(1),
      ArrowUp: () => this.above(-1),
      PageDown: () => this.routes.data.windows[this.routes.window(this.current) + 1],
      PageUp: () => this.routes.data.windows[Math.max(0, this.routes.window(this.current) - 1)],
      Home: () => (event.ctrlKey ? 0 : this.routes.data.windows[this.routes.window(this.current)]),
      End: () => {
        const next = this.routes.data.windows[this.routes.window(this.current) + 1];
        return (event.ctrlKey ? this.routes.tokens : (next ?? this.routes.tokens)) - 1;
      },
    };
    if (event.key === "Enter" || event.key === " ") {
      this.choose(this.current);
    } else if (event.key in steps && !event.altKey && !event.metaKey) {
      this.at(steps[event.key]());
      this.options[this.current]?.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  // The token in the line below (1) or above (-1) that is nearest in the horizontal.
  above(direction) {
    const box = (token) => this.options[token].getBoundingClientRect();
    const from = box(this.current);
    let [best, line] = [undefined, null];
    for (let token = this.current + direction; token in this.options; token += direction) {
      const { top, left } = box(token);
      if (Math.abs(top - from.top) < 3) continue;
      line ??= top;
      if (Math.abs(top - line) >= 3) break;
      const distance = Math.abs(left - from.left);
      if (best === undefined || distance < best.distance) best = { token, distance };
    }
    return best?.token;
  }

  // The keyboard's place; one token of the text is in the order of Tab.
  at(token) {
    if (!(token in this.options)) return;
    this.options[this.current].tabIndex = -1;
    this.options[token].tabIndex = 0;
    this.current = token;
  }

  choose(token) {
    this.at(token);
    this.options[token].focus();
    if (this.compare.select.value === "two" && this.pinned === null) this.pinned = this.token;
    this.token = token;
    this.showPaths();
    this.status.textContent = sentence(this.routes, token);
  }

  compareAnew() {
    this.pinned = this.compare.select.value === "two" ? this.token : null;
    this.showPaths();
  }

  pinToken() {
    this.compare.select.value = "two";
    this.pinned = this.token;
    this.showPaths();
    this.status.textContent = `Pinned ${spoken(this.routes.piece(this.pinned))}. Choose another token.`;
  }

  mark() {
    this.text.setAttribute("aria-multiselectable", String(this.pinned !== null));
    this.options.forEach((option, token) => {
      const shown = token === this.token || token === this.pinned;
      option.setAttribute("aria-selected", String(shown));
      option.classList.toggle("pinned", token === this.pinned && token !== this.token);
    });
  }

  // The paths, side by side where two are asked for, and how far they agree.
  showPaths() {
    this.mark();
    this.pin.disabled = this.token === null;
    if (this.token === null) {
      const hint = "Choose a token of the text to see its path: click it, or Tab into the text, go by arrow keys, Enter.";
      this.paths.replaceChildren(element("p", {}, hint));
      return;
    }
    const beside = this.compare.select.value;
    let shown = [{ routes: this.routes, token: this.token, title: `Path in ${this.routes.name}` }];
    if (beside === "two" && this.pinned !== null && this.pinned !== this.token) {
      const both = [{ token: this.pinned, title: "Pinned token" }, { token: this.token, title: "Chosen token" }];
      shown = both.map((path) => ({ ...path, routes: this.routes }));
    } else if (beside.startsWith("m")) {
      const other = this.models[beside.slice(1)];
      shown.push({ routes: other, token: this.token, title: `Path in ${other.name}` });
    }
    const all = shown.map(({ routes, token }) => places(routes, token));
    const drawnPaths = shown.map(({ routes, token, title }, i) => pathOf(routes, token, all[1 - i], title));
    this.paths.replaceChildren(...drawnPaths);
    if (all.length === 2) {
      const same = all[0].filter((place, i) => agree(place, all[1][i])).length;
      const words = `The best choice is the same at ${same} of ${all[0].length} places; ≠ marks the others.`;
      this.paths.prepend(element("p", { class: "agreement" }, words));
    } else if (beside === "two") {
      this.paths.prepend(element("p", { class: "agreement" }, "This token is pinned. Choose another one."));
    }
  }
}

const percent = (share) => `${Math.round(100 * share)} %`;

const models = JSON.parse(document.getElementById("mom-explorer-data").textContent).map((each) => new Routes(each));
new Explorer(document.getElementById("mom-explorer"), models);
