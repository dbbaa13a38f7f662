"""Style and script of the page: type, rules and white space; one column on a narrow screen; clean on paper."""

from __future__ import annotations

__all__ = ["CSS", "SCRIPT"]

CSS = """
:root { color-scheme: light; --ink: #1b2128; --muted: #5d6873; --rule: #dde2e7; --faint: #f5f7f9; --accent: #0b4f8a;
  --bad: #a83a24; --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 var(--sans); }
main, nav > div, footer { max-width: 1240px; margin: 0 auto; padding: 0 32px; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.22; text-wrap: balance; }
h1 { font-size: 34px; margin: 0 0 18px; max-width: 26em; letter-spacing: -0.005em; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 46em; overflow-wrap: anywhere; }
code, pre { font: 12.5px/1.5 var(--mono); }
code { background: var(--faint); padding: 1px 5px; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--faint); padding: 16px 18px; margin: 8px 0 0; overflow-x: auto; border-radius: 4px; }
.eyebrow { font-size: 12px; letter-spacing: 0.09em; text-transform: uppercase; color: var(--muted); margin: 0 0 12px; }
.lead { font: 19px/1.5 var(--serif); margin: 0 0 10px; }
.muted, .note { color: var(--muted); }
.note { font-size: 13px; margin: 8px 0 0; }
.warning { border-left: 3px solid var(--bad); padding: 6px 0 6px 14px; margin: 0 0 14px; }
.warning strong, .bad { color: var(--bad); }
nav { position: sticky; top: 0; z-index: 5; background: #fff; border-bottom: 1px solid var(--rule); }
nav > div { display: flex; gap: 22px; overflow-x: auto; white-space: nowrap; font-size: 13px; scrollbar-width: none; }
nav a { color: var(--muted); text-decoration: none; padding: 11px 0; }
nav a:hover, nav a:focus { color: var(--accent); }
header.title { padding: 56px 0 36px; }
section { display: grid; grid-template-columns: 184px minmax(0, 1fr); gap: 40px; border-top: 1px solid var(--rule);
  padding: 34px 0 44px; scroll-margin-top: 42px; }
section > header p { font-size: 13.5px; color: var(--muted); line-height: 1.5; }
dl { margin: 0; }
dl.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(142px, 1fr)); margin-top: 30px;
  border-top: 2px solid var(--ink); }
.cards > div { padding: 14px 14px 13px 0; }
.cards dt { font-size: 12.5px; color: var(--muted); }
.cards dd { margin: 2px 0 0; font: 25px/1.25 var(--serif); font-variant-numeric: lining-nums tabular-nums; }
.cards dd.interval { font: 12.5px/1.4 var(--sans); color: var(--muted); white-space: nowrap; }
dl:not(.cards) > div { display: grid; grid-template-columns: 190px minmax(0, 1fr); gap: 16px; padding: 5px 0;
  border-bottom: 1px solid var(--rule); font-size: 14px; }
dl:not(.cards) dt { color: var(--muted); }
dl:not(.cards) dd { margin: 0; overflow-wrap: anywhere; }
.columns > dl { columns: 2; column-gap: 44px; }
.columns > dl > div { break-inside: avoid; }
figure { margin: 0 0 22px; }
.plot > figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px; font-size: 13px;
  color: var(--muted); margin-bottom: 4px; }
.plot > figcaption strong { color: var(--ink); font-size: 14.5px; }
.plot > figcaption button { margin-left: auto; }
.chart { width: 100%; }
button { font: 12.5px var(--sans); color: var(--ink); background: #fff; border: 1px solid #c3cad1; border-radius: 3px;
  padding: 3px 10px; cursor: pointer; }
button[aria-pressed="true"] { background: var(--accent); border-color: var(--accent); color: #fff; }
/* a shadow at the side on which a table goes on; covered where it ends */
.scroll { overflow-x: auto; margin: 0 0 8px; background-color: #fff; background-repeat: no-repeat;
  background-image: linear-gradient(90deg, #fff 40%, #fff0), linear-gradient(270deg, #fff 40%, #fff0),
    linear-gradient(90deg, #0002, #0000), linear-gradient(270deg, #0002, #0000);
  background-position: 0 0, 100% 0, 0 0, 100% 0; background-size: 36px 100%, 36px 100%, 10px 100%, 10px 100%;
  background-attachment: local, local, scroll, scroll; }
.scroll + .plot, .scroll + details, p + .plot { margin-top: 24px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: lining-nums tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 6px 0 6px 13px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th.t, td.t { text-align: left; }
th:first-child { padding-left: 0; }
thead th { font-weight: 500; font-size: 12.5px; color: var(--muted); vertical-align: bottom; white-space: normal;
  border-bottom: 1px solid var(--ink); line-height: 1.3; }
thead th code { white-space: nowrap; }
tbody th { font-weight: 400; }
tbody .marked > * { font-weight: 600; }
td small { display: block; font-size: 11.5px; font-weight: 400; color: var(--muted); }
.wordy td:last-child, .wordy th:last-child { text-align: left; white-space: normal; min-width: 230px;
  color: var(--muted); }
.compact table { width: auto; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
.key { font-size: 13px; color: var(--muted); }
.key .line { display: inline-block; width: 20px; height: 2px; margin: 0 7px 3px 16px; }
.key .line:first-child { margin-left: 0; }
.key .dot { display: inline-block; width: 7px; height: 7px; border-radius: 50%; margin: 0 7px 1px 16px; }
.key .dot:first-child { margin-left: 0; }
.note + .key { margin-top: 22px; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); gap: 18px 28px; }
.maps .plot { margin: 0; min-width: 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 14px 20px; }
.curves.many { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px 14px; }
.curves figure { margin: 0; break-inside: avoid; }
.curves figcaption { font-size: 12.5px; color: var(--muted); }
.curves svg { display: block; width: 100%; height: auto; }
.curves text { font: 9.5px var(--sans); fill: #5d6873; }
details { margin: 14px 0 0; }
summary { cursor: pointer; font-size: 13.5px; color: var(--accent); margin-bottom: 8px; }
ul { margin: 0; padding-left: 18px; }
li { overflow-wrap: anywhere; margin-bottom: 3px; font-size: 14px; }
a { color: var(--accent); }
footer { color: var(--muted); font-size: 12.5px; padding-top: 18px; padding-bottom: 44px; }
.nb { white-space: nowrap; }
@media (max-width: 900px) {
  section { grid-template-columns: minmax(0, 1fr); gap: 14px; padding: 26px 0 32px; }
}
@media (max-width: 560px) {
  main, nav > div, footer { padding-left: 18px; padding-right: 18px; }
  header.title { padding: 34px 0 26px; }
  h1 { font-size: 25px; }
  .lead { font-size: 17px; }
  dl.cards { grid-template-columns: 1fr 1fr; }
  .cards dd { font-size: 22px; }
  .curves { grid-template-columns: 1fr 1fr; gap: 10px 12px; }
  .curves.many { grid-template-columns: 1fr 1fr; }
  .curves text { font-size: 14px; }
  .curves.panels { grid-template-columns: 1fr; }
  .curves.panels text { font-size: 9.5px; }
  .columns > dl { columns: 1; }
  .wordy thead { display: none; }
  .wordy tr { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--rule); padding: 8px 0; }
  .wordy tr > * { border: 0; padding: 1px 0; white-space: normal; }
  .wordy tr > :nth-child(2) { font-weight: 600; }
  .wordy tr > :nth-child(n + 3) { grid-column: 1 / -1; text-align: left; }
  dl:not(.cards) > div { grid-template-columns: 118px minmax(0, 1fr); gap: 10px; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; }
  nav, button { display: none !important; }
  main, footer { max-width: none; padding: 0; }
  header.title { padding: 0 0 20px; }
  section { display: block; padding: 18px 0; }
  section > header, figure, tr, h3 { break-inside: avoid; }
  section > header, h3, summary { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding-left: 8px; white-space: normal; }
  td small, .wordy tbody th, .swatch { white-space: nowrap; }
  td small { font-size: 6.5pt; }
  thead th { font-size: 7.5pt; }
  pre { white-space: pre-wrap; }
  .curves { grid-template-columns: repeat(4, 1fr); }
}
"""

SCRIPT = """
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const arrays = read("arrays"), figures = read("figures");
  const filled = (value) => {
    if (Array.isArray(value)) return value.map(filled);
    if (value === null || typeof value !== "object") return value;
    if ("array" in value) return { ...arrays[value.array] };
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, filled(item)]));
  };
  const narrow = () => window.innerWidth < 560;
  const grid = { gridcolor: "#e6e9ed", linecolor: "#9aa4ae", zerolinecolor: "#9aa4ae", zeroline: false,
    ticks: "", automargin: true };
  const themed = (layout) => {
    const result = { font: { family: "system-ui, -apple-system, 'Segoe UI', Arial, sans-serif", size: 12,
      color: "#3c4650" }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 56, r: 8, t: 8, b: 24 }, legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
      hoverlabel: { font: { size: 12 } }, dragmode: narrow() ? false : "zoom", ...layout };
    for (const key of Object.keys(result))
      if (/^[xy]axis/.test(key)) {
        const own = key[0] === "x" ? { showgrid: false, showline: true } : {};
        result[key] = { ...grid, ...own, ...result[key] };
        if (result[key].title) result[key].title = { font: { size: 12, color: "#5d6873" }, standoff: 8,
          ...result[key].title };
      }
    return result;
  };
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const charts = {};
  let printing = false;
  for (const [key, figure] of Object.entries(figures)) {
    const place = document.getElementById("chart-" + key);
    charts[key] = place;
    Plotly.newPlot(place, filled(figure.data), themed(figure.layout), config);
    new ResizeObserver(() => { if (!printing) Plotly.Plots.resize(place); }).observe(place);
  }
  for (const button of document.querySelectorAll("button[data-log]"))
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      Plotly.relayout(charts[button.dataset.log], { "yaxis.type": on ? "log" : "linear", "yaxis.autorange": true });
    });
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const part of document.querySelectorAll("details")) part.open = true;
    for (const place of Object.values(charts)) Plotly.relayout(place, { width: 680, autosize: false });
  });
  window.addEventListener("afterprint", () => {
    for (const place of Object.values(charts)) Plotly.relayout(place, { width: null, autosize: true });
    printing = false;
  });
})();
"""
