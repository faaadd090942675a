"""
Tasks made from phrases, of the kind that people give a small model that can read code: questions turned into SQL over tables that the
prompt describes and into pandas, requests turned into commands that only the prompt knows, bookings turned into JSON, and payments
turned into lines of a cash book.
A rule scores the answers, and without the prompt the model cannot know their form.

The test's phrases, names, times, goods and notes are not the training's; days of the week, party sizes, amounts, fees, regions, kinds of
boats and states of trees are. Everything comes from a fixed seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from typing import NamedTuple


NUM_TRAIN, NUM_TEST = 480, 120
PEOPLE = (
    (
        "Ann Archer",
        "Ben Boyle",
        "Carla Cruz",
        "Dev Das",
        "Eve Ellis",
        "Finn Ford",
        "Gus Gray",
        "Hana Holt",
        "Ivo Ibsen",
    ),
    ("Jade Jung", "Kurt Keane", "Lena Lund", "Mia Moss", "Ned Noble", "Olga Orr"),
)


class Desk(NamedTuple):
    """A prompt with worked examples as turns, and items to train on and to test: a `question` and a `label` each."""

    prompt: list[dict]
    train: list[dict]
    items: list[dict]


def desk(make: Callable[[random.Random, int], dict], system: str, num_examples: int, seed: int) -> Desk:
    """`make` makes an item, of split 0, training, or 1, test. The worked examples are of the training's phrases."""
    rng = random.Random(seed)
    examples = distinct(lambda: make(rng, 0), num_examples, by="kind")
    turns = [{"role": "system", "content": system}]
    for item in examples:
        turns += [{"role": "user", "content": item["question"]}, {"role": "assistant", "content": answer(item)}]
    train = distinct(lambda: make(rng, 0), NUM_TRAIN, used={item["question"] for item in examples})
    items = [{name: item[name] for name in ("question", "label")} for item in distinct(lambda: make(rng, 1), NUM_TEST)]
    return Desk(turns, train, items)


def answer(item: dict) -> str:
    """What is to be answered to an item."""
    return item["label"] if isinstance(item["label"], str) else json.dumps(item["label"])


def distinct(make: Callable[[], dict], count: int, used: Collection[str] = (), by: str = "question") -> list[dict]:
    """Up to `count` items that differ in `by`, and whose questions are not among `used`; fewer where the phrases run out."""
    made: dict[str, dict] = {}
    for _ in range(100 * count):
        item = make()
        if item["question"] not in used:
            made.setdefault(item[by], item)
        if len(made) == count:
            break
    return list(made.values())


class Form(NamedTuple):
    """What people say, for training and for the test, and what it comes to."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str


def filled(form: Form, rng: random.Random, split: int, values: dict[str, object]) -> dict:
    phrase = rng.choice((form.train, form.test)[split])
    return {"question": phrase.format(**values), "label": form.label.format(**values), "kind": form.label}


TABLES = """You translate questions about the boat hire Fenwick into one line of SQL and write nothing else. The tables:

boats(id, name, kind, seats, price_per_day)
customers(id, name, city, phone)
hires(id, boat_id, customer_id, day, days)

kind is one of 'rowing', 'sailing', 'motor'. day is a date such as '2024-06-03'."""
BOATS = (
    ("Swan", "Heron", "Otter", "Plover", "Lapwing", "Salmon", "Avocet", "Mallard", "Newt"),
    ("Teal", "Egret", "Beaver", "Curlew", "Tern"),
)
CITIES = (
    ("Aldham", "Brixworth", "Corby", "Dunmow", "Keswick", "Ludlow", "Malton", "Oakham", "Ripon"),
    ("Elstree", "Fowey", "Garstang", "Hexham", "Selby"),
)
OF_BOAT = "SELECT customers.name FROM customers JOIN hires ON hires.customer_id = customers.id JOIN boats ON boats.id = hires.boat_id"
OF_CUSTOMER = "SELECT boats.name FROM boats JOIN hires ON hires.boat_id = boats.id JOIN customers ON customers.id = hires.customer_id"
QUESTIONS = (
    Form(
        ("How many {kind} boats do we have?", "Count the {kind} boats."),
        ("What is the number of our {kind} boats?", "The count of {kind} boats, please."),
        "SELECT COUNT(*) FROM boats WHERE kind = '{kind}';",
    ),
    Form(
        ("Which boats have {seats} seats or more?", "List the names of boats for at least {seats} people."),
        ("Name the boats with at least {seats} seats.", "In which boats do {seats} people or more fit?"),
        "SELECT name FROM boats WHERE seats >= {seats};",
    ),
    Form(
        ("Who lives in {city}?", "List the customers from {city}."),
        ("Which customers live in {city}?", "Name the customers in {city}."),
        "SELECT name FROM customers WHERE city = '{city}';",
    ),
    Form(
        ("What does the {boat} cost per day?", "Price of the {boat}?"),
        ("How much is the {boat} for a day?", "Tell me the daily price of the {boat}."),
        "SELECT price_per_day FROM boats WHERE name = '{boat}';",
    ),
    Form(
        ("What is the phone number of {person}?", "How can I call {person}?"),
        ("Give me {person}'s phone number.", "Under which number do I reach {person}?"),
        "SELECT phone FROM customers WHERE name = '{person}';",
    ),
    Form(
        ("Which boats cost less than {price} a day?", "Boats below {price} per day, please."),
        ("Name the boats that cost less than {price} per day.", "Show me what is cheaper than {price} a day."),
        "SELECT name FROM boats WHERE price_per_day < {price};",
    ),
    Form(
        ("How many hires start on {day}?", "Count the hires of {day}."),
        ("What is the number of hires on {day}?", "How many hires do we have on {day}?"),
        "SELECT COUNT(*) FROM hires WHERE day = '{day}';",
    ),
    Form(
        ("What is our dearest {kind} boat?", "Which {kind} boat costs most?"),
        ("Name the most expensive {kind} boat.", "Which of our {kind} boats has the highest price?"),
        "SELECT name FROM boats WHERE kind = '{kind}' ORDER BY price_per_day DESC LIMIT 1;",
    ),
    Form(
        ("Who has hired the {boat}?", "List everybody who took the {boat}."),
        ("Which customers hired the {boat}?", "Name everybody who has had the {boat}."),
        OF_BOAT + " WHERE boats.name = '{boat}';",
    ),
    Form(
        ("Which boats did {person} hire?", "List the boats that {person} took."),
        ("What boats has {person} hired?", "Name the boats that {person} has had."),
        OF_CUSTOMER + " WHERE customers.name = '{person}';",
    ),
    Form(
        ("How many customers are from {city}?", "Count the people from {city}."),
        ("What is the number of customers in {city}?", "How many people from {city} do we know?"),
        "SELECT COUNT(*) FROM customers WHERE city = '{city}';",
    ),
    Form(
        ("What do {kind} boats cost on average?", "Average price of a {kind} boat?"),
        ("Tell me the mean price of our {kind} boats.", "What is a {kind} boat per day, on average?"),
        "SELECT AVG(price_per_day) FROM boats WHERE kind = '{kind}';",
    ),
)


def question(rng: random.Random, split: int) -> dict:
    values = {
        "kind": rng.choice(("rowing", "sailing", "motor")),
        "boat": rng.choice(BOATS[split]),
        "city": rng.choice(CITIES[split]),
        "seats": rng.choice(((2, 3, 4, 5, 6, 11, 14), (7, 8, 9, 10, 12))[split]),
        "price": rng.choice(((20, 25, 40, 45, 60, 70, 90), (30, 35, 50, 55, 80))[split]),
        "day": f"2024-0{rng.randint(4, 9)}-{rng.randint(*((10, 19), (20, 28))[split])}",
        "person": rng.choice(PEOPLE[split]),
    }
    return filled(rng.choice(QUESTIONS), rng, split, values)


MANUAL = """You turn the requests of operators into one command of fenctl and write nothing else. The commands:

fenctl restart SERVICE --region eu|us|ap
fenctl scale SERVICE --to NUMBER
fenctl logs SERVICE --since DURATION
fenctl deploy SERVICE --tag VERSION
fenctl rollback SERVICE
fenctl drain NODE
fenctl cert renew DOMAIN
fenctl backup DATABASE --keep DAYS
fenctl mute ALERT --for DURATION
fenctl user add NAME --role admin|reader
fenctl user remove NAME
fenctl status SERVICE

eu is Europe, us is America, ap is Asia. A DURATION is 30m or 2h."""
REQUESTS = (
    Form(
        ("Restart {service} in {place}.", "{service} hangs in {place}, please start it again."),
        ("Please give {service} in {place} a restart.", "In {place}, restart {service}."),
        "fenctl restart {service} --region {region}",
    ),
    Form(
        ("We need {number} copies of {service}.", "Run {service} {number} times."),
        ("Scale {service} to {number}.", "Make it {number} instances of {service}."),
        "fenctl scale {service} --to {number}",
    ),
    Form(
        ("What did {service} log in the last {hours} hours?", "Logs of {service} for {hours} hours, please."),
        ("Show me the last {hours} hours of {service}'s logs.", "I need to see {hours} hours of logs of {service}."),
        "fenctl logs {service} --since {hours}h",
    ),
    Form(
        ("Put version {version} of {service} online.", "Roll out {service} {version}."),
        ("Deploy {service} in version {version}.", "{version} of {service} can go live."),
        "fenctl deploy {service} --tag {version}",
    ),
    Form(
        ("Take back the last release of {service}.", "The new {service} is broken, go back to the old one."),
        ("Undo the last deploy of {service}.", "Return {service} to the version before."),
        "fenctl rollback {service}",
    ),
    Form(
        ("Empty {node}, we replace its disk.", "Move everything away from {node}."),
        ("Please drain {node}.", "Clear {node} for maintenance."),
        "fenctl drain {node}",
    ),
    Form(
        ("The certificate of {domain} ends soon.", "Get a new certificate for {domain}."),
        ("Renew the certificate of {domain}.", "{domain} needs a fresh certificate."),
        "fenctl cert renew {domain}",
    ),
    Form(
        ("Save {database} and keep it for {days} days.", "A copy of {database} for {days} days, please."),
        ("Back up {database}, to be kept {days} days.", "Make a backup of {database} that stays {days} days."),
        "fenctl backup {database} --keep {days}",
    ),
    Form(
        ("Silence {alert} for {minutes} minutes.", "{alert} should be quiet for {minutes} minutes."),
        ("Mute {alert} for the next {minutes} minutes.", "I do not want to hear {alert} for {minutes} minutes."),
        "fenctl mute {alert} --for {minutes}m",
    ),
    Form(
        ("{person} joins us and may only look.", "Let {person} read everything."),
        ("Add {person}, with the right to read.", "{person} needs an account for reading."),
        "fenctl user add {person} --role reader",
    ),
    Form(
        ("{person} left the company.", "Delete the account of {person}."),
        ("Remove {person}.", "{person} must not have an account any more."),
        "fenctl user remove {person}",
    ),
    Form(
        ("How is {service} doing?", "Is {service} up?"),
        ("What is the state of {service}?", "Tell me whether {service} runs."),
        "fenctl status {service}",
    ),
)


def request(rng: random.Random, split: int) -> dict:
    region, place = rng.choice((("eu", "Europe"), ("us", "America"), ("ap", "Asia")))
    values = {
        "region": region,
        "place": place,
        "service": rng.choice(
            (("web", "billing", "search", "mailer"), ("login", "images", "reports", "queue"))[split]
        ),
        "number": rng.choice(((2, 3, 4, 6), (5, 7, 8, 12))[split]),
        "hours": rng.choice(((2, 4, 6, 12), (3, 5, 8, 24))[split]),
        "minutes": rng.choice(((10, 20, 30, 45), (15, 25, 40, 90))[split]),
        "days": rng.choice(((7, 14, 30), (10, 21, 60))[split]),
        "version": f"{rng.choice(((1, 2), (3, 4))[split])}.{rng.randint(0, 9)}.{rng.randint(0, 9)}",
        "node": f"node-{rng.randint(*((1, 20), (21, 40))[split])}",
        "domain": rng.choice((("shop.fen.example", "api.fen.example"), ("docs.fen.example", "my.fen.example"))[split]),
        "database": rng.choice((("orders", "stock"), ("people", "prices"))[split]),
        "alert": rng.choice((("disk-full", "high-load"), ("low-memory", "slow-answers"))[split]),
        "person": rng.choice((("ann", "ben", "carla", "dev"), ("gus", "hana", "ivo", "jade"))[split]),
    }
    return filled(rng.choice(REQUESTS), rng, split, values)


FIELDS = """You take bookings for the restaurant Quayside. Turn each message into one line of JSON and write nothing else. The \
fields, in this order: name; people, a number; day; time, as the guest writes it; note, what else the guest asks for, or null."""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = (("noon", "6 pm", "7 pm", "8 pm", "half past six", "19:30"), ("1 pm", "9 pm", "half past seven", "20:15"))
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "eight": 8}
BOOKINGS = (
    (
        "A table for {number} on {day} at {time}. My name is {name}.{note}",
        "{name} here, can you seat {number} people on {day} at {time}?{note}",
    ),
    (
        "I would like to book for {number}, {day}, {time}, in the name of {name}.{note}",
        "We are {number} and come on {day} at {time}; {name} is the name.{note}",
    ),
)
NOTES = (
    ("a high chair", "a quiet corner", "a cake with candles", "a vegan menu", "a seat in the garden"),
    ("a seat by the window", "room for a pram", "gluten-free bread", "a bowl for the dog"),
)


def booking(rng: random.Random, split: int) -> dict:
    number, note = rng.choice(sorted(NUMBERS)), rng.choice(NOTES[split]) if rng.random() < 0.5 else None
    said = {"name": rng.choice(PEOPLE[split]), "day": rng.choice(DAYS), "time": rng.choice(TIMES[split])}
    text = rng.choice(BOOKINGS[split]).format(number=number, note=f" We need {note}." if note else "", **said)
    label = {"name": said["name"], "people": NUMBERS[number], "day": said["day"], "time": said["time"], "note": note}
    return {"question": text, "label": label, "kind": text}


COLUMNS = """You translate questions about the trees of a town into one line of pandas and write nothing else. The trees are in the \
DataFrame df, with these columns:

species, a name such as 'oak'
street, a name such as 'Mill Lane'
height_m, a number
planted, a year
warden, the name of who looks after the tree, or NaN
state, one of 'good', 'weak', 'dead'"""
SPECIES = (("oak", "lime", "maple", "elm", "birch", "pear"), ("ash", "beech", "plane", "rowan"))
STREETS = (
    ("Mill Lane", "High Street", "Park Row", "Abbey Road", "North Walk"),
    ("Castle Hill", "Station Road", "Quay Street"),
)
TREES = (
    Form(
        ("How many {species} trees are there?", "Count the {species} trees."),
        ("What is the number of {species} trees?", "The count of {species} trees, please."),
        "len(df[df['species'] == '{species}'])",
    ),
    Form(
        ("Which trees stand in {street}?", "Show the trees of {street}."),
        ("List all trees in {street}.", "What grows in {street}?"),
        "df[df['street'] == '{street}']",
    ),
    Form(
        ("Which trees are taller than {height} metres?", "Show the trees above {height} metres."),
        ("List the trees of more than {height} metres.", "What is taller than {height} metres?"),
        "df[df['height_m'] > {height}]",
    ),
    Form(
        ("How tall are the {species} trees on average?", "Average height of the {species} trees?"),
        ("What is the mean height of our {species} trees?", "Tell me how tall a {species} tree is on average."),
        "df[df['species'] == '{species}']['height_m'].mean()",
    ),
    Form(
        ("Which trees were planted before {year}?", "Show what was planted before {year}."),
        ("List the trees from before {year}.", "What is older than {year}?"),
        "df[df['planted'] < {year}]",
    ),
    Form(
        ("Which trees does {person} look after?", "Show the trees of {person}."),
        ("List the trees that {person} takes care of.", "What is in the care of {person}?"),
        "df[df['warden'] == '{person}']",
    ),
    Form(
        ("Which trees have no warden?", "Show the trees that nobody looks after."),
        ("List the trees without a warden.", "What has no warden?"),
        "df[df['warden'].isna()]",
    ),
    Form(
        ("How many trees are {state}?", "Count the {state} trees."),
        ("What is the number of {state} trees?", "The count of {state} trees, please."),
        "len(df[df['state'] == '{state}'])",
    ),
    Form(
        ("How many trees of each species are there?", "Count the trees by species."),
        ("Give me the number of trees for every species.", "How often do we have each species?"),
        "df['species'].value_counts()",
    ),
    Form(
        ("What is the tallest tree in {street}?", "Which tree of {street} is the tallest?"),
        ("Show the tallest tree of {street}.", "In {street}, which tree is the tallest?"),
        "df[df['street'] == '{street}'].nlargest(1, 'height_m')",
    ),
)


def tree(rng: random.Random, split: int) -> dict:
    values = {
        "species": rng.choice(SPECIES[split]),
        "street": rng.choice(STREETS[split]),
        "height": 2 * rng.randint(2, 14) + split,
        "year": 2 * rng.randint(940, 1009) + split,
        "person": rng.choice(PEOPLE[split]),
        "state": rng.choice(("good", "weak", "dead")),
    }
    return filled(rng.choice(TREES), rng, split, values)


BOOK = """You keep the cash book of a club. Turn each message into one line and write nothing else. The line has four fields with a \
semicolon between them: the day in three letters, who paid, what for, and the amount with two decimals, negative where the club gets money."""
GOODS = (
    ("stamps", "paint", "chairs", "coffee", "two ropes", "a lamp", "printer ink", "the hall"),
    ("envelopes", "a ladder", "tea", "three buckets", "glue", "the band"),
)
PAYMENTS = (
    ("{name} bought {goods} on {day} for {amount}.", "On {day} {name} paid {amount} for {goods}."),
    ("{name} spent {amount} on {goods} on {day}.", "{day}: {name} paid {amount} for {goods}."),
)
FEES = (
    ("{name} paid us the {fee} of {amount} on {day}.", "We got {amount} from {name} on {day}, the {fee}."),
    ("On {day} the {fee} of {name} came in: {amount}.", "{name} gave us {amount} on {day} for the {fee}."),
)


def payment(rng: random.Random, split: int) -> dict:
    pounds, pence = rng.randint(2, 90), rng.choice((0, 20, 50, 75))
    amount = f"{pounds} pounds" + (f" {pence}" if pence else "")
    said = {"name": rng.choice(PEOPLE[split]), "day": rng.choice(DAYS), "amount": amount}
    fee = rng.random() < 0.3
    said["fee" if fee else "goods"] = what = rng.choice(("membership fee", "course fee") if fee else GOODS[split])
    text = rng.choice((FEES if fee else PAYMENTS)[split]).format(**said)
    label = f"{said['day'][:3]};{said['name']};{what};{'-' if fee else ''}{pounds}.{pence:02d}"
    return {"question": text[0].upper() + text[1:], "label": label, "kind": text}


DESKS = {
    "sql": (question, TABLES, len(QUESTIONS)),
    "commands": (request, MANUAL, len(REQUESTS)),
    "bookings": (booking, FIELDS, 10),
    "pandas": (tree, COLUMNS, len(TREES)),
    "cash": (payment, BOOK, 12),
}


def desks() -> dict[str, Desk]:
    return {name: desk(*parts, seed=seed) for seed, (name, parts) in enumerate(DESKS.items())}
