# SPDX-License-Identifier: BSD-3-Clause

"""A few series over the same points, as lines; the vertical axis is
logarithmic, because servers differ by powers of ten."""

from html import escape
from math import ceil, floor, log10

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#666666"]
MARKS = ["", "6 3", "2 3", "8 3 2 3"]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 880, 330, 80, 76, 24, 56


def text(x, y, what, more=""):
    return '<text x="%.1f" y="%.1f" %s>%s</text>' % (x, y, more, escape(what))


def line(x1, y1, x2, y2, colour):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>' % (
        x1, y1, x2, y2, colour)


def number(value):
    return "%gk" % (value / 1000) if value >= 1000 else "%g" % value


def draw(title, axis, labels, series):
    """SERIES: pairs of a name and as many values as there are LABELS."""
    values = [v for _, s in series for v in s if v > 0]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    step = (WIDTH - LEFT - RIGHT) / max(len(labels) - 1, 1)

    def x(i):
        return LEFT + i * step

    def y(value):
        share = (log10(value) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
           'font-family="sans-serif" font-size="12">' % (WIDTH, HEIGHT),
           '<rect width="100%" height="100%" fill="#ffffff"/>',
           text(20, 24, title, 'font-size="15"')]
    for power in range(low, high + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0 ** power
            if power < high or digit == 1:
                out.append(line(LEFT, y(value), WIDTH - RIGHT, y(value),
                                "#bbbbbb" if digit == 1 else "#eeeeee"))
                out.append(text(LEFT - 8, y(value) + 4, number(value),
                                'text-anchor="end"'))
    for i, label in enumerate(labels):
        out.append(text(x(i), HEIGHT - BOTTOM + 18, label,
                        'text-anchor="middle"'))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, axis,
                    'text-anchor="middle"'))
    out.append(text(20, TOP - 14, "IOPS"))
    for k, (name, points) in enumerate(series):
        out.append('<polyline fill="none" stroke="%s" stroke-width="2" '
                   'stroke-dasharray="%s" points="%s"/>' % (
                       COLOURS[k], MARKS[k],
                       " ".join("%.1f,%.1f" % (x(i), y(max(v, 10.0 ** low)))
                                for i, v in enumerate(points))))
        out += ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' %
                (x(i), y(max(v, 10.0 ** low)), COLOURS[k])
                for i, v in enumerate(points)]
        at = 80 + 260 * k
        out.append('<line x1="%d" x2="%d" y1="44" y2="44" stroke="%s" '
                   'stroke-width="2" stroke-dasharray="%s"/>' %
                   (at, at + 24, COLOURS[k], MARKS[k]))
        out.append(text(at + 30, 48, name))
    return "\n".join(out + ["</svg>"]) + "\n"
