// The routes of a text by one model: what data.py writes, and what is asked of it.

const SIDES = { attention: "Attention", ffn: "FFN" };
const UNIT = 1000; // weights and losses are whole numbers of thousandths

class Routes {
  constructor({ name, data }) {
    this.name = name;
    this.data = data;
    this.tokens = data.tokens;
    this.sides = Object.keys(SIDES).filter((side) => side in data.sides);
    this.steps = Math.max(0, ...this.sides.map((side) => this.stepsOf(side)));
    this.depths = data.depth;
    this.mostDepth = data.most_depth;
  }

  stepsOf(side) {
    const { index, choices } = this.data.sides[side];
    return this.tokens && choices ? index.length / (this.tokens * choices) : 0;
  }

  // What the token takes at a step: its choices, the router's best first.
  taken(side, step, token) {
    const { index, weight, choices, classes, modules } = this.data.sides[side];
    const start = (step * this.tokens + token) * choices;
    return Array.from({ length: choices }, (_, k) => {
      const id = index[start + k];
      return { id, name: classes[id] ?? "null", real: id < modules, weight: weight[start + k] / UNIT };
    });
  }

  // Nats of predicting the token after this one; null where that is unknown.
  loss(token) {
    const loss = this.data.loss[token];
    return loss === null ? null : loss / UNIT;
  }

  piece(token) {
    return this.data.vocabulary[this.data.piece[token]];
  }

  window(token) {
    return this.data.windows.findLastIndex((start) => start <= token);
  }

  // Whether the window has a token after this one.
  hasNext(token) {
    return token + 1 < this.tokens && this.window(token + 1) === this.window(token);
  }

  // Steps are counted through all chunks, as in the report's pictures.
  stepName(step) {
    const chunk = Math.floor(step / this.data.steps);
    return this.steps > this.data.steps ? `step ${step}, chunk ${chunk}` : `step ${step}`;
  }

  hasTextOf(other) {
    const text = ({ data }) => JSON.stringify([data.vocabulary, data.piece, data.windows]);
    return text(this) === text(other);
  }
}

// White space and control characters as marks that can be seen.
function visible(piece) {
  const marks = { " ": "·", "\n": "↵", "\t": "→", "\r": "␍", "\u00a0": "⍽" };
  const shown = piece.replace(/[\s\u0000-\u001f\u007f]/g, (c) => {
    if (c in marks) return marks[c];
    return c === "\u007f" ? "␡" : c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "␣";
  });
  return shown || "∅";
}

// The same in words, for whoever hears the page.
function spoken(piece) {
  if (!piece) return "no text";
  const words = piece
    .replace(/\r/g, " carriage return ")
    .replace(/ {2,}/g, (run) => `\u0001${run.length} spaces\u0001`)
    .replace(/^ (?=\S)/, "space\u0001")
    .replace(/(?<=\S) $/, "\u0001space")
    .replace(/^ $/, "space")
    .replace(/\n/g, "\u0001newline\u0001")
    .replace(/\t/g, "\u0001tab\u0001");
  return words.replace(/[\s\u0001]+/g, " ").trim() || "white space";
}

const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
