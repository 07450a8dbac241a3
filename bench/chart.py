# SPDX-License-Identifier: BSD-3-Clause

"""The table as a picture: for each workload how many times as fast this
plugin is as the others, on a logarithmic scale, with 1 as a line.
"""

from html import escape
from math import log10

SERIES = [("raw", "nbdkit file plugin, raw", "#888888"),
          ("qemu-cached", "qemu-nbd, its default checks", "#3b6ea5"),
          ("qemu-all", "qemu-nbd, all checks", "#c0392b"),
          ("ours-none", "this plugin, no checks", "#2e8b57")]
LEFT, WIDTH, ROW, TOP = 380, 520, 22, 92
LOW, HIGH = 0.25, 256.0


def place(ratio):
    ratio = min(max(ratio, LOW), HIGH)
    return LEFT + WIDTH * log10(ratio / LOW) / log10(HIGH / LOW)


def text(x, y, what, more=""):
    return '<text x="%.1f" y="%.1f" %s>%s</text>' % (x, y, more, escape(what))


def legend():
    out = []
    for i, (_, title, colour) in enumerate(SERIES):
        x = 20 + 230 * i
        out.append('<circle cx="%d" cy="54" r="5" fill="%s"/>' % (x, colour))
        out.append(text(x + 10, 58, title))
    return out


def scale(bottom):
    out = []
    ratio = LOW
    while ratio <= HIGH:
        x = place(ratio)
        out.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/>' %
                   (x, x, TOP - 12, bottom,
                    "#000000" if ratio == 1 else "#dddddd"))
        out.append(text(x, TOP - 18, "%g" % ratio, 'text-anchor="middle"'))
        ratio *= 2
    return out


def draw(rows, head):
    bottom = TOP + ROW * len(rows)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
           'font-family="sans-serif" font-size="12">' %
           (LEFT + WIDTH + 40, bottom + 50),
           '<rect width="100%" height="100%" fill="#ffffff"/>',
           text(20, 28, "How many times as fast this plugin is, with all "
                "checks on (further right is better)", 'font-size="15"')]
    out += legend() + scale(bottom)
    for i, row in enumerate(rows):
        y = TOP + ROW * i + ROW / 2
        out.append(text(LEFT - 10, y + 4, row["title"], 'text-anchor="end"'))
        for name, _, colour in SERIES:
            if name in row["ratios"]:
                out.append('<circle cx="%.1f" cy="%.1f" r="5" fill="%s" '
                           'fill-opacity="0.8"/>' %
                           (place(row["ratios"][name]), y, colour))
    for i, line in enumerate(head):
        out.append(text(20, bottom + 24 + 16 * i, line, 'fill="#555555"'))
    return "\n".join(out + ["</svg>"]) + "\n"
