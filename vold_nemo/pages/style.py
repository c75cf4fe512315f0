"""The page's style sheet: one column, light and dark, fit for a phone."""

ARM_COLOURS = {"base": "var(--base)", "sft": "var(--sft)", "sft_grpo": "var(--grpo)", "sft_vold": "var(--vold)"}
FURTHER = ("var(--c5)", "var(--c6)", "var(--c7)", "var(--c8)")
PHASE_COLOURS = {
    "generate": "var(--vold)", "reward": "var(--c5)", "teacher": "var(--grpo)", "train": "var(--sft)",
    "sync": "var(--c6)", "validate": "var(--c7)", "data": "var(--base)",
}  # fmt: skip


def arm_colour(arm: str, place: int) -> str:
    return ARM_COLOURS.get(arm, FURTHER[place % len(FURTHER)])


CSS = """
:root{--page:#f6f5f1;--card:#fff;--ink:#1c2330;--soft:#5d6675;--line:#e2e0d8;--base:#9aa3af;--sft:#4e7fb8;--grpo:#d9902f;
--vold:#1d8f72;--c5:#a45c9e;--c6:#7a8a3a;--c7:#c0546a;--c8:#5b6bb5;--good:#17795f;--bad:#b3362f;--open:#8a6a14;--goodbg:#e4f3ee;
--badbg:#fae8e5;--openbg:#f8f0d9;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--page:#12161d;--card:#1a2029;--ink:#e6e9ee;--soft:#9aa5b4;--line:#2c3542;
--base:#8b95a3;
--sft:#6ea3e0;--grpo:#eaab55;--vold:#3fbf9b;--c5:#c88bc3;--c6:#a9bb62;--c7:#e28497;--c8:#8f9de0;--good:#5fd3b1;--bad:#f08f86;
--open:#e2c261;--goodbg:#15332c;--badbg:#3a1f1e;--openbg:#352d16;--paper:#e9e7e0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 20px 80px}
header p.over{margin:0;color:var(--soft);letter-spacing:.08em;text-transform:uppercase;font-size:12.5px;font-weight:600}
h1{font-size:clamp(27px,5vw,40px);line-height:1.15;margin:6px 0 10px;letter-spacing:-.02em;text-wrap:balance}
h2{font-size:22px;margin:52px 0 6px;letter-spacing:-.01em}
h2+p.lead{margin:0 0 18px}
p.lead{color:var(--soft);max-width:72ch}
a{color:var(--sft)}
.verdict{border-radius:14px;padding:20px 24px;margin:26px 0 0;border-left:6px solid}
.verdict strong{font-size:clamp(18px,2.6vw,22px);line-height:1.3;display:block;letter-spacing:-.01em}
.verdict.good{background:var(--goodbg);border-color:var(--good)}.verdict.bad{background:var(--badbg);border-color:var(--bad)}
.verdict.open{background:var(--openbg);border-color:var(--open)}
ul.says{list-style:none;padding:0;margin:14px 0 0}
ul.says li{padding:5px 0 5px 24px;position:relative}
ul.says li::before{position:absolute;left:0;font-weight:700}
ul.says .small{display:block}
li.good::before{content:"+";color:var(--good)}li.bad::before{content:"–";color:var(--bad)}li.open::before{content:"?";
color:var(--open)}
.small{color:var(--soft);font-size:14px}
.grid2,.grid3{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.grid3{grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}
figure,.panel{background:var(--card);border:1px solid var(--line);border-radius:14px;margin:0;padding:16px 16px 12px;
min-width:0}
figcaption{font-weight:600;margin-bottom:8px}
svg{width:100%;height:auto;display:block;font:inherit}
svg .grid{stroke:var(--line)}svg .tick{fill:var(--soft);font-size:11.5px}svg .name{fill:var(--ink);font-size:13px}
svg .value{fill:var(--ink);font-size:13px;font-weight:600}svg .whisker{stroke:var(--ink);stroke-width:1.5;fill:none;
opacity:.75}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:8px;font-size:13px;color:var(--soft)}
.mark i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.mark.dashed i{background:none;border-top:2px dashed;height:0;border-radius:0;vertical-align:4px;width:16px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:14px;margin-top:16px}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{padding:9px 14px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th{font-weight:600;color:var(--soft);font-size:13px;vertical-align:bottom}
td:first-child{white-space:nowrap}
td.n,th.n{text-align:right}td.n{white-space:nowrap}
td em{font-style:normal;color:var(--soft);font-size:13px;display:block}
.evidence{display:inline-block;min-width:15em}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
.tone{font-weight:600}.tone.good{color:var(--good)}.tone.bad{color:var(--bad)}.tone.open{color:var(--open)}
.example{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:18px;margin-top:16px}
.cards{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:4px 0 12px}
.cards img{height:58px;border-radius:6px;background:var(--paper);border:1px solid var(--line)}
.cards img.large{height:auto;max-width:100%;max-height:300px}
.answers{display:grid;gap:10px;grid-template-columns:repeat(auto-fit,minmax(min(100%,215px),1fr))}
.answer{border:1px solid var(--line);border-radius:10px;padding:10px 12px;border-top:4px solid;min-width:0}
.answer header{display:flex;justify-content:space-between;gap:8px;font-size:13px;font-weight:600}
.answer pre{margin:8px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;
font:13.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace;max-height:320px;overflow:auto}
.right{color:var(--good)}.wrong{color:var(--bad)}
.stack{display:grid;grid-template-columns:110px 1fr 74px;gap:12px;align-items:center;margin:10px 0;font-size:14px}
.stack b{font-weight:600}.stack i{font-style:normal;text-align:right;color:var(--soft);font-variant-numeric:tabular-nums;
white-space:nowrap}
.track{display:flex;height:24px;border-radius:6px;overflow:hidden;background:var(--page)}
.track span{display:block;height:100%}
ul.plain{margin:8px 0 0;padding-left:20px}ul.plain li{margin:4px 0}
details{background:var(--card);border:1px solid var(--line);border-radius:14px;margin-top:12px;padding:10px 16px}
summary{cursor:pointer;font-weight:600}
details pre{overflow-x:auto;font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace}
td.wide{overflow-wrap:anywhere}
@media (max-width:560px){main{padding:24px 14px 60px}.stack{grid-template-columns:1fr 70px}.stack b{grid-column:1/-1;
margin-bottom:-6px}th,td{padding:8px 10px}td:first-child{white-space:normal;min-width:7em}}
"""
