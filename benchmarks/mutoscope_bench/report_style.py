"""The style sheet of the report: light, dark and on paper. Colours of ours are blue, those of others are not."""

from __future__ import annotations

_PEERS = ["#c2410c", "#a16207", "#4d7c0f", "#0f766e", "#7e22ce", "#be185d", "#57534e", "#b91c1c", "#0369a1"]
_PEERS_DARK = ["#fb923c", "#facc15", "#a3e635", "#2dd4bf", "#c084fc", "#f472b6", "#a8a29e", "#f87171", "#38bdf8"]
_OURS = ["#1d4ed8", "#3b82f6", "#1e3a8a", "#60a5fa"]
_OURS_DARK = ["#93c5fd", "#3b82f6", "#dbeafe", "#60a5fa"]


def _lines(kind: str, colours: list[str]) -> str:
    return "".join(
        f".{kind}-{index}{{stroke:{colour}}}i.{kind}-{index}{{background:{colour}}}circle.{kind}-{index}{{fill:{colour}}}"
        for index, colour in enumerate(colours)
    )


STYLE = f"""
:root{{--ink:#1c1e21;--quiet:#5d646d;--page:#fbfbfa;--card:#fff;--rule:#e3e4e6;--ours:#2563eb;--peer:#a9afb8;
--behind:#c2410c;--warn:#fff6e0;--warn-ink:#7a4b00;--p0:#94a3b8;--p1:#9333ea;--p2:#2563eb;--p3:#0d9488;--p4:#d97706}}
@media (prefers-color-scheme:dark){{:root{{--ink:#e8eaed;--quiet:#9aa2ad;--page:#131518;--card:#1b1e22;--rule:#2e3238;
--ours:#60a5fa;--peer:#5b626c;--behind:#fb923c;--warn:#33290f;--warn-ink:#f5d38a;--p0:#64748b;--p1:#c084fc;
--p2:#60a5fa;--p3:#2dd4bf;--p4:#fbbf24}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
main{{max-width:920px;margin:0 auto;padding:40px 24px 64px}}
h1{{font-size:30px;letter-spacing:-.02em;margin:0}}
h2{{font-size:22px;letter-spacing:-.01em;margin:0}}
h3{{font-size:15px;font-weight:600;margin:0 0 8px}}
.facts,.purpose,figcaption,footer,.quiet{{color:var(--quiet);font-size:14px}}
.facts,.purpose{{margin:4px 0 20px}}
.warning{{background:var(--warn);color:var(--warn-ink);padding:10px 14px;border-radius:8px;font-size:14px}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:20px 0 8px}}
.card{{display:flex;flex-direction:column;background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:14px 16px;text-decoration:none;color:inherit;font-size:14px}}
.card .name{{font-weight:600}}
.card .big{{font-size:32px;font-weight:650;letter-spacing:-.03em;color:var(--ours);line-height:1.25}}
.card.behind .big{{color:var(--behind)}}
section{{border-top:1px solid var(--rule);margin-top:36px;padding-top:28px}}
figure{{margin:0 0 28px;background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:16px 18px}}
figcaption{{margin-top:6px}}
svg{{display:block;width:100%;height:auto;overflow:visible}}
text{{fill:var(--ink);font-size:13px;font-variant-numeric:tabular-nums}}
text.end{{text-anchor:end}}text.middle{{text-anchor:middle}}
text.tick,text.axis{{fill:var(--quiet);font-size:12px}}
text.strong{{font-weight:650}}
rect{{rx:2px}}
rect.ours{{fill:var(--ours)}}rect.peer{{fill:var(--peer)}}rect.behind{{fill:var(--behind)}}
.part-0{{fill:var(--p0)}}.part-1{{fill:var(--p1)}}.part-2{{fill:var(--p2)}}.part-3{{fill:var(--p3)}}.part-4{{fill:var(--p4)}}
i.part-0{{background:var(--p0)}}i.part-1{{background:var(--p1)}}
i.part-2{{background:var(--p2)}}i.part-3{{background:var(--p3)}}i.part-4{{background:var(--p4)}}
.grid{{stroke:var(--rule)}}
.mark{{stroke:var(--ink);stroke-dasharray:3 3}}
.whisker{{stroke:var(--ink);stroke-width:1.2;fill:none;opacity:.75}}
polyline.line{{fill:none;stroke-width:1.6;stroke-linejoin:round}}
polyline[class*=ours]{{stroke-width:2.8}}
{_lines("peer", _PEERS)}{_lines("ours", _OURS)}
@media (prefers-color-scheme:dark){{{_lines("peer", _PEERS_DARK)}{_lines("ours", _OURS_DARK)}}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 16px;margin:0 0 8px;font-size:13px;color:var(--quiet)}}
.legend i{{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}}
.legend i.swatch{{height:4px;width:16px;vertical-align:3px}}
details{{margin:0 0 20px}}
summary{{cursor:pointer;font-weight:600;font-size:15px}}
details p{{font-size:14px;color:var(--quiet)}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}}
th,td{{text-align:right;padding:4px 10px 4px 0;white-space:nowrap}}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){{text-align:left}}
th{{color:var(--quiet);font-weight:500}}
tr.first td{{border-top:1px solid var(--rule)}}td:first-child{{font-weight:600}}
.notes{{font-size:14px;padding-left:20px;margin:0}}
footer{{border-top:1px solid var(--rule);margin-top:36px;padding-top:12px}}
@media print{{details{{display:block}}main{{padding:0}}}}
"""
