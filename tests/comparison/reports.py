"""Results of a comparison for the tests of its report, and readers of what the report makes of them."""

import html
import re
from html.parser import HTMLParser


HOSTILE = "</script><script>document.title = 'stolen'</script><img src=x onerror=\"document.title = 'stolen'\">"
VOID = {"meta", "br", "hr", "img", "input", "link"}


def make_run(seed, kl, no_prompt=0.4, **others):
    return {
        "seed": seed,
        "kl": kl,
        "kl_gap_closed": 1 - kl / no_prompt,
        "query_kl": [0.5 * kl, 1.5 * kl],
        "top1_agreement": 0.8,
        "answer_rouge_l": 0.3,
        "ttft_ms": 120.0,
        "kv_bytes": 1_200_000,
        "fit_seconds": 90.0,
        "steps": 20,
        "curve": [[0, 0.5], [10, 0.3], [20, kl]],
        "norm": [[0, 100.0], [20, 150.0]],
        "reconstruction": {"token_accuracy": 0.5, "greedy_prefix_match": 0.0, "curve": [[1, 1.0], [10, 0.6]]},
        "task": {"score": 0.6, "stderr": 0.02},
        "answers": [f"First of {seed}.", f"Second of {seed}."],
        **others,
    }


def gap_of(median, behaviour=0.5, **others):
    """What a run says of the gap."""
    return {
        "median": median,
        "median_interval": [median - 0.1, median + 0.05],
        "median_queries": 2,
        "unchanged_queries": 0,
        "behaviour": behaviour,
        "behaviour_interval": None,
        "quoted": None,
        "quoted_share": 0.1,
        "mean": 0.5,
        "mean_interval": None,
        **others,
    }


def with_gaps(results):
    """The results of this version, whose order by the median is another one than by the mean."""
    medians = {"none": 0.0, "full": 1.0, "be": 0.85, "cartridge:4": 0.6}
    for method in results["methods"]:
        for run in method["runs"]:
            run["gap"] = gap_of(medians[method["name"]], 0.8)


def bound(name, tokens, kl, score):
    nothing_learned = {"steps": None, "curve": [], "norm": [], "reconstruction": None, "fit_seconds": 0.0}
    run = make_run(None, kl, task={"score": score, "stderr": 0.02}, **nothing_learned)
    return {"name": name, "trains": False, "tokens": tokens, "bytes": 0, "runs": [run], "error": None}


def method_of(results, name):
    return next(method for method in results["methods"] if method["name"] == name)


class Document(HTMLParser):
    """Parses a page, and holds that every element is closed in its order, and that no attribute leads out of the page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.ids = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not {"src", "srcset", "href", "xlink:href", "data", "action", "background"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "")
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)
        elif "style" in self.open:
            assert "url(" not in data and "@import" not in data and "@font-face" not in data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def sections(self):
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def table_of(markdown):
    """Rows of a markdown table as dicts, by label."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def dots_of(page):
    """Place and text of each dot of the trade-off, by its series."""
    chart = page[page.index('id="trade-off"') : page.index('id="answers"')]
    found = re.findall(
        r'<span class="pin dot (\w+)" style="left:([\d.]+)%;top:([\d.]+)%"[^>]* aria-label="(.*?)"', chart
    )
    return {css: (float(left), float(top), html.unescape(text)) for css, left, top, text in found}


def comparison_results():
    """What a comparison finds: two bounds, three methods, one of which failed, and a task."""
    be = {"name": "be", "trains": True, "tokens": 1, "bytes": 2304, "error": None}
    prefix = {"name": "cartridge:4", "trains": True, "tokens": 4, "bytes": 5_000_000, "error": None}
    return {
        "model": "some/model",
        "prompt": {"name": "pirate.txt", "tokens": 300},
        "num_queries": {"train": 8, "validation": 2, "test": 2},
        "num_answer_tokens": 20,
        "max_answer_length": 10,
        "budget": {"max_steps": 20, "max_minutes": None},
        "seeds": [1, 2, 3],
        "task": "Quiz",
        "machine": {"device": "cpu", "threads": 1},
        "versions": {"torch": "2.13.0"},
        "queries": ["Who are you?", "Is it cold?"],
        "full_answers": ["A pirate.", "Aye."],
        "settings": {
            "prompt": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "queries": "da39a3ee", "model": "some/model",
            "methods": ["full", "none", "be", "cartridge:4", "llmlingua-2"], "seeds": [1, 2, 3], "max_steps": 20,
            "max_minutes": None, "max_answer_length": 10, "task": {"name": "GSM8K", "items": "0b"},
        },
        "methods": [
            bound("none", 0, 0.4, 0.5),
            bound("full", 300, 0.0, 0.8),
            {**be, "runs": [make_run(seed, kl) for seed, kl in ((1, 0.1), (2, 0.16), (3, 0.13))]},
            {"name": "llmlingua-2", "trains": False, "tokens": 30, "bytes": 90, "runs": [],
             "error": "The package is missing:\npip install it."},
            {**prefix, "runs": [make_run(1, 0.08, fit_seconds=80.0)]},
        ],
    }  # fmt: skip
