"""Draws the pictures of docs/concepts.md as SVG: `python docs/tools/pictures.py`.

Each is a white card with a frame, as docs/mom.svg is, so that it reads on light and on dark pages.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
INK, GREY, FRAME = "#1f2328", "#57606a", "#d0d7de"
ATTENTION, FFN, ROUTER, PLAIN, SKIPPED = "#ddf4ff", "#fff1e5", "#fbefff", "#eaeef2", "#f6f8fa"
PURPLE, STRONG = "#8250df", "#0969da"


class Picture:
    """An SVG of a width and a height, in pixels, that says in words what it shows."""

    def __init__(self, width: int, height: int, words: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" role="img" aria-label="{words}">',
            "<defs>"
            + "".join(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
                for name, colour in (("a", GREY), ("p", PURPLE))
            )
            + "</defs>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="12" fill="#ffffff" '
            f'stroke="{FRAME}"/>',
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str, stroke: str = GREY, dash: bool = False) -> None:
        dashed = ' stroke-dasharray="5 4"' if dash else ""
        radius = min(8, h / 4)
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"{dashed}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 13,
        *,
        colour: str = INK,
        at: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{at}"{weight} fill="{colour}">{words}</text>'
        )

    def labelled(self, x: float, y: float, w: float, h: float, fill: str, *lines: str, stroke: str = GREY) -> None:
        """A box with lines of text in its middle, the first of them larger."""
        self.box(x, y, w, h, fill, stroke)
        for i, line in enumerate(lines):
            place = y + h / 2 + 5 + 16 * (i - (len(lines) - 1) / 2)
            self.text(x + w / 2, place, line, 13 if i == 0 else 12, colour=INK if i == 0 else GREY)

    def arrow(self, *points: tuple[float, float], colour: str = GREY, dash: bool = False, head: bool = True) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dashed = ' stroke-dasharray="4 4"' if dash else ""
        end = f' marker-end="url(#{"p" if colour == PURPLE else "a"})"' if head else ""
        self.parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="1.6" fill="none"{dashed}{end}/>')

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def step() -> str:
    """One assembly step of one token."""
    p = Picture(
        860,
        520,
        "One assembly step: each side's router scores its modules and SKIP, the best K are taken, weighed and added",
    )
    for top, side, letter, fill, taken in (
        (36, "attention", "A", ATTENTION, {2: "0.7", 0: "0.3"}),
        (286, "FFN", "F", FFN, {1: "0.6", 4: "0.4"}),
    ):
        p.box(120, top, 716, 206, SKIPPED, FRAME)
        p.text(136, top + 22, f"{side} side", 13, bold=True, at="start")
        p.labelled(140, top + 72, 92, 56, ROUTER, "router", "GRU", stroke=PURPLE)
        p.arrow((60, top + 100), (138, top + 100))
        p.arrow((186, top + 32), (186, top + 70), colour=PURPLE, dash=True)
        p.text(196, top + 50, "state of the step before", 11, colour=PURPLE, at="start")
        p.arrow((186, top + 128), (186, top + 182), colour=PURPLE, dash=True)
        p.text(196, top + 184, "state for the next step", 11, colour=PURPLE, at="start")
        p.text(404, top + 22, "scores", 12, colour=GREY)
        p.arrow((232, top + 100), (336, top + 100), colour=PURPLE)
        heights = (0.3, 0.1, 0.7, 0.15, 0.2) if letter == "A" else (0.12, 0.6, 0.1, 0.2, 0.4)
        for i, height in enumerate(heights):
            y = top + 34 + 32 * i
            name = f"{letter}{i}" if i < 4 else "SKIP"
            p.text(374, y + 18, name, 12, at="end", bold=i in taken)
            p.box(382, y + 6, 60 * height, 16, PURPLE if i in taken else "#d8b9ff", PURPLE)
        p.text(494, top + 22, "best K = 2", 12, colour=GREY)
        for i, weight in taken.items():
            y = top + 34 + 32 * i
            p.arrow((440, y + 14), (522, y + 14))
            p.text(494, y + 9, weight, 12, colour=PURPLE)
        for i in range(4):
            y = top + 34 + 32 * i
            on = i in taken
            p.labelled(526, y, 84, 28, fill if on else "#ffffff", f"{letter}{i}", stroke=GREY if on else FRAME)
            if on:
                p.arrow((610, y + 14), (672, top + 100))
        y = top + 34 + 32 * 4
        p.box(526, y, 84, 28, "#ffffff", GREY if 4 in taken else FRAME, dash=True)
        p.text(568, y + 18, "nothing", 12, colour=GREY)
        p.labelled(674, top + 82, 64, 36, PLAIN, "sum")
        p.arrow((738, top + 100), (786, top + 100))
        p.labelled(788, top + 86, 28, 28, "#ffffff", "+")
    p.text(60, 128, "x", 15, bold=True)
    p.arrow((60, 136), (60, 262), (802, 262), (802, 152), head=True)
    p.arrow((816, 136), (848, 136), (848, 274), (40, 274), (40, 386), (58, 386), head=False)
    p.text(
        430,
        257,
        "residual stream: what a token has gathered so far goes past every side and is added to",
        11,
        colour=GREY,
    )
    p.arrow((60, 386), (60, 504), (802, 504), (802, 402))
    p.arrow((816, 386), (850, 386))
    return p.svg()


def mesh() -> str:
    """The mesh's four axes."""
    p = Picture(
        860,
        470,
        "The mesh: data copies parameters, fsdp divides them, module the pool, tensor heads and widths",
    )
    p.text(430, 30, "Every device has its own sequences; the axes differ in where the parameters are", 14, bold=True)
    panels = (
        ("data", "whole parameters on each device", "gradients travel, once a step"),
        ("fsdp", "a part of every array on each device", "a chunk's pool is gathered once a direction"),
        ("module", "some of the modules on each device", "each choice's row travels to its module and back"),
        ("tensor", "some heads and inner units on each", "all tokens travel around every product"),
    )
    for i, (name, at_rest, travels) in enumerate(panels):
        left, top = 24 + 414 * (i % 2), 50 + 206 * (i // 2)
        p.box(left, top, 398, 192, SKIPPED, FRAME)
        p.text(left + 16, top + 26, name, 15, bold=True, at="start")
        p.text(left + 382, top + 26, at_rest, 12, colour=GREY, at="end")
        for device in range(2):
            x = left + 16 + 192 * device
            p.box(x, top + 40, 174, 118, "#ffffff", GREY)
            p.text(x + 10, top + 57, f"device {device}", 11, colour=GREY, at="start")
            p.text(x + 164, top + 57, f"sequences {2 * device}, {2 * device + 1}", 11, colour=STRONG, at="end")
            for m in range(4):
                for kind, fill in enumerate((ATTENTION, FFN)):
                    bx, by, w, h = x + 10 + 40 * m, top + 66 + 44 * kind, 34, 38
                    letter = "AF"[kind] + str(m)
                    if name == "fsdp" or name == "tensor":
                        p.box(bx, by, w, h, "#ffffff", FRAME, dash=True)
                        if name == "fsdp":
                            p.box(bx, by + h / 2 * device, w, h / 2, fill)
                        else:
                            p.box(bx + w / 2 * device, by, w / 2, h, fill)
                    elif name == "module" and m // 2 != device:
                        p.box(bx, by, w, h, "#ffffff", FRAME, dash=True)
                    else:
                        p.box(bx, by, w, h, fill)
                    p.text(bx + w / 2, by + h / 2 + 4, letter, 11)
        p.arrow((left + 190, top + 90), (left + 208, top + 90), colour=PURPLE)
        p.arrow((left + 208, top + 120), (left + 190, top + 120), colour=PURPLE)
        p.text(left + 199, top + 178, travels, 12, colour=PURPLE)
    return p.svg()


def cases() -> str:
    """What each step may choose in the special cases: a row a step, a column a module, the last one SKIP."""
    p = Picture(860, 480, "Special cases as tables of steps and modules: which module a step may choose")
    everything = {(h, m) for h in range(4) for m in range(5)}
    own = {(h, h) for h in range(4)}
    skip = {(h, 4) for h in range(4)}
    tables: tuple[tuple[str, str, set[tuple[int, int]], int], ...] = (
        ("Mixture-of-Modules", "any module, or SKIP", everything, 5),
        ("vanilla", "step h: module h", own, 4),
        ("layer skipping", "its own module, or SKIP", own | skip, 5),
        ("early exit", "SKIP is for good", own | skip, 5),
        ("a schedule", "0, 1, 0, 1", {(h, h % 2) for h in range(4)}, 4),
        ("parameter sharing", "a pool of one", {(h, 0) for h in range(4)}, 1),
        ("experts of a layer", "two for each step (FFN)", {(h, 2 * h + e) for h in range(4) for e in range(2)}, 8),
        ("mixture-of-depths", "every other step has a capacity", everything - {(0, 4), (2, 4)}, 5),
    )
    for i, (name, words, allowed, columns) in enumerate(tables):
        left, top = 24 + 207 * (i % 4), 20 + 226 * (i // 4)
        p.text(left + 96, top + 18, name, 14, bold=True)
        p.text(left + 96, top + 36, words, 12, colour=GREY)
        size = 30 if columns < 8 else 22
        x0 = left + 96 - size * columns / 2 + 6
        for m in range(columns):
            is_skip = m == 4 and columns == 5
            p.text(x0 + size * (m + 0.5), top + 58, "S" if is_skip else str(m), 11, colour=GREY)
        for h in range(4):
            y = top + 64 + 30 * h
            p.text(x0 - 6, y + 19, str(h), 11, colour=GREY, at="end")
            for m in range(columns):
                is_skip = m == 4 and columns == 5
                on = (h, m) in allowed
                fill = (PLAIN if is_skip else ATTENTION) if on else "#ffffff"
                p.box(x0 + size * m + 1, y, size - 2, 28, fill, GREY if on else FRAME, dash=on and is_skip)
                if on and is_skip and name == "mixture-of-depths":
                    p.text(x0 + size * (m + 0.5), y + 19, "most", 10, colour=GREY)
                if on and is_skip and name == "early exit" and h < 3:
                    p.arrow((x0 + size * (m + 0.5), y + 12), (x0 + size * (m + 0.5), y + 40), colour=PURPLE)
    p.text(430, 462, "A row is a step, a column a module, S is SKIP; filled: the step may choose it", 12, colour=GREY)
    return p.svg()


PICTURES = {"step": step, "mesh": mesh, "cases": cases}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / f"{name}.svg").write_text(draw(), encoding="utf-8")
    sys.stdout.write(f"{', '.join(f'docs/{name}.svg' for name in PICTURES)}\n")
