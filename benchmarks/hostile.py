"""What an attacker may write: generated strings around the spellings of special tokens."""

from __future__ import annotations

import random


PIECES = ["hello", " ", "\n", "  ", "x", "", "é", "你好", "🏴‍☠️", "\t", "\r\n", "\u00a0", "\x00"]
PIECES += ["<", "|", ">", "[", "]", "</", "▁", "Ġ"]
WRAPPERS = ["{}", " {}", "{} ", "\n{}\n", "<{}>", "<|{}|>", "[{}]", "</{}", "{0}{0}", "{0} {0}{0}", "{{{}}}", "'{}'"]
PLACEHOLDERS = ["\ue0000\ue001", "\ue0001\ue001", "\ue002", "\ue000", "\u2003\n", "\n\u2003\ue0000\ue001\u2002\n"]
PLANES = [0x20, 0x300, 0x2000, 0xE000, 0x1F600]
ZERO_WIDTH = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\ufe0f", "\u0301"]


def look_alike(text, rng):
    """The text in full-width characters or with some letters of other scripts."""
    if rng.random() < 0.5:
        return "".join(chr(ord(c) + 0xFEE0) if 0x21 <= ord(c) <= 0x7E else c for c in text)
    return text.translate(str.maketrans("aeopcxi<>|", "аеорсхі‹›｜"))


def hostile_strings(count, spellings, template, seed=0):
    """Strings around the spellings of tokens: whole, cut, nested, repeated, disguised, in pieces of the template."""
    rng = random.Random(seed)
    fragments = [template[i : i + 40] for i in range(0, len(template), 40)]
    strings = [wrapper.format(spelling) for spelling in spellings for wrapper in ("{}", "a{}b", " {} ")]
    while len(strings) < count:
        parts = []
        for _ in range(rng.randint(1, 4)):
            spelling = rng.choice(spellings)
            cut = rng.randint(0, len(spelling))
            parts.append(
                rng.choice(
                    [
                        spelling,
                        spelling[:cut],
                        spelling[cut:],
                        spelling[:cut] + rng.choice(spellings) + spelling[cut:],
                        spelling[:cut] + rng.choice(ZERO_WIDTH) + spelling[cut:],
                        spelling[:cut] + " " + spelling[cut:],
                        spelling.upper(),
                        look_alike(spelling, rng),
                        spelling * rng.randint(2, 5),
                        rng.choice(fragments),
                        rng.choice(PLACEHOLDERS),
                        rng.choice(PIECES),
                        "".join(chr(rng.choice(PLANES) + rng.randrange(64)) for _ in "abc"),
                    ]
                )
            )
            parts.append(rng.choice(PIECES))
        strings.append(rng.choice(WRAPPERS).format("".join(parts)))
    rng.shuffle(strings)
    return strings[:count]


def more_hostile_strings(count, spellings, template, seed=0):
    """The same and, one in ten, very long ones, lone surrogates, characters that stand for bytes, and pieces of entities."""
    rng = random.Random(seed)
    strings = hostile_strings(count, spellings, template, seed)
    for number in range(0, count, 10):
        spelling = rng.choice(spellings)
        cut = rng.randint(0, len(spelling))
        strings[number] = rng.choice(
            [
                spelling * 300,
                "lorem ipsum " * 400 + spelling,
                spelling[:cut] + "\ud800" + spelling[cut:],
                "\udfff" + spelling + "\ud83d",
                spelling.replace(" ", "\u0120").replace("\n", "\u010a") + "\u0120" + spelling,
                "".join(f"<0x{byte:02X}>" for byte in spelling.encode()),
                "".join(f"&#{ord(character)};" for character in spelling),
                "".join(f"\\u{ord(character):04x}" for character in spelling if ord(character) < 0x10000),
                spelling + "\x1b[2K\r" + spelling,
                "\u202e" + spelling[::-1] + "\u202c" + spelling,
            ]
        )
    return strings


def spellings_of(tokenizer, reserved):
    """Spellings of the special and added tokens and of the reserved ids and their neighbours, and guesses for them."""
    ids = {*tokenizer.added_tokens_decoder, *(token_id + i for token_id in reserved for i in (-2, -1, 0, 1, 2))}
    tokens = [tokenizer.convert_ids_to_tokens(token_id) for token_id in sorted(ids) if token_id < len(tokenizer)]
    guesses = ["[BE]", "[AE]", "<BE>", "<|BE|>", "[BE0]", "<|be|>", "<unk>", "<s>", *map(str, reserved)]
    return list(dict.fromkeys([token for token in tokens if token] + guesses))


def forbidden_ids(tokenizer, reserved, plain=()):
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | set(reserved) | set(tokenizer.convert_tokens_to_ids(list(plain)))


def of(ids, forbidden):
    return [token_id for token_id in ids if token_id in forbidden]
