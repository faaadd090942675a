"""How well colours can be told apart, by WCAG 2."""


def contrast(a, b):
    """The contrast ratio of two colours, each three numbers up to 255: 1 to 21; text needs 4.5."""

    def luminance(colour):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def rgb(colour):
    """The numbers of a colour such as `fff` or `ffffff`."""
    size = len(colour) // 3
    return [int((colour[i : i + size] * 2)[:2], 16) for i in range(0, len(colour), size)]
