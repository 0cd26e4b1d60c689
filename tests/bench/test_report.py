"""The page: alone, complete, small, and safe whatever a transcript holds."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from paras2s_cli.bench.charts import interval_svg, training_charts
from paras2s_cli.bench.intervals import Interval
from paras2s_cli.bench.report import _json, write_report
from paras2s_cli.bench.stats import summarise

VOID = {"meta", "link", "col", "input", "br"}


class Page(HTMLParser):
    """Tags, attributes and text; fails on a tag that is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]


@pytest.fixture(scope="module")
def report(bench_rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    summary = summarise(bench_rows, compare=[("aligned", "sft")], draws=200)
    training = [{"step": i, "reward": 3 + i / 10, "kl_text": 0.1 * i, "kl_audio": None} for i in range(5)]
    meta = {"judge": "pocket", "seeds": [0, 1]}
    write_report(path, summary, bench_rows, title="A bench", meta=meta, players=20, training=training)
    return path


def test_the_page_stands_alone(report):
    text = report.read_text()
    page = Page(text)
    assert len(text) < 6_000_000
    assert not re.search(r"https?:|//[a-z]", re.sub(r'<script type="application/json".*?</script>', "", text)), "no network"
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href")]
    assert links == ["data:,"]
    assert [p.name for p in report.parent.iterdir()] == ["report.html"], "nothing temporary is left"


def test_only_the_pages_own_script_may_run(report):
    text = report.read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_every_player_has_its_clip_and_every_clip_a_player(report):
    page = Page(report.read_text())
    clips = json.loads(re.search(r'id="clips">(.*?)</script>', report.read_text(), re.S)[1])
    buttons = page.all("button")
    assert {b["data-clip"] for b in buttons} == set(clips)
    assert len(buttons) == 20 * 2 * 6 and all(b["aria-label"].startswith("Play ") for b in buttons)
    assert all(base64.b64decode(clip)[:1] == b"\xff" for clip in clips.values()), "an MP3 frame begins with 0xff"
    assert len(page.all("article")) == 20


def test_a_system_that_is_measured_in_one_mode_of_its_own_is_heard_too(bench_rows, tmp_path):
    rows = [replace(row, mode="as it is") if row.system == "cascade" else row for row in bench_rows]
    write_report(tmp_path / "r.html", summarise(rows, draws=50), rows, title="t", meta={}, players=3)
    page = Page((tmp_path / "r.html").read_text())
    systems = list(dict.fromkeys(row.system for row in rows))
    assert [a["data-system"] for a in page.all("tr") if "data-system" in a] == systems * 3 and len(page.all("button")) == 3 * 2 * 6
    assert any("3 of 32 sentences, greedy, as it is, chosen" in words for words in page.words)


def test_tables_and_controls_are_labelled(report):
    page = Page(report.read_text())
    assert len(page.all("caption")) == len(page.all("table", **{"class": "systems"})) == 3
    assert all(a.get("scope") for t, a in page.tags if t == "th")
    assert page.all("html", lang="en") and page.all("audio", id="audio")
    assert {a["aria-label"] for a in page.all("svg", role="img")} and page.all("form")[0]["aria-label"]


def test_what_was_said_is_never_markup(bench_rows, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"' {{cards}} & <!--"
    fields = (
        "text",
        "heard_text",
        "written_text",
        "tone_in",
        "tone_out",
        "reason",
        "style",
        "dimension",
        "system",
        "mode",
    )
    rows = [replace(row, **{name: f"{getattr(row, name)} {evil}" for name in fields}) for row in bench_rows[:640:5]]
    rows += [replace(row, style="other", query="other") for row in rows[:1]]
    rows = [replace(row, mode=rows[0].mode) for row in rows]
    summary = summarise(rows, compare=[(rows[0].system, rows[0].system)], draws=50)
    write_report(tmp_path / "r.html", summary, rows, title=evil, meta={evil: evil}, players=4)
    page = Page((tmp_path / "r.html").read_text())
    assert len(page.all("script")) == 2 and not page.all("img") and page.all("article")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any(evil in words for words in page.words)
    assert {evil in a["data-dimension"] for a in page.all("article")} == {True}


def test_json_in_a_script_cannot_end_it():
    text = _json({"a": "</script><!-- &"})
    assert not set("<>&") & set(text) and json.loads(text) == {"a": "</script><!-- &"}


def test_the_same_rows_give_the_same_page(report, bench_rows, tmp_path):
    summary = summarise(bench_rows, draws=50)
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, summary, bench_rows, title="t", meta={}, players=2)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_clips_beyond_the_budget_leave_sentences_out(bench_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("paras2s_cli.bench.report.BUDGET", 30_000)
    write_report(tmp_path / "r.html", summarise(bench_rows, draws=50), bench_rows, title="t", meta={})
    page = Page((tmp_path / "r.html").read_text())
    assert 0 < len(page.all("article")) < 20
    assert f"{len(page.all('article'))} of 32 sentences" in " ".join(page.words)


def test_missing_sound_scores_and_answers_are_said(scored, tmp_path):
    rows = [scored(query=s, style=s, score=None, heard_text="", reason="silence") for s in ("child", "adult")]
    rows.append(scored(system="sft", query="adult", style="adult"))
    write_report(tmp_path / "r.html", summarise(rows), rows, title="t", meta={})
    page = Page((tmp_path / "r.html").read_text())
    words = " ".join(page.words)
    assert all(said in words for said in ("no score", "nothing heard", "no answer", "0 of 2"))
    assert all("disabled" in b and b["aria-label"].startswith("No sound") for b in page.all("button"))


def test_an_empty_bench_still_makes_a_page(tmp_path):
    write_report(tmp_path / "r.html", summarise([]), [], title="t", meta={})
    assert Page((tmp_path / "r.html").read_text()).all("h1")


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, summarise([]), [], title="t", meta={})
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interval_is_drawn_to_scale():
    drawn = ElementTree.fromstring(interval_svg(Interval(3.0, 1.0, 5.0, 9, 3)))
    whisker = next(e for e in drawn if e.get("class") == "whisker")
    assert (whisker.get("x1"), whisker.get("x2")) == ("4.0", "88.0")
    assert next(e for e in drawn if e.tag == "circle").get("cx") == "46.0"
    assert interval_svg(None) == "" and "whisker" not in interval_svg(Interval(3.0, None, None, 1, 1))


def test_charts_draw_what_is_there_and_pass_over_the_rest():
    rows = [{"step": i, "reward": 2.0 + i, "kl_text": 0.5, "entropy_text": float("nan")} for i in range(3)]
    rows.append({"step": 3, "reward": None})
    reward, kl = training_charts(rows)
    points = re.search(r'points="([^"]+)"', reward)[1].split()
    assert len(points) == 3 and points[0].split(",")[0] == "36.0"
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights, reverse=True)
    assert "reward from 2 to 4" in reward and "KL" in kl
    assert training_charts([]) == [] and training_charts([{"step": 1}]) == []
    both = training_charts([{"step": i, "reward": 3 + i, "judge_score": 2.5 + i} for i in range(4)])
    assert len(both) == 2 and "judge minus reward -0.50" in both[1]
    for figure in (*both, kl):
        ElementTree.fromstring(figure)
