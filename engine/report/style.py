"""How a report looks, and the one script it has: values beside the pointer. Both stand in the page itself.

Colours are those of Okabe and Ito ("Color Universal Design"), told apart by people who see colours otherwise; lightened
for the dark page.
"""

STYLE = """
:root { --page: #fbfbf9; --card: #fff; --ink: #1c1f23; --soft: #5c646d; --rule: #e4e5e1; --grid: #ecece8;
  --good: #00664d; --bad: #a33c00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8860b; --c4: #b05c94; --c5: #4aa3d8; --c6: #8a8f98;
  --c7: #7a4fb5; --c8: #5b8c2a; --c9: #c0392b; --c10: #2c7873; --c11: #c9ccd1;
  --c12: #8c5a44; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1b1f23; --ink: #e6e8ea; --soft: #9aa4ae;
  --rule: #2c3238; --grid: #262b30; --good: #4cc9a0; --bad: #ff9561;
  --c0: #56a9e0; --c1: #ff8a4c; --c2: #35c79a; --c3: #e0b040; --c4: #dd92c2; --c5: #8cc9f0; --c6: #8d96a0;
  --c7: #b294e6; --c8: #9ac765; --c9: #f0766a; --c10: #6fc3bd; --c11: #444b53;
  --c12: #c99a84; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; }
p { margin: 0 0 10px; max-width: 76ch; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px;
  margin: 24px 0 8px; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 13px; } .tile b { display: block; font-size: 19px; white-space: nowrap; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; } .card { padding: 16px 18px; min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px;
  margin-top: 12px; }
.chart { margin: 0; position: relative; } .chart svg { width: 100%; height: auto; display: block;
  overflow: visible; }
.tick, .label { font: 11.5px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-opacity: .5; }
.mark { stroke: var(--soft); stroke-dasharray: 2 4; stroke-opacity: .7; }
.line, .faint, .roof { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-width: 1; stroke-opacity: .38; } .roof { stroke: var(--soft); }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1; } .fill { fill: var(--c); }
.below { fill: var(--c); fill-opacity: .14; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 12.5px; color: var(--soft);
  padding: 6px 0 0 8px; }
.key { display: inline-block; width: 14px; height: 0; border-top: 3px solid var(--c); margin-right: 6px;
  vertical-align: 4px; }
.key.area { height: 10px; border: 0; background: var(--c); border-radius: 2px; vertical-align: -1px; }
.key.dots { width: 9px; height: 9px; border: 0; border-radius: 50%; background: var(--c); vertical-align: 0; }
.key.faint { opacity: .45; border-top-width: 2px; }
.cross { stroke: var(--soft); stroke-opacity: .6; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 5px 9px; font-size: 12px; white-space: nowrap;
  box-shadow: 0 2px 10px rgb(0 0 0 / .12); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
code, pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
td code { overflow-wrap: anywhere; } pre { overflow-x: auto; margin: 8px 0 0; } details { margin-top: 12px; }
summary { cursor: pointer; color: var(--soft); font-size: 13.5px; } .good { color: var(--good); }
.bad { color: var(--bad); }
td:has(.bar) { white-space: nowrap; } .bar { display: inline-block; height: 8px; border-radius: 4px;
  background: var(--c0); vertical-align: 0; min-width: 1px; }
img { max-width: 100%; height: auto; border-radius: 6px; display: block; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; border-top: 1px solid var(--rule); padding-top: 12px;
  overflow-wrap: anywhere; }
@media print { :root { --page: #fff; } body { font-size: 11px; } main { max-width: none; padding: 0; }
  .card, .tile, figure, tr { break-inside: avoid; } h2 { break-after: avoid; margin-top: 24px; }
  details { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }""" + "".join(
    f".c{number} {{ --c: var(--c{number}); }}\n" for number in range(13)
)

SCRIPT = """
for (const figure of document.querySelectorAll("figure[data-values]")) {
  const { box: [left, top, right, bottom, width], x: [label, low, high], lines } = JSON.parse(figure.dataset.values);
  const svg = figure.querySelector("svg"), cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const tip = document.createElement("div");
  cross.setAttribute("class", "cross"); cross.setAttribute("y1", top); cross.setAttribute("y2", bottom);
  tip.className = "tip"; tip.hidden = true; figure.append(tip);
  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect(), at = (event.clientX - frame.left) / frame.width * width;
    if (at < left || at > right) return leave();
    const wanted = low + (at - left) / (right - left) * (high - low);
    const near = lines.map(([name, points]) =>
      [name, points.reduce((best, point) => Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best)]);
    const place = near.map(([, point]) => point[0])
      .reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best);
    const x = left + (place - low) / (high - low) * (right - left);
    cross.setAttribute("x1", x); cross.setAttribute("x2", x); svg.append(cross);
    tip.replaceChildren(...[`${label} ${+place.toPrecision(5)}`, ...near.map(([name, point]) => `${name} ${point[1]}`)]
      .map(text => Object.assign(document.createElement("div"), { textContent: text })));
    tip.hidden = false;
    const pixel = x / width * frame.width;
    tip.style.left = `${pixel + (pixel > frame.width / 2 ? -tip.offsetWidth - 10 : 10)}px`; tip.style.top = "18px";
  });
  const leave = () => { tip.hidden = true; cross.remove(); };
  svg.addEventListener("pointerleave", leave);
}
"""
