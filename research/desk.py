"""
Three tasks of a customer desk, made from phrases: customers' requests sorted under 24 labels that the prompt defines, orders
turned into JSON, and returns decided by a policy. Their answers can be scored by rule, and without the prompt nobody knows them.

No phrase of a test query is one of the training's. Everything comes from a fixed seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple


LABELS = json.loads((Path(__file__).parent / "desk" / "labels.json").read_text(encoding="utf-8"))
NUM_TRAIN, NUM_TEST = 480, 120
SLOTS = {
    "time": ("yesterday", "last night", "Monday", "this morning", "last Friday"),
    "month": ("January", "March", "May", "August", "October", "December"),
    "city": ("Aldham", "Brixworth", "Corby", "Dunmow", "Elstree", "Fowey"),
    "device": ("laptop", "tablet", "phone", "television"),
}


class Desk(NamedTuple):
    """A prompt, training queries, and test items: a `question` and a `label` each."""

    prompt: str
    train: list[str]
    items: list[dict]


def labels() -> Desk:
    """Requests under 24 labels."""
    rng = random.Random(0)

    def filled(phrase: str) -> str:
        return phrase.format(**{name: rng.choice(values) for name, values in SLOTS.items()})

    # The first phrase of each label is its worked example, and no training query
    phrases = [phrase for entry in LABELS.values() for phrase in entry["train"][1:]]
    train = sorted({filled(phrase) for phrase in phrases * 8})
    items = [{"question": filled(text), "label": label} for label, entry in LABELS.items() for text in entry["test"]]
    rng.shuffle(items)

    defined = "\n".join(f"- {label}: {entry['means']}" for label, entry in LABELS.items())
    system = (
        "You sort what customers write to Larch, a provider of internet, telephone and television. Answer with the one label "
        f"that fits best, as it is written here, and with nothing else.\n\n{defined}\n\nExamples:\n\n"
    )
    shots = [f"{filled(entry['train'][0])} -> {label}" for label, entry in LABELS.items()]
    return Desk(system + "\n".join(rng.sample(shots, len(shots))), train, items)


PRODUCTS = {
    "BK-17": "mountain bike",
    "HL-02": "bicycle helmet",
    "TN-40": "two-person tent",
    "SB-11": "sleeping bag",
    "ST-33": "camping stove",
    "LN-08": "lantern",
    "BT-21": "pair of hiking boots",
    "RC-19": "rain jacket",
    "BP-55": "backpack",
    "WB-03": "water bottle",
    "MP-70": "map of the lakes",
    "CP-14": "compass",
}
PLURALS = {
    "pair of hiking boots": "pairs of hiking boots",
    "map of the lakes": "maps of the lakes",
    "compass": "compasses",
}
NUMBERS = {1: ("a", "one"), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4"), 6: ("six", "half a dozen")}
DELIVERIES = {
    "pickup": (
        ("I will collect it myself", "I can come to the shop and fetch it"),
        ("I'll pick everything up in person", "no need to send it, I come by"),
    ),
    "standard": (
        ("normal post is fine", "there is no hurry"),
        ("please send it the usual way", "take your time with the delivery"),
    ),
    "express": (
        ("I need it by tomorrow", "it is urgent"),
        ("please hurry, we leave on Saturday", "send it as fast as you can"),
    ),
}
GIFTS = {
    True: (
        ("It is a present, please wrap it.", "Could you gift-wrap it?"),
        ("It's for my sister's birthday, so wrap it nicely.", "Please pack it as a gift."),
    ),
    False: (("", ""), ("", "")),
}
ORDERS = (
    (
        "Hello, {name} here. I would like {what}; {how}. {gift}",
        "Please send me {what}. My name is {name}, {how}. {gift}",
    ),
    (
        "{name} writing. Could I order {what}? By the way, {how}. {gift}",
        "I'd like to buy {what}, {how}. {gift} Regards, {name}",
    ),
)
PEOPLE = (
    ("Ann Archer", "Ben Boyle", "Carla Cruz", "Dev Das", "Eve Ellis", "Finn Ford"),
    ("Gus Gray", "Hana Holt", "Ivo Ibsen", "Jade Jung", "Kurt Keane", "Lena Lund"),
)


def order(rng: random.Random, split: int) -> dict:
    """An order as a customer writes it, and what it comes to; `split` is 0 for training and 1 for test phrases."""
    chosen = rng.sample(sorted(PRODUCTS), rng.choice((1, 1, 2, 2, 3)))
    lines, words = [], []
    for code in chosen:
        quantity, product = rng.choice(sorted(NUMBERS)), PRODUCTS[code]
        lines.append({"code": code, "quantity": quantity})
        words.append(
            f"{rng.choice(NUMBERS[quantity])} {product if quantity == 1 else PLURALS.get(product, product + 's')}"
        )
    name, delivery, gift = rng.choice(PEOPLE[split]), rng.choice(sorted(DELIVERIES)), rng.random() < 0.4
    text = rng.choice(ORDERS[split]).format(
        name=name,
        what=" and ".join(filter(None, [", ".join(words[:-1]), words[-1]])),
        how=rng.choice(DELIVERIES[delivery][split]),
        gift=rng.choice(GIFTS[gift][split]),
    )
    label = {"name": name, "items": lines, "delivery": delivery, "gift": gift}
    return {"question": " ".join(text.split()), "label": label}


def orders() -> Desk:
    """Orders as JSON, with codes that the prompt lists."""
    rng = random.Random(1)
    examples = distinct(lambda: order(rng, 0), 6)
    catalogue = "\n".join(f"{code}: {product}" for code, product in PRODUCTS.items())
    shown = "\n\n".join(f"Order: {item['question']}\n{json.dumps(item['label'])}" for item in examples)
    prompt = (
        "You take orders for Cairn Outdoor. Turn each order into one line of JSON and write nothing else. The object has four "
        "fields, in this order: name, the customer's full name; items, a list of objects with the code of a product and its quantity, "
        "in the order in which they are asked for; delivery, which is pickup if the customer comes to the shop, express if it is "
        "urgent, and standard otherwise; gift, which is true if it should be wrapped and false otherwise.\n\n"
        f"Codes:\n{catalogue}\n\nExamples:\n\n{shown}"
    )
    used = {item["question"] for item in examples}
    train = distinct(lambda: order(rng, 0), NUM_TRAIN, used)
    return Desk(prompt, [item["question"] for item in train], distinct(lambda: order(rng, 1), NUM_TEST))


# Goods, the days within which they come back, the state that they must be in, and that in which they stay with the customer
GOODS = {
    "clothes": (
        30,
        ("a coat", "a dress", "a pair of trousers"),
        ("the tags are still on", "I never wore it"),
        ("I have worn it a few times", "I washed it already"),
    ),
    "electronics": (
        14,
        ("a camera", "a pair of headphones", "a keyboard"),
        ("the box is still sealed", "I have not opened it"),
        ("I opened it and tried it out", "the seal is broken"),
    ),
    "furniture": (
        60,
        ("a bookshelf", "a desk", "a wardrobe"),
        ("it is still in its parts", "I have not put it together"),
        ("it stands assembled in my room", "I already built it up"),
    ),
    "games": (
        30,
        ("a board game", "a puzzle", "a video game"),
        ("it is still wrapped in foil", "the foil is intact"),
        ("I took off the foil", "we played it once"),
    ),
}
NEVER = ("a gift card", "a mug with my name on it", "a pair of earrings", "a box of chocolates")
AGES = (3, 8, 12, 20, 25, 40, 55, 75)
RETURNS = (
    (
        "I bought {what} {when}, and {state}. Can I return it?",
        "May I bring back {what}? I got it {when}, and {state}.",
    ),
    (
        "{When} I purchased {what}. I don't want it, {state}. Will you take it back?",
        "I'd like my money back for {what}: ordered {when}, {state}.",
    ),
)
DEFECTS = (("it does not work", "it was broken when it came"), ("it arrived damaged", "it is faulty"))


def case(rng: random.Random, split: int) -> dict:
    """A request to return something, and the decision."""
    kind = rng.choice([*GOODS, *GOODS, "never"])
    days, age = 0, rng.choice(AGES)
    if kind == "never":
        what, state, fits = rng.choice(NEVER), rng.choice(("I changed my mind", "I do not like it")), False
    else:
        days, things, kept, used = GOODS[kind]
        fits = rng.random() < 0.6
        what, state = rng.choice(things), rng.choice(kept if fits else used)
    defect, dated = rng.random() < 0.2, rng.random() < 0.8
    if defect:
        state = rng.choice(DEFECTS[split])
    when = f"{age} days ago" if dated else "some time ago"
    if defect:
        label = "ALLOW"
    elif kind == "never" or not fits:
        label = "REFUSE"
    elif not dated:
        label = "ASK"
    else:
        label = "ALLOW" if age <= days else "REFUSE"
    text = rng.choice(RETURNS[split]).format(what=what, when=when, When=when[0].upper() + when[1:], state=state)
    return {"question": text, "label": label}


def returns() -> Desk:
    """Returns decided by a policy, in one word."""
    rng = random.Random(2)
    examples = distinct(lambda: case(rng, 0), 16)
    shown = "\n\n".join(f"Customer: {item['question']}\nDecision: {item['label']}" for item in examples)
    prompt = (
        "You decide for the shop Hollin & Daughters whether a customer may return something. Answer with one word, ALLOW, REFUSE "
        "or ASK, and nothing else. Apply the first of these rules that fits.\n\n"
        "1. What is broken, faulty or arrived damaged comes back at any time: ALLOW.\n"
        "2. Gift cards, things made with a name, earrings and food never come back: REFUSE.\n"
        "3. Clothes must be unworn and unwashed, electronics sealed, furniture not put together, and games in their foil. If they are "
        "not: REFUSE.\n"
        "4. If the customer does not say how many days ago it was bought: ASK.\n"
        "5. Clothes and games come back within 30 days, electronics within 14, furniture within 60: ALLOW, and after that REFUSE.\n\n"
        f"Examples:\n\n{shown}"
    )
    used = {item["question"] for item in examples}
    train = distinct(lambda: case(rng, 0), NUM_TRAIN, used)
    return Desk(prompt, [item["question"] for item in train], distinct(lambda: case(rng, 1), NUM_TEST))


def distinct(make: Callable[[], dict], count: int, used: Collection[str] = ()) -> list[dict]:
    """Items whose questions differ, and are not among `used`."""
    made: dict[str, dict] = {}
    for _ in range(50 * count):
        item = make()
        if item["question"] not in used:
            made.setdefault(item["question"], item)
        if len(made) == count:
            break
    return list(made.values())
